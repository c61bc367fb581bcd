"""Models without training: published shapes for cost measurements, and tiny ones for tests."""

import math
import zlib
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bench.config import Config, RopeScaling
from bench.errors import BenchError
from bench.zoo.checkpoint import Checkpoint, Message, Weights, tensor_shapes

SHAPES = {
    # Touvron et al. 2023, arXiv 2307.09288, and the released config.json
    "llama-7b": Config(vocab=32000, hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn=11008,
                       context=4096),
    # Grattafiori et al. 2024, arXiv 2407.21783, table 3, and the released config.json (3.1)
    "llama-8b": Config(vocab=128256, hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14336,
                       context=131072, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0)),
    # Ben Allal et al. 2025, arXiv 2502.02737, and the released config.json
    "smollm2-1.7b": Config(vocab=49152, hidden=2048, layers=24, heads=32, kv_heads=32, head_dim=64, ffn=8192,
                           context=8192, rope_theta=130000.0, tied=True),
}
TINY = Config(vocab=264, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, context=4096)
KINDS = {
    "llama": TINY,
    "vicuna": replace(TINY, kv_heads=4),
    "llama3": replace(TINY, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0, original_context=64)),
    "qwen2": replace(TINY, qkv_bias=True, tied=True, norm_eps=1e-6),
    "qwen3": replace(TINY, qk_norm=True, head_dim=32, norm_eps=1e-6),
}
GAIN = 1.2  # of the other matrices: below 1 texts become one token for ever, above 1.5 nothing ever repeats
LOGIT_SCALE = 2.0  # about the logits' standard deviation: a flat law would let any mistake pass


def shape(name: str, device: str | torch.device, dtype: torch.dtype) -> Checkpoint:
    """`shape:NAME`: random weights of a published shape, made on `device` in `dtype`. BenchError for unknown names."""
    if name not in SHAPES:
        raise BenchError(f"unknown shape {name!r}; there are {', '.join(SHAPES)}")
    config = SHAPES[name]
    return Checkpoint(config, random_weights(config, 0, device, dtype), HashTokenizer(config.vocab), frozenset(), "",
                      "none", "random weights: cost only", random=True)


def tiny(options: str) -> Checkpoint:
    """`tiny:seed=3,kind=qwen2,layers=1`: small random weights, the same on every device. BenchError for odd options."""
    given = dict(option.partition("=")[::2] for option in options.split(",") if option)
    kind, seed, layers = given.pop("kind", "llama"), given.pop("seed", "0"), given.pop("layers", "2")
    if given or kind not in KINDS or not (seed.isdecimal() and layers.isdecimal() and int(layers)):
        raise BenchError(f"tiny:{options}: options are seed=N, layers=N, kind={'|'.join(KINDS)}, with commas between")
    config = replace(KINDS[kind], layers=int(layers))
    return Checkpoint(config, random_weights(config, int(seed), "cpu", torch.float32), ByteTokenizer(),
                      frozenset({ByteTokenizer.END}), "", "none", "random weights: tests only", random=True)


def random_weights(config: Config, seed: int, device: str | torch.device, dtype: torch.dtype) -> Weights:
    """Normal weights that keep activations near one; each tensor's numbers depend on the seed and its name alone."""
    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        values = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if len(shape) == 1:
            return values.mul_(0.2).add_(0 if name.endswith("bias") else 1)
        head = name == "lm_head.weight" or (config.tied and name == "model.embed_tokens.weight")
        scale = LOGIT_SCALE if head else GAIN
        return values if "embed" in name and not head else values.mul_(scale / math.sqrt(shape[1]))

    return Weights({name: partial(make, name, shape) for name, shape in tensor_shapes(config).items()})


class ByteTokenizer:
    """One id per byte of UTF-8, and five control ids; the chat template is a role's id, the text, the end id."""

    BEGIN, END = 256, 257
    ROLES: ClassVar[dict[str, int]] = {"system": 258, "user": 259, "assistant": 260}

    def encode(self, text: str) -> list[int]:
        """The begin id and the text's bytes."""
        return [self.BEGIN, *text.encode()]

    def decode(self, ids: list[int]) -> str:
        """The bytes among the ids as text; what is no UTF-8 becomes a replacement character."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def chat(self, messages: list[Message]) -> list[int]:
        """Every message between its role's id and the end id, then the assistant's id."""
        turns = [[self.ROLES[m["role"]], *m["content"].encode(), self.END] for m in messages]
        return [self.BEGIN, *(i for turn in turns for i in turn), self.ROLES["assistant"]]

    def vocabulary(self) -> dict[str, int]:
        """Bytes as characters of Latin-1, control ids by name."""
        return {chr(i): i for i in range(256)} | {"<begin>": self.BEGIN, "<end>": self.END} | self.ROLES


class HashTokenizer:
    """A stand-in where only costs count: every four characters get some id, and no id means anything."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def encode(self, text: str) -> list[int]:
        """As many ids as a real tokenizer gives for English text, about."""
        return [zlib.crc32(text[i:i + 4].encode()) % self.vocab for i in range(0, len(text), 4)]

    def decode(self, ids: list[int]) -> str:
        """The ids as numbers."""
        return " ".join(map(str, ids))

    def chat(self, messages: list[Message]) -> list[int]:
        """Ids of all messages together."""
        return self.encode("\n".join(message["content"] for message in messages) + "\n")

    def vocabulary(self) -> dict[str, int]:
        """Empty: nothing here is a word."""
        return {}
