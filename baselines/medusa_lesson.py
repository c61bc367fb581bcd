"""Training of Medusa-1 heads (arXiv 2401.10774, section 2.2.1): cross-entropy, the target stays frozen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baselines.medusa import RANKS, Heads, Settings, candidates, choose
from bench.errors import BenchError
from bench.losses import distil, of_tokens
from bench.packing import Batch
from bench.reading import read
from bench.sampling import Law
from bench.shortlist import SIZE, option
from bench.trainer import tally
from bench.zoo import Target

CHUNK = 1024  # places whose logits, of all heads, exist at the same time
DECAY = 0.8  # weight of every head's loss relative to the head before it, as in the paper


@dataclass(frozen=True)
class Options:
    """`heads`: how many tokens ahead; `shortlist`: so many ids, the most frequent, may be drafted, 0: all."""

    heads: int = 4
    shortlist: int = SIZE

    def __post_init__(self):
        if self.heads < 1:
            raise BenchError(f"medusa needs heads >= 1, got {self.heads}")


class Lesson:
    """Heads and how they learn. Implements `bench.trainer.Trainable`."""

    Options = Options
    rate = 1e-3

    def __init__(self, target: Target, law: Law, options: Any):
        """Heads learn what the texts say next, of sampled and of greedy ones alike; they hear of no law."""
        self.model, self.law = target.model, law
        listed = option(options.shortlist, target.config.vocab)
        ranks = min(RANKS, listed.get("shortlist", target.config.vocab))
        self.options: dict[str, Any] = {"heads": options.heads, "ranks": ranks, **listed}
        self.module = Heads(target.config.hidden, **self.options).to(target.model.norm.device)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of every head's token, weighted."""
        with torch.no_grad():
            hidden = read(self.model, batch).hidden.flatten(0, 1)
        losses = [distil(self.module(hidden, head), self.model, of_tokens(batch.later(head + 2).flatten()),
                         batch.followed(head + 2).flatten()) for head in range(self.options["heads"])]
        return sum((DECAY**head * loss for head, loss in enumerate(losses)), start=losses[0].new_zeros(()))

    def acceptance(self, batch: Batch) -> Tensor:
        """Depth of the deepest right path of the tree that the heads' accuracy gives, plus one."""
        tree = choose(self.module.accuracy.tolist(), Settings().rows)
        depths = torch.tensor(tree.depths, device=self.module.accuracy.device)
        deepest = []
        for right in self.rights(batch):
            paths = [torch.ones_like(right[:, 0, 0])]
            for parent, depth, rank in list(zip(tree.parents, tree.depths, tree.ranks, strict=True))[1:]:
                paths.append(paths[parent] & right[:, depth - 1, rank])
            deepest.append(torch.where(torch.stack(paths, 1), depths, 0).amax(1))
        return tally(torch.cat(deepest), batch.silent(self.law, 2)[self.places(batch)])

    def measure(self, batches: list[Batch]) -> None:
        """How often each head's candidate of each rank is right."""
        hits, places = torch.zeros_like(self.module.accuracy), 0
        for batch in batches:
            for right in self.rights(batch):
                hits += right.sum(0)
                places += len(right)
        self.module.accuracy.copy_(hits / max(places, 1))

    def places(self, batch: Batch) -> Tensor:
        """[B, T] bool: enough text follows for all heads."""
        return batch.followed(self.options["heads"] + 1)

    def rights(self, batch: Batch) -> Iterator[Tensor]:
        """Which candidates are right, at all places: [R, heads, ranks] bool, by chunks."""
        places = self.places(batch)
        hidden = read(self.model, batch).hidden[places]
        labels = torch.stack([batch.later(head + 2)[places] for head in range(self.options["heads"])], 1)
        head = self.module.shortlist.head(self.model)
        for inner, wanted in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
            yield candidates(head, self.module, inner) == wanted[..., None]
