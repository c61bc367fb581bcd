"""Trained drafters on disk: large matrices in 4 bits, and a card, in one safetensors file.

Those of packaged models come with this package: `zoo/drafters/TARGET/METHOD.safetensors`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import destination
from bench.errors import BenchError
from bench.layout import in_words
from bench.quantisation import pack, unpack
from bench.sampling import Law
from bench.zoo import PACKAGED, Target

SHIPPED = Path(__file__).parent / "zoo" / "drafters"
SCALE = ".scale"  # suffix of the scales of a matrix
SMALL = 4096  # matrices of fewer elements stay as they are


@dataclass(frozen=True)
class Card:
    """What a drafter is, and what it was made from."""

    method: str
    options: dict[str, Any]  # its shape
    target: str  # name
    checksum: str  # of the target's weights; its name if they are random
    data: str  # hash of the training texts
    law: Law
    steps: int
    minutes: float
    acceptance: float  # tokens per step on held-out text, by teacher forcing
    stored: float  # the same after quantisation
    sha256: str = ""  # of all tensors in the file
    relative: bool = False  # to the `origin` of the module
    notes: dict[str, Any] = field(default_factory=dict)

    def remark(self, law: Law) -> str:
        """What a table must say beside numbers of another law than the one it was trained for; empty if it need not."""
        if law == self.law or (law.temperature == 0 and self.notes.get("greedy")):
            return ""
        return f"trained for {in_words(self.law.temperature, self.law.top_k, self.law.top_p)}"


def identity(target: Target) -> str:
    """What tells a target from all others: the hash of its weights, or its name if they are random."""
    return target.checksum or target.name


def quantised(weights: Mapping[str, Tensor], fine: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Large matrices as `pack` makes them, all else as it is, ids in few bits; `weights` on the CPU.

    `fine`: how the names of those begin that 4 bits are too few for.
    """
    stored = {}
    for name, value in weights.items():
        if not value.is_floating_point():  # ids
            stored[name] = value.to(torch.uint16 if int(value.max()) < 1 << 16 else torch.int32)
        elif value.dim() != 2 or value.numel() < SMALL:
            stored[name] = value.contiguous()
        else:
            stored[name], stored[name + SCALE] = pack(value, name.startswith(fine))
    return stored


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights from what `quantised` gave."""
    names = [name for name in stored if not name.endswith(SCALE)]
    return {name: unpack(stored[name], stored[name + SCALE]) if name + SCALE in stored else stored[name]
            for name in names}


def origin(module: nn.Module) -> dict[str, Tensor]:
    """The target's weights that a module begins as a copy of, by its own names.

    Training changes them little. Of matrices the change is stored, for which a few bits do.
    """
    return getattr(module, "origin", {})


def plus(weights: Mapping[str, Tensor], others: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """Weights on the CPU, float32 but for ids; to matrices those `others` that bear their names added `times` times."""
    weights = {name: value.detach().cpu() for name, value in weights.items()}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    return {name: value + times * others[name].float().cpu() if value.dim() == 2 and name in others else value
            for name, value in weights.items()}


def packed(module: nn.Module) -> dict[str, Tensor]:
    """What the file of a module holds; the module may say what is to be `fine`."""
    return quantised(plus(module.state_dict(), origin(module), -1), getattr(module, "fine", ()))


def round_trip(module: nn.Module) -> None:
    """Make a module what it will be when it comes back from disk."""
    module.load_state_dict(plus(restored(packed(module)), origin(module), 1))


def save(path: Path, module: nn.Module, card: Card) -> Card:
    """Write a module in one go; the card with its hash."""
    tensors = packed(module)
    card = replace(card, sha256=digest(tensors), relative=bool(origin(module)))
    with destination.replacing(path) as fresh:
        save_file(tensors, fresh, metadata={"card": json.dumps(asdict(card))})
    return card


@dataclass(frozen=True)
class Drafter:
    """What a file holds."""

    name: str
    card: Card
    weights: dict[str, Tensor]  # float32, but for ids; of a `relative` one what training has added

    def into(self, module: nn.Module) -> nn.Module:
        """Load the weights, every one of them and no other, and freeze."""
        try:
            added = origin(module) if self.card.relative else {}
            module.load_state_dict(plus(self.weights, added, 1))
        except RuntimeError as error:
            raise BenchError(f"{self.name}: {str(error).splitlines()[-1].strip()}") from None
        return module.requires_grad_(False)


def shipped(method: str, target: str) -> Path | None:
    """The file of a method that comes with the package for a model's name, if there is one."""
    path = SHIPPED / target / f"{method}.safetensors"
    return path if target in PACKAGED and path.is_file() else None


def source(named: str, method: str, target: Target, option: str = "weights") -> Path | None:
    """The file to load: the `named` one, or the one that comes with the target; None for a target that is random.

    BenchError when there is none: `option` is how the method is told of a file.
    """
    path = Path(named).expanduser() if named else shipped(method, target.name)
    if path is None and not target.random:
        raise BenchError(f"{method} has no drafter for {target.name}: train one (python -m bench train {method} "
                         f"--target {target.name} ...) and name its file with {method}:{option}=FILE")
    return path


def read(path: Path, weights: bool = True) -> tuple[Card, dict[str, Tensor]]:
    """What a file holds, as it is stored; without `weights` the card alone. BenchError when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["card"])
            stored = {name: file.get_tensor(name) for name in file.keys() if weights}  # noqa: SIM118
        return Card(**{**about, "law": Law(**about["law"])}), stored
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path.name}: not a drafter that can be read ({type(error).__name__}: {error})") from None


def load(path: Path, method: str, target: Target) -> Drafter:
    """Read what `save` wrote. BenchError when it is damaged, of another method, or of another target."""
    card, stored = read(path)
    if digest(stored) != card.sha256:
        raise BenchError(f"{path.name} is damaged: its weights have not the hash that its card names")
    if card.method != method:
        raise BenchError(f"{path.name} was trained for {card.method}, not for {method}")
    if card.checksum != identity(target):
        raise BenchError(f"{path.name} was trained for another target ({card.target}, {card.checksum[:12]}; this one "
                         f"is {target.name}, {identity(target)[:12]}): train one for this target")
    return Drafter(path.name, card, restored(stored))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    whole = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        whole.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return whole.hexdigest()
