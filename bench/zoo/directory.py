"""Models in Hugging Face layout: reading any, and writing the ones that were converted."""

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.config import Config
from bench.errors import BenchError
from bench.zoo.chat import TextTokenizer, read_json, read_tokenizer
from bench.zoo.checkpoint import Checkpoint, Weights
from bench.zoo.convert import from_huggingface, to_huggingface
from bench.zoo.fetch import sha256, verify

SOURCE = "source.json"  # only in directories that we converted: file digests, the original's digest, licence, note


def read_directory(folder: Path) -> Checkpoint:
    """Config, weights (mapped into memory), tokenizer. BenchError naming the file that is missing, odd or broken."""
    raw = read_json(folder / "config.json")
    config = from_huggingface(raw, str(folder / "config.json"))
    files, tokenizer = weight_files(folder), read_tokenizer(folder)
    if (folder / SOURCE).exists():
        source = read_json(folder / SOURCE)
        for name, digest in source["files"].items():
            verify(folder / name, digest, f"delete {folder} and run again")
    else:
        source = {"sha256": digest_of(files), "licence": licence_of(folder), "note": ""}
    return Checkpoint(config, open_weights(files, config), tokenizer, end_ids(folder, raw, tokenizer),
                      source["sha256"], source["licence"], source["note"], folder=folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files: those of the index if there is one. BenchError if one is missing."""
    index = folder / "model.safetensors.index.json"
    names = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    files = [folder / name for name in sorted(names)]
    for file in files:
        if not file.exists():
            other = next((f"; {f.name} is there, but only safetensors are read" for f in folder.glob("*.bin")), "")
            raise BenchError(f"{file} is missing{other}")
    return files


def open_weights(files: list[Path], config: Config) -> Weights:
    """Tensors of all files, read when they are asked for. Leaves out what a model recomputes or ties."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        try:
            tensors = safe_open(file, "pt")
        except (SafetensorError, OSError) as error:
            raise BenchError(f"{file} is not a whole safetensors file ({error}): fetch it again") from error
        makers |= {name: partial(tensors.get_tensor, name) for name in tensors.keys()}  # noqa: SIM118
    skip = ["lm_head.weight"] if config.tied else []
    skip += [name for name in makers if name.endswith("rotary_emb.inv_freq")]  # saved by old versions of transformers
    return Weights({name: maker for name, maker in makers.items() if name not in skip})


def digest_of(files: list[Path]) -> str:
    """sha256 of the one file; of the lines "digest  name" if there are several."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, files))
    listing = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return digests[0] if len(files) == 1 else hashlib.sha256(listing.encode()).hexdigest()


def licence_of(folder: Path) -> str:
    """The `license:` of the model card's front matter, or "unknown"."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license:\s*(\S+)", text)
    return found.group(1) if found else "unknown"


def end_ids(folder: Path, raw: dict[str, Any], tokenizer: TextTokenizer) -> frozenset[int]:
    """Every id that generation_config.json, config.json or the tokenizer calls the end of a text."""
    generation = folder / "generation_config.json"
    found = [raw.get("eos_token_id"), read_json(generation).get("eos_token_id") if generation.exists() else None,
             tokenizer.backend.token_to_id(tokenizer.special.get("eos_token", ""))]
    return frozenset(i for entry in found if entry is not None for i in (entry if isinstance(entry, list) else [entry]))


def write_directory(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """A converted model, its matrices in `dtype`, in a layout that `read_directory` and transformers read."""
    tensors = ((name, checkpoint.weights[name]) for name in checkpoint.weights)
    weights = {name: tensor.to(dtype) if tensor.dim() > 1 else tensor for name, tensor in tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", to_huggingface(checkpoint.config))
    write_json(folder / "generation_config.json", {"eos_token_id": sorted(checkpoint.end_ids)})
    if isinstance(checkpoint.tokenizer, TextTokenizer):
        checkpoint.tokenizer.save(folder)
    files = {file.name: sha256(file) for file in folder.glob("*")}
    write_json(folder / SOURCE, {"files": files, "sha256": checkpoint.sha256, "licence": checkpoint.licence,
                                 "note": checkpoint.note})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """One JSON object."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
