"""Training of Medusa-1 heads (arXiv 2401.10774, section 2.2.1): cross-entropy, the target stays frozen."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from baselines.medusa import RANKS, Heads, Settings, candidates, choose
from bench.errors import BenchError
from bench.losses import distil, of_tokens
from bench.packing import Batch
from bench.sampling import Law
from bench.zoo import Target

CHUNK = 1024  # places whose logits, of all heads, exist at the same time
DECAY = 0.8  # weight of every head's loss relative to the head before it, as in the paper


@dataclass(frozen=True)
class Options:
    """`heads`: how many tokens ahead."""

    heads: int = 4

    def __post_init__(self):
        if self.heads < 1:
            raise BenchError(f"medusa needs heads >= 1, got {self.heads}")


class Lesson:
    """Heads and how they learn. Implements `bench.trainer.Trainable`."""

    Options = Options
    rate = 1e-3

    def __init__(self, target: Target, law: Law, options: Any):
        """The law of the texts is the only one that the heads ever hear of."""
        self.model = target.model
        self.options: dict[str, Any] = asdict(options) | {"ranks": min(RANKS, target.config.vocab)}
        self.module = Heads(target.config.hidden, **self.options).to(target.model.norm.device)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of every head's token, weighted."""
        with torch.no_grad():
            hidden = batch.read(self.model).flatten(0, 1)
        total = hidden.new_zeros((), dtype=torch.float32)
        for head in range(self.options["heads"]):
            losses = distil(self.module(hidden, head), self.model, of_tokens(batch.later(head + 2).flatten()))
            valid = batch.followed(head + 2).flatten()
            total = total + DECAY**head * torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)
        return total

    def acceptance(self, batch: Batch) -> Tensor:
        """Depth of the deepest right path of the tree that the heads' accuracy gives, plus one."""
        tree = choose(self.module.accuracy.tolist(), Settings().rows)
        total = torch.zeros(2, dtype=torch.float64, device=self.module.accuracy.device)
        for right in self.rights(batch):
            paths = [torch.ones_like(right[:, 0, 0])]
            for parent, depth, rank in list(zip(tree.parents, tree.depths, tree.ranks, strict=True))[1:]:
                paths.append(paths[parent] & right[:, depth - 1, rank])
            depths = torch.tensor(tree.depths, device=right.device)
            deepest = torch.where(torch.stack(paths, 1), depths, 0).amax(1)
            total += torch.stack([(1 + deepest).sum(), torch.ones_like(deepest).sum()])
        return total

    def measure(self, batches: list[Batch]) -> None:
        """How often each head's candidate of each rank is right."""
        hits, places = torch.zeros_like(self.module.accuracy), 0
        for batch in batches:
            for right in self.rights(batch):
                hits += right.sum(0)
                places += len(right)
        self.module.accuracy.copy_(hits / max(places, 1))

    def rights(self, batch: Batch) -> Iterator[Tensor]:
        """At places with enough text behind them, which candidates are right: [R, heads, ranks] bool, by chunks."""
        count = self.options["heads"]
        valid = batch.followed(count + 1)
        hidden = batch.read(self.model)[valid]
        labels = torch.stack([batch.later(head + 2)[valid] for head in range(count)], 1)
        for inner, wanted in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
            yield candidates(self.model, self.module, inner) == wanted[..., None]
