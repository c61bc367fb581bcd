"""What a model is before it runs: a shape, weights by name, a tokenizer and where all of it came from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from bench.config import Config

Message = dict[str, str]  # {"role": "user", "content": "..."}


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, behind the begin-of-text token if the model wants one."""

    def decode(self, ids: list[int]) -> str:
        """The text of these ids, without control tokens."""

    def chat(self, messages: list[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant speaks. BenchError without a chat template."""

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""


class Weights(Mapping[str, Tensor]):
    """Tensors by Hugging Face name, each made when it is asked for: no second copy of a model ever exists."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self.makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was found, not yet on its device."""

    config: Config
    weights: Weights
    tokenizer: Tokenizer
    end_ids: frozenset[int]  # every id that ends a text or a turn; may be empty
    sha256: str  # of the weights file; of a list "digest  name" if there are several; "" if random
    licence: str
    note: str = ""  # what a reader of numbers must know, e.g. "dequantised Q4_1"
    random: bool = False  # made-up weights: good for costs and tests, never for text
    folder: Path | None = None  # a Hugging Face layout of the same weights, if there is one


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The size of every tensor of a model, by Hugging Face name."""
    c, q, kv = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (c.hidden,), "post_attention_layernorm.weight": (c.hidden,),
        "self_attn.q_proj.weight": (q, c.hidden), "self_attn.k_proj.weight": (kv, c.hidden),
        "self_attn.v_proj.weight": (kv, c.hidden), "self_attn.o_proj.weight": (c.hidden, q),
        "mlp.gate_proj.weight": (c.ffn, c.hidden), "mlp.up_proj.weight": (c.ffn, c.hidden),
        "mlp.down_proj.weight": (c.hidden, c.ffn)}
    if c.qkv_bias:
        block |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if c.qk_norm:
        block |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    layers = {f"model.layers.{i}.{name}": size for i in range(c.layers) for name, size in block.items()}
    head = {} if c.tied else {"lm_head.weight": (c.vocab, c.hidden)}
    return {"model.embed_tokens.weight": (c.vocab, c.hidden), "model.norm.weight": (c.hidden,)} | layers | head
