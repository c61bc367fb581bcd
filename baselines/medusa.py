"""Medusa-1 (Cai et al., 2024, arXiv 2401.10774): heads on the frozen target guess several tokens ahead at once."""

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import drafters
from bench.errors import BenchError
from bench.loop import Method, Seen
from bench.shortlist import Head, Shortlist
from bench.tree import Structure, Tree

RANKS = 16  # candidates of a head that a tree may use


@dataclass(frozen=True)
class Settings:
    """`rows` of a step, the root included; `accept`: match, or typical (lossy).

    `weights`: a trained file; by default the one that comes with the target.
    """

    rows: int = 32
    accept: str = "match"
    weights: str = ""

    def __post_init__(self):
        if self.rows < 2:
            raise BenchError(f"medusa needs rows >= 2, got {self.rows}")
        if self.accept not in ("match", "typical"):
            raise BenchError(f"medusa: accept must be match or typical, got {self.accept!r}")


class Heads(nn.Module):
    """Head i (from 0) turns the hidden state that gave one token into a guess at the token i + 1 after that one.

    A residual SiLU block (section 2.1.1 of the paper) in front of the target's own output matrix.
    """

    accuracy: Tensor

    def __init__(self, hidden: int, heads: int, ranks: int = RANKS, shortlist: int = 0):
        super().__init__()
        self.matrices = nn.ParameterList(nn.Parameter(torch.zeros(hidden, hidden)) for _ in range(heads))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in range(heads))
        # chance that a head's candidate of each rank is right; until it is measured, halved from rank to rank
        self.register_buffer("accuracy", 0.5 ** (torch.arange(ranks) + 1.0).repeat(heads, 1))
        self.shortlist = Shortlist(shortlist)

    def forward(self, hidden: Tensor, head: int) -> Tensor:
        """[.., H] -> [.., H]: what goes into the output matrix."""
        matrix, bias = self.matrices[head].to(hidden.dtype), self.biases[head].to(hidden.dtype)
        return hidden + F.silu(F.linear(hidden, matrix, bias))


@dataclass(frozen=True)
class ChoiceTree:
    """Rows of a tree of candidates; row 0 is the root."""

    parents: list[int]
    depths: list[int]
    ranks: list[int]  # of each row among its head's candidates


def choose(accuracy: list[list[float]], rows: int) -> ChoiceTree:
    """The `rows - 1` candidates that are likeliest to be right with all their ancestors, as if heads were independent.

    Section 2.3.3 of the paper: greedy, the best leaf first. Chances fall from parent to child, so greedy is optimal.
    """
    tree = ChoiceTree([0], [0], [0])
    ranked = [sorted(range(len(row)), key=row.__getitem__, reverse=True) for row in accuracy]  # by measured chance
    queue = [(-accuracy[0][ranked[0][0]], 0, 0)]  # minus the chance of the path, parent, place among its siblings
    chance = [1.0]
    while queue and len(tree.parents) < rows:
        product, parent, place = heapq.heappop(queue)
        depth, row = tree.depths[parent] + 1, len(tree.parents)
        tree.parents.append(parent)
        tree.depths.append(depth)
        tree.ranks.append(ranked[depth - 1][place])
        chance.append(-product)
        if place + 1 < len(ranked[depth - 1]):
            sibling = accuracy[depth - 1][ranked[depth - 1][place + 1]]
            heapq.heappush(queue, (-chance[parent] * sibling, parent, place + 1))
        if depth < len(accuracy):
            heapq.heappush(queue, (product * accuracy[depth][ranked[depth][0]], row, 0))
    return tree


class Medusa(Method):
    """A fixed tree of the heads' best guesses; the first step of a text has none."""

    Settings = Settings

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings or Settings(), drafter)
        s = sequences
        self.verifier = self.settings.accept
        self.taps = (s.target.config.layers,)
        self.head = drafter.shortlist.head(s.target)
        self.choices = tree = choose(drafter.accuracy.tolist(), self.settings.rows)
        self.rows = (count := len(tree.parents),)
        source = [(depth - 1) * drafter.accuracy.shape[1] + rank
                  for depth, rank in zip(tree.depths[1:], tree.ranks[1:], strict=True)]
        self.source = torch.tensor(source, device=s.device)  # [count - 1]: where among all heads' candidates
        self.parents = torch.tensor(tree.parents, device=s.device).repeat(s.batch, 1)
        self.alone = torch.arange(count, device=s.device).repeat(s.batch, 1)
        self.structure, self.padding = Structure.of(self.parents), Structure.of(self.alone)
        self.drafts = torch.zeros(s.batch, count - 1, dtype=torch.int64, device=s.device)
        self.ready = torch.zeros(s.batch, 1, dtype=torch.bool, device=s.device)

    @classmethod
    def file(cls, settings: Any, target: Any) -> Path | None:
        """The file of the heads; None for a random target."""
        return drafters.source(settings.weights, "medusa", target)

    @classmethod
    def load(cls, settings: Any, target: Any) -> Heads:
        """The heads of a zoo target. Random targets get random ones: good for costs alone."""
        norm = target.model.norm
        if file := cls.file(settings, target):
            found = drafters.load(file, "medusa", target)
            heads = found.into(Heads(target.config.hidden, **found.card.options))
        else:
            heads = Heads(target.config.hidden, heads=4).requires_grad_(False)
        return heads.to(norm.device, norm.dtype)  # type: ignore[return-value]

    @property
    def extra_bytes(self) -> int:
        """The heads' weights, and the target's rows that they have a copy of."""
        return sum(p.numel() * p.element_size() for p in self.drafter.parameters()) + self.head.bytes

    def start(self) -> None:
        """No hidden state has been seen yet."""
        self.ready.zero_()

    def propose(self, kind: int) -> Tree:
        """The tree of candidates; before the first step nothing but padding."""
        tokens = torch.cat([self.sequences.root_tokens(), self.drafts], 1)
        ready, tree, padding = self.ready, self.structure, self.padding
        structure = Structure(torch.where(ready[..., None], tree.ancestors, padding.ancestors),
                              torch.where(ready, tree.depths, padding.depths),
                              torch.where(ready, tree.live, padding.live))
        return Tree(tokens, torch.where(ready, self.parents, self.alone), depth=max(self.choices.depths),
                    structure=structure)

    def observe(self, seen: Seen) -> None:
        """The hidden state of the last kept row goes through all heads."""
        (hidden,), last = seen.result.taps, seen.outcome.last
        hidden = hidden[torch.arange(len(last), device=last.device), last]
        best = candidates(self.head, self.drafter, hidden)
        self.drafts.copy_(best.flatten(1)[:, self.source])
        self.ready.fill_(True)


def candidates(output: Head, heads: Heads, hidden: Tensor) -> Tensor:
    """Every head's likeliest tokens, best first: hidden [R, H] -> [R, heads, ranks] int64."""
    count, ranks = heads.accuracy.shape
    inner = torch.stack([heads(hidden, head) for head in range(count)], 1)
    return output.named(output.score(inner).topk(ranks, -1).indices)
