"""Training of a shallow draft model: some of the target's layers, distilled; embedding and head stay the target's."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.losses import Divergence, distil, of_law
from bench.model import Block, Transformer, shallow
from bench.packing import PADDING, Batch
from bench.reading import read
from bench.sampling import NOISE_BITS, Law, draw
from bench.trainer import tally
from bench.zoo import Target

CHUNK = 1024  # places whose logits, of both models, exist at the same time


@dataclass(frozen=True)
class Options:
    """`layers` of the draft; `k` drafts are what the held-out acceptance is measured for."""

    layers: int = 3
    k: int = 4

    def __post_init__(self):
        if self.layers < 1 or self.k < 1:
            raise BenchError(f"draft_model needs layers >= 1 and k >= 1, got {self.layers} and {self.k}")


class Layers(nn.Module):
    """What is trained and stored: the layers and the final norm."""

    def __init__(self, target: Transformer, layers: int):
        super().__init__()
        config = shallow(target.config, layers)
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.to(target.norm.device)

    def start_from(self, target: Transformer) -> None:
        """Copy layers that lie evenly between the first and the last one."""
        count, depth = len(self.blocks), len(target.blocks)
        for i, block in enumerate(self.blocks):
            block.load_state_dict(target.blocks[round(i * (depth - 1) / max(count - 1, 1))].state_dict())
        self.norm.data.copy_(target.norm)

    def on(self, target: Transformer) -> Transformer:
        """The draft model, between the target's embedding and the target's head."""
        with torch.device("meta"):
            model = Transformer(shallow(target.config, len(self.blocks)))
        model.blocks, model.norm = self.blocks, self.norm
        model.embedding, model.head = target.embedding, target.head
        model.extend_rope(model.config.context)
        return model


class Lesson:
    """Distillation under the law of decoding. Implements `bench.trainer.Trainable`."""

    Options = Options
    rate = 6e-4

    def __init__(self, target: Target, law: Law, options: Any):
        """BenchError when the draft would be deeper than its target."""
        if options.layers > target.config.layers:
            raise BenchError(f"draft_model: {options.layers} layers are more than the {target.config.layers} of "
                             f"{target.name}; lower layers")
        self.target, self.law = target.model, law
        self.options: dict[str, Any] = asdict(options)
        self.module = Layers(target.model, options.layers)
        self.module.start_from(target.model)
        self.model = self.module.on(target.model)

    def loss(self, batch: Batch) -> Tensor:
        """KL divergence from the target's law to the draft's softmax at the law's temperature.

        In greedy texts, too: what has learned the law has its arg max, and these are other contexts to learn it in.
        """
        with torch.no_grad():
            taught = read(self.target, batch).hidden.flatten(0, 1)
        return distil(self.own(batch), self.target, of_law(self.target, taught, self.law),
                      (batch.texts != PADDING).flatten(), Divergence(self.law.temperature or 1.0))

    def own(self, batch: Batch) -> Tensor:
        """The head's input by the draft, [B T, hidden]: weights in float32, on CUDA products in bf16."""
        device = self.target.norm.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return read(self.model, batch).hidden.flatten(0, 1)

    def acceptance(self, batch: Batch) -> Tensor:
        """The run of places where both models draw the same token with the same noise, k at most."""
        taught = read(self.target, batch).hidden.flatten(0, 1)
        silent = batch.silent(self.law, 1)
        parts = zip(*(x.split(CHUNK) for x in (taught, self.own(batch), silent.flatten())), strict=True)
        k, same = self.options["k"], torch.cat([self.agree(*part) for part in parts]).view_as(batch.tokens)
        run = same.unfold(1, k, 1).cumprod(-1).sum(-1)  # [B, T - k + 1]
        whole = batch.followed(k - 1)[:, : run.shape[1]]
        return tally(run[whole], silent[:, : run.shape[1]][whole])

    def agree(self, taught: Tensor, own: Tensor, silent: Tensor) -> Tensor:
        """Whether both heads' inputs [R, H] give the same token, by the law or where it is `silent` by arg max."""
        noise = torch.randint(1 << NOISE_BITS, taught.shape[:1], device=taught.device)
        logits = [self.target.score(x.to(self.target.head.dtype)) for x in (taught, own)]
        drawn, best = ([draw(noise, x, law) for x in logits] for law in (self.law, Law()))
        return torch.where(silent, best[0] == best[1], drawn[0] == drawn[1])

    def measure(self, batches: list[Batch]) -> None:
        """A draft model keeps nothing that is measured."""
