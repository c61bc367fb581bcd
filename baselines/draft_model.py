"""Speculative decoding with a draft model (Leviathan et al., 2023; Chen et al., 2023): a chain of k drafted tokens."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.draft_lesson import Layers, Options, Shallow
from bench import drafters, zoo
from bench.blur import draw
from bench.cache import Cache
from bench.errors import BenchError
from bench.forward import forward_for, prefill
from bench.loop import Method
from bench.model import Transformer
from bench.sampling import Choices, pick
from bench.shortlist import Head
from bench.tree import Tree, chain, chain_parents


@dataclass(frozen=True)
class Settings:
    """`draft`: a zoo name, or a .safetensors file that `train` wrote; by default the one that comes with the target.

    `verify`: "match" (shared noise, same text) or "reject" (own noise, same distribution). `blur`: the width of the
    blurred pick that `match` drafts with, 0 for none; by default what was measured when the draft was trained.
    """

    draft: str = ""
    k: int = 4
    verify: str = "match"
    blur: float = -1.0

    def __post_init__(self):
        if self.k < 1:
            raise BenchError(f"draft_model needs k >= 1, got {self.k}")
        if self.verify not in ("match", "reject"):
            raise BenchError(f"draft_model: verify must be match or reject, got {self.verify!r}")
        if not self.blur < math.inf:
            raise BenchError(f"draft_model: blur must be a width such as 0.1, or 0 for none, got {self.blur}")
        if self.blur > 0 and self.verify == "reject":
            raise BenchError("draft_model: reject drafts from the law as it is; leave blur out")


class DraftModel(Method):
    """The draft has a cache of its own, which rolls back by being overwritten."""

    Settings = Settings

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings or Settings(), drafter)
        self.settings = replace(self.settings, blur=self.measured(drafter))
        s, k = sequences, self.settings.k
        self.verifier = self.settings.verify
        self.rows = (k + 1,)
        self.cache = Cache(drafter.config, s.batch, s.cache.capacity, drafter.norm)
        drafter.extend_rope(s.cache.capacity)
        self.forward = forward_for(drafter, self.cache)
        self.head = Head(drafter.head, drafter.listed)
        self.chains = {rows: chain(rows, s.batch, s.device) for rows in (1, 2, k + 1)}
        self.parents = {rows: chain_parents(rows, s.batch, s.device) for rows in (1, 2, k + 1)}

    @classmethod
    def file(cls, settings: Any, target: Any) -> Path | None:
        """The file of trained layers; None for a model of the zoo, and for a random target."""
        if settings.draft and not settings.draft.endswith(".safetensors"):
            return None
        return drafters.source(settings.draft, "draft_model", target, option="draft")

    @classmethod
    def load(cls, settings: Any, target: Any) -> Any:
        """The draft model by its zoo name or file. Raises BenchError when its vocabulary or its target is another.

        Random targets get some of their own layers, untrained: good for costs alone.
        """
        model = target.model
        if file := cls.file(settings, target):
            return trained(file, target)
        if settings.draft:
            draft = zoo.load(settings.draft, model.norm.device, model.norm.dtype)
            zoo.require_same_vocabulary(target, draft)
            return draft.model
        layers = Layers(model, min(Options().layers, model.config.layers // 2 or 1))
        layers.begin()
        return layers.to(model.norm.dtype).on(model).requires_grad_(False)

    def measured(self, drafter: Transformer) -> float:
        """The width of the blur: as asked for, or the draft's own."""
        if self.settings.verify == "reject" or self.law.temperature == 0:
            return 0.0
        if self.settings.blur >= 0:
            return self.settings.blur
        return float(drafter.width) if isinstance(drafter, Shallow) and drafter.width is not None else 0.0

    @property
    def extra_bytes(self) -> int:
        """The draft's weights, without those that are the target's own, and its cache."""
        shared = {weight.data_ptr() for weight in self.sequences.target.parameters()}
        own = [weight for weight in self.drafter.parameters() if weight.data_ptr() not in shared]
        return sum(weight.numel() * weight.element_size() for weight in own) + self.cache.bytes

    def start(self) -> None:
        """Fill the draft's cache with all of the prompt but its last token."""
        longest = int(self.sequences.lengths.max())
        prefill(self.drafter, self.cache, self.sequences.tokens[:, : longest - 1])

    def propose(self, kind: int) -> Tree:
        """k calls of the draft, each of one row; the first also of the token before the root.

        After a step that kept every draft, the last of them has not been through the draft yet. `match` draws with
        the target's own noise, `reject` with a stream of its own.
        """
        s, k, root = self.sequences, self.settings.k, self.sequences.root
        base = (root - 1).clamp(min=0)
        pair = s.tokens.gather(1, base[:, None] + torch.arange(2, device=s.device))
        logits = self.run(pair, base)
        logits = logits.gather(1, (root - base)[:, None, None].expand(-1, 1, logits.shape[2]))
        tokens, masses = [s.root_tokens()], []
        for i in range(1, k + 1):
            noise = s.noise.at("target" if self.verifier == "match" else "draft", root[:, None] + i)
            if self.verifier == "match":
                tokens.append(self.head.named(draw(noise, logits, self.law, self.settings.blur)))
            else:
                rows = self.law(logits)
                choices = Choices(self.head.named(rows.ids), rows.mass)
                tokens.append(pick(noise, choices))
                masses.append(choices.dense(self.drafter.config.vocab))
            if i < k:
                logits = self.run(tokens[-1], root + i)
        return Tree(torch.cat(tokens, 1), self.parents[k + 1], depth=k, is_chain=True, structure=self.chains[k + 1],
                    draft_mass=torch.cat(masses, 1) if masses else None)

    def run(self, tokens: Tensor, base: Tensor) -> Tensor:
        """The draft's logits after a short chain of tokens: [B, rows] at `base` [B] -> [B, rows, rows of its head]."""
        rows = tokens.shape[1]
        tree = Tree(tokens, self.parents[rows], depth=rows - 1, is_chain=True, structure=self.chains[rows])
        return self.forward(tree, base, None, ()).logits


def trained(path: Path, target: Any) -> Transformer:
    """The shallow model in a file that `train` wrote, between the target's embedding and what it drafts of its head."""
    found = drafters.load(path, "draft_model", target)
    shape = {name: value for name, value in found.card.options.items() if name != "k"}
    layers = Layers(target.model, **shape)
    found.into(layers)
    model = layers.to(target.model.norm.dtype).on(target.model)
    head = layers.shortlist.head(target.model)
    if head.ids is not None:
        model.head, model.listed = nn.Parameter(head.weight), head.ids
    return model.requires_grad_(False)
