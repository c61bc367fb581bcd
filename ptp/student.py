"""The trained part of PTP: noise embedding, gated adapter, and what is known about the student's confidence."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.config import Config
from bench.errors import BenchError
from bench.sampling import Law
from ptp.adapter import GatedAdapter
from ptp.confidence import Confidence
from ptp.draft import DRAWS
from ptp.kinds import KINDS, Kind
from ptp.noise_embedding import NONE, NoiseDesign, NoiseEmbedding


@dataclass(frozen=True)
class Design:
    """What a student is made of."""

    kind: str = "o"
    slots: int = 16  # longest group it was trained for
    rank: int = 64
    informed: bool = True  # False: the control, which never sees noise
    noise: NoiseDesign = field(default_factory=NoiseDesign)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise BenchError(f"a student's kind is one of {', '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Origin:
    """What a student was trained for; loading it for anything else is an error."""

    target: str  # sha256 of the target's weights
    law: Law


class Student(nn.Module):
    """Everything that training changes; the target stays as it is."""

    def __init__(self, design: Design, config: Config, scale: float = 1.0):
        """`scale`: root mean square of the target's token embeddings."""
        super().__init__()
        self.design = design
        self.kind: Kind = KINDS[design.kind]
        self.embedding = NoiseEmbedding(design.noise, config.hidden, scale)
        self.adapter = GatedAdapter(config, design.rank)
        self.confidence = nn.ModuleDict({way: Confidence(design.slots, self.kind.known) for way in DRAWS})

    def embed(self, noise: Tensor) -> Tensor:
        """Inputs of slots: `noise` [..] int64 -> [.., hidden]. The control hears nothing."""
        return self.embedding(noise if self.design.informed else torch.full_like(noise, NONE))

    def ways(self, law: Law) -> tuple[str, ...]:
        """How its drafts may be drawn (see `ptp.draft`). The control has a choice."""
        if law.temperature == 0:
            return ("greedy",)
        if not self.design.informed:
            return ("argmax", "pick")
        return ("argmax",) if self.kind.known else ("pick",)

    def save(self, path: Path, origin: Origin) -> None:
        """Weights, design and origin in one safetensors file."""
        about = {"design": asdict(self.design), "target": origin.target, "law": asdict(origin.law)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path,
                  metadata={"student": json.dumps(about)})

    @staticmethod
    def load(path: Path, config: Config, target: str) -> "Student":
        """Read what `save` wrote. BenchError when it is no student, has wrong weights, or is another target's."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["student"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError) as error:
            raise BenchError(f"{path.name}: not a student that can be read ({type(error).__name__}: {error})") from None
        if about["target"] != target:
            raise BenchError(f"{path.name} was trained for another target (sha256 {about['target'][:12]}, "
                             f"this one has {target[:12]}); train one for this target")
        design = Design(**{**about["design"], "noise": NoiseDesign(**about["design"]["noise"])})
        student = Student(design, config)
        try:
            student.load_state_dict(weights)
        except RuntimeError as error:
            raise BenchError(f"{path.name}: {str(error).splitlines()[-1].strip()}") from None
        return student.requires_grad_(False)
