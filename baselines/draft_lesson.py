"""Training of a shallow draft model: some of the target's layers, distilled; embedding and head stay the target's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.blur import WIDTHS, draw
from bench.errors import BenchError
from bench.losses import Divergence, distil, of_law
from bench.model import Block, Transformer, shallow
from bench.packing import PADDING, Batch
from bench.reading import read
from bench.sampling import NOISE_BITS, Law
from bench.shortlist import SIZE, Head, Shortlist, option
from bench.trainer import tally
from bench.zoo import Target

CHUNK = 1024  # places whose logits, of both models, exist at the same time


@dataclass(frozen=True)
class Options:
    """`layers` of the draft; `k` drafts are what the held-out acceptance is measured for.

    `shortlist`: so many ids, the most frequent, may be drafted; 0: all.
    """

    layers: int = 3
    k: int = 4
    shortlist: int = SIZE

    def __post_init__(self):
        if self.layers < 1 or self.k < 1:
            raise BenchError(f"draft_model needs layers >= 1 and k >= 1, got {self.layers} and {self.k}")


class Shallow(Transformer):
    """A draft model between the target's embedding and the target's head."""

    width: Tensor | None  # of the blur that its drafts are picked with, 0-d; None where it was not measured


class Layers(nn.Module):
    """Stored: layers and final norm, which are trained, the blur, which is measured, and what may be drafted."""

    width: Tensor | None

    def __init__(self, target: Transformer, layers: int, blurred: bool = False, shortlist: int = 0):
        super().__init__()
        config = shallow(target.config, layers)
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.register_buffer("width", torch.zeros(()) if blurred else None)
        self.shortlist = Shortlist(shortlist)
        self.to(target.norm.device)
        depth = len(target.blocks)
        copied = [target.blocks[round(i * (depth - 1) / max(layers - 1, 1))] for i in range(layers)]
        # the target's own weights, by our names: see `bench.drafters.origin`
        self.origin = {"norm": target.norm} | {f"blocks.{i}.{name}": weight for i, block in enumerate(copied)
                                               for name, weight in block.state_dict().items()}

    def begin(self) -> None:
        """Copy layers of the target that lie evenly between the first and the last one."""
        for name, weight in self.named_parameters():
            weight.data.copy_(self.origin[name])

    def on(self, target: Transformer) -> Shallow:
        """The draft model for a target."""
        with torch.device("meta"):
            model = Shallow(shallow(target.config, len(self.blocks)))
        model.blocks, model.norm, model.width = self.blocks, self.norm, self.width
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
        listed = option(options.shortlist, target.config.vocab)
        self.options: dict[str, Any] = {"layers": options.layers, "k": options.k, "blurred": True, **listed}
        self.module = Layers(target.model, options.layers, blurred=True, **listed)
        self.module.begin()
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
        return self.accepted(batch, (float(self.module.width),))[0]  # type: ignore[arg-type]

    def measure(self, batches: list[Batch]) -> None:
        """The width of the blur that accepts most under the law; none, if that does."""
        widths = (0.0, *WIDTHS)
        kept = torch.stack([self.accepted(batch, widths) for batch in batches]).sum(0)[:, 0, 0]
        self.module.width.fill_(widths[int(kept.argmax())])  # type: ignore[union-attr]

    @torch.no_grad()
    def accepted(self, batch: Batch, widths: Sequence[float]) -> Tensor:
        """What `tally` makes of a batch for each of the `widths`, [widths, 2, 2]."""
        taught, silent = read(self.target, batch).hidden.flatten(0, 1), batch.silent(self.law, 1)
        parts = zip(*(x.split(CHUNK) for x in (taught, self.own(batch), silent.flatten())), strict=True)
        heads = Head(self.target.head), self.module.shortlist.head(self.target)
        same = torch.cat([self.agree(heads, x, y, z, widths) for x, y, z in parts], 1).view(-1, *batch.tokens.shape)
        k = self.options["k"]
        run = same.unfold(2, k, 1).cumprod(-1).sum(-1)  # [widths, B, T - k + 1]
        whole = batch.followed(k - 1)[:, : run.shape[2]]
        return torch.stack([tally(one[whole], silent[:, : run.shape[2]][whole]) for one in run])

    def agree(self, heads: tuple[Head, Head], taught: Tensor, own: Tensor, silent: Tensor, widths: Sequence[float],
              ) -> Tensor:
        """Whether both heads' inputs [R, H] give the same token, by the law or where it is `silent` by arg max.

        -> [widths, R] bool: the draft's is drawn with each of the `widths`.
        """
        noise = torch.randint(1 << NOISE_BITS, taught.shape[:1], device=taught.device)
        truth, draft = (head.score(x.to(head.weight.dtype)) for head, x in zip(heads, (taught, own), strict=True))
        named, drawn = heads[1].named, draw(noise, truth, self.law, 0.0)
        same = truth.argmax(-1) == named(draft.argmax(-1))
        return torch.stack([torch.where(silent, same, drawn == named(draw(noise, draft, self.law, width)))
                            for width in widths])
