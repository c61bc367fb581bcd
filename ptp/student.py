"""The trained part of PTP: noise embedding, gated adapter, and what is known about the student's confidence."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.blur import WIDTHS
from bench.config import Config
from bench.errors import BenchError
from bench.model import Transformer
from bench.sampling import Law
from bench.shortlist import Shortlist
from ptp.adapter import GatedAdapter
from ptp.confidence import Confidence
from ptp.draft import DRAWS, kernels_for
from ptp.kinds import KINDS, Kind
from ptp.noise_embedding import NONE, NoiseDesign, NoiseEmbedding
from ptp.sequential import SequentialReadout

NEARLY = 0.99  # of the drafts kept; on an H100 three blurred picks take 0.11 ms of a step of 0.86, arg maxima 0.07


@dataclass(frozen=True)
class Design:
    """What a student is made of."""

    kind: str = "o"
    slots: int = 16  # longest group it was trained for
    rank: int = 64
    informed: bool = True  # False: the control, which never sees noise
    noise: NoiseDesign = field(default_factory=NoiseDesign)
    sequential: bool = False  # drafts are drawn one after the other (see `ptp.sequential`)
    sequential_width: int = 512  # hidden layer of its readout
    shortlist: int = 0  # how many ids it may draft, one after the other; 0: all
    blurred: bool = False  # the width of a blurred pick was measured (see `bench.blur`)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise BenchError(f"a student's kind is one of {', '.join(KINDS)}, got {self.kind!r}")

    def stored(self) -> dict[str, Any]:
        """As a card has it. It tells only of what is there: older cards stay equal to new ones."""
        absent = [name for name in ("sequential", "shortlist", "blurred") if not getattr(self, name)]
        return {key: value for key, value in asdict(self).items() if not key.startswith(tuple(absent))}


class Student(nn.Module):
    """Everything that training changes; the target stays as it is."""

    fine = ("readout.",)  # to be stored in 8 bits: with 4 it loses ten times as much as all else together
    width: Tensor | None

    def __init__(self, design: Design, config: Config, scale: float = 1.0):
        """`scale`: root mean square of the target's token embeddings."""
        super().__init__()
        self.design = design
        self.kind: Kind = KINDS[design.kind]
        self.embedding = NoiseEmbedding(design.noise, config.hidden, scale)
        self.adapter = GatedAdapter(config, design.rank)
        known = [way for way in DRAWS if design.blurred or way != "blurred"]
        self.confidence = nn.ModuleDict({way: Confidence(design.slots, self.kind.known) for way in known})
        self.register_buffer("width", torch.tensor(WIDTHS[0]) if design.blurred else None)  # measured, not trained
        self.readout = SequentialReadout(config.hidden, design.sequential_width) if design.sequential else None
        self.shortlist = Shortlist(design.shortlist)

    def embed(self, noise: Tensor) -> Tensor:
        """Inputs of slots: `noise` [..] int64 -> [.., hidden]. The control hears nothing."""
        return self.embedding(noise if self.design.informed else torch.full_like(noise, NONE))

    def corrected(self, target: Transformer, hidden: Tensor, before: Tensor) -> Tensor:
        """Head inputs of slots, [.., hidden]; `before` [..] int64: the tokens before those that they predict."""
        if self.readout is None:
            return hidden
        if kernels := kernels_for(hidden, self.readout.narrow):
            return kernels.corrected(self.readout, target.embedding, hidden, before)  # type: ignore[no-any-return]
        return self.readout(hidden, target.embed(before))

    def ways(self, law: Law) -> tuple[str, ...]:
        """How its drafts may be drawn (see `ptp.draft`). The control has every choice."""
        if law.temperature == 0:
            return ("greedy",)
        own = ("argmax",) if self.kind.known else ("pick",)
        plain = own if self.design.informed else ("argmax", "pick")
        return (*plain, "blurred") if self.design.blurred else plain

    def best_way(self, law: Law) -> str:
        """The first, hence the cheapest, of those that were measured to keep nearly as many drafts as the best."""
        kept = {way: float(self.confidence[way].runs[-1]) for way in self.ways(law)}  # type: ignore[index]
        return next(way for way, runs in kept.items() if runs >= NEARLY * max(kept.values()))

    @property
    def blur(self) -> float:
        """The width of its blurred pick, 0 where none was measured. Waits for the device."""
        return 0.0 if self.width is None else float(self.width)
