"""A decoder-only transformer: Llama, Vicuna, SmolLM2, Mistral, Qwen2 and Qwen3 by their shapes."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cache import Cache
from bench.config import Config, RopeScaling
from bench.errors import BenchError
from bench.product import product
from bench.tree import Structure

KEY_BLOCK, ROW_BLOCK = 512, 4  # a CPU's attention adds up so many keys at once; fewer rows it adds up otherwise

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, queries, keys, values -> attended values


class Adapter(Protocol):
    """Low-rank weights that act on slot rows only."""

    def delta(self, layer: int, name: str, x: Tensor) -> Tensor:
        """What projection `name` ("qkv", "out", "gate_up", "down") of `layer` adds for the rows x [B, m, in]."""


@dataclass
class Hidden:
    """What a forward pass returns."""

    last: Tensor  # [B, rows, hidden], after the final norm: the head's input
    taps: tuple[Tensor, ...] = ()  # [B, rows, hidden] each


class Block(nn.Module):
    """Weights of one layer; q, k and v are one matrix, gate and up another."""

    def __init__(self, config: Config):
        super().__init__()
        c, width = config, (config.heads + 2 * config.kv_heads) * config.head_dim
        self.attention_norm = nn.Parameter(torch.ones(c.hidden))
        self.qkv = nn.Parameter(torch.empty(width, c.hidden))
        self.qkv_bias = nn.Parameter(torch.empty(width)) if c.qkv_bias else None
        self.q_norm = nn.Parameter(torch.ones(c.head_dim)) if c.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(c.head_dim)) if c.qk_norm else None
        self.out = nn.Parameter(torch.empty(c.hidden, c.heads * c.head_dim))
        self.ffn_norm = nn.Parameter(torch.ones(c.hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * c.ffn, c.hidden))
        self.down = nn.Parameter(torch.empty(c.hidden, c.ffn))


class Transformer(nn.Module):
    """Token rows and embedded slot rows in, hidden states out. The head is a call of its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.head = self.embedding if config.tied else nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.listed: Tensor | None = None  # ids of the head's rows, of a draft model that has not all of them
        self.rope = torch.empty(0)

    @staticmethod
    def from_weights(config: Config, weights: Mapping[str, Tensor], device="cpu", dtype=torch.float32) -> "Transformer":
        """Load weights under their Hugging Face names, strictly.

        Raises BenchError on a missing, extra or misshapen one.
        """
        with torch.device("meta"):
            model = Transformer(config)
        sources = dict(hugging_face_names(config))
        expected = {name for names in sources.values() for name in names}
        if odd := sorted(expected ^ set(weights)):
            how = "missing" if odd[0] in expected else "unexpected"
            raise BenchError(f"weights do not fit the model: {odd[0]} is {how}")
        state = {}
        for name, parameter in model.named_parameters():
            value = torch.cat([weights[n].to(device, dtype) for n in sources[name]])
            if value.shape != parameter.shape:
                raise BenchError(f"{sources[name]}: {list(value.shape)}, the config asks for {list(parameter.shape)}")
            state[name] = value
        if config.tied:
            state["head"] = state["embedding"]
        model.load_state_dict(state, assign=True)
        return model.prepare()

    def prepare(self) -> "Transformer":
        """Freeze the weights and build the rotation table."""
        self.requires_grad_(False)
        if self.config.tied:
            self.head = self.embedding
        self.extend_rope(self.config.context)
        return self

    @property
    def weight_bytes(self) -> int:
        """Bytes that one forward reads: every matrix once (the embedding only as the head)."""
        embedding = 0 if self.config.tied else self.embedding.numel()
        return (sum(p.numel() for p in self.parameters()) - embedding) * self.embedding.element_size()

    def extend_rope(self, length: int) -> None:
        """Make the rotation table at least `length` positions long: [length, 2, head_dim / 2] cos and sin."""
        if len(self.rope) < length:
            wide = torch.float64 if self.norm.dtype == torch.float64 else torch.float32
            angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies(self.config))
            self.rope = torch.stack([angles.cos(), angles.sin()], 1).to(self.norm.device, wide)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, adapter: Adapter | None = None,
                slots: int = 0, taps: tuple[int, ...] = ()) -> Hidden:
        """x [B, rows, hidden], positions [B, rows]; the last `slots` rows go through `adapter` as well.

        `taps`, ascending: i is the output of layer i, `layers` that of the final norm.
        """
        rotation = self.rope[positions]  # [B, rows, 2, head_dim / 2]
        tapped = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = self.layer(x, Projection(block, layer, adapter, slots), rotation, attend)
            if layer in taps:
                tapped.append(x)
        last = self.rms(x, self.norm)
        return Hidden(last, (*tapped, last) if len(self.blocks) in taps else tuple(tapped))

    def layer(self, x: Tensor, project: "Projection", rotation: Tensor, attend: Attend) -> Tensor:
        """Attention and feed-forward: [B, rows, hidden] -> the same."""
        x = x + self.attention(x, project, rotation, attend)
        gate, up = project("gate_up", self.rms(x, project.block.ffn_norm)).chunk(2, -1)
        return x + project("down", F.silu(gate) * up)

    def attention(self, x: Tensor, project: "Projection", rotation: Tensor, attend: Attend) -> Tensor:
        """Norm, projections, rotation, attention, output projection: [B, rows, hidden] -> the same."""
        c, block = self.config, project.block
        qkv = project("qkv", self.rms(x, block.attention_norm))
        qkv = qkv.unflatten(-1, (-1, c.head_dim)).transpose(1, 2)  # [B, heads + 2 kv_heads, rows, head_dim]
        qk, v = qkv.split((c.heads + c.kv_heads, c.kv_heads), 1)
        if c.qk_norm:
            q, k = qk.split((c.heads, c.kv_heads), 1)
            qk = torch.cat([self.rms(q, block.q_norm), self.rms(k, block.k_norm)], 1)
        q, k = rotate(qk, rotation).split((c.heads, c.kv_heads), 1)
        attended = attend(project.layer, q, k, v)
        return project("out", attended.transpose(1, 2).flatten(2))

    def rms(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Root-mean-square norm over the last dimension."""
        return F.rms_norm(x, x.shape[-1:], weight, self.config.norm_eps)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, rows] int64 -> [B, rows, hidden]."""
        return F.embedding(tokens, self.embedding)

    def score(self, hidden: Tensor) -> Tensor:
        """The head: [.., hidden] -> logits [.., vocab] float32."""
        return scores(hidden, self.head)

    def logits(self, tokens: Tensor) -> Tensor:
        """Whole sequences, no cache: [B, T] int64 -> [B, T, vocab] float32."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.score(self(self.embed(tokens), positions, causal).last)


def scores(hidden: Tensor, head: Tensor) -> Tensor:
    """[.., hidden] and a head [rows, hidden] -> logits [.., rows] float32 (bf16 ties the two best of 4 % of tokens)."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        flat = torch.mm(hidden.flatten(0, -2), head.T, out_dtype=torch.float32)
        return flat.unflatten(0, hidden.shape[:-1])
    return product(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), head).float()


class Projection:
    """The four matrix products of one layer; slot rows add what the adapter says."""

    def __init__(self, block: Block, layer: int, adapter: Adapter | None, slots: int):
        self.block, self.layer, self.adapter, self.slots = block, layer, adapter, slots

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """x [B, rows, in] -> [B, rows, out]."""
        y = product(x, getattr(self.block, name), self.block.qkv_bias if name == "qkv" else None)
        if self.adapter is None or not self.slots:
            return y
        tokens = x.shape[1] - self.slots
        return torch.cat([y[:, :tokens], y[:, tokens:] + self.adapter.delta(self.layer, name, x[:, tokens:])], 1)


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a whole sequence to itself. [B, heads, T, head_dim]."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attend_tree(cache: Cache, root: Tensor, structure: Structure) -> Attend:
    """Attention of a step's rows: each sees the committed prefix, its ancestors and itself.

    Rows are written to the cache at `root + row`. On a CPU, where reading `root` costs nothing, blocks of keys that
    are not filled yet are not looked at; whole blocks, so that a row keeps its bits whatever is computed beside it.
    """
    rows, end, more = structure.depths.shape[1], cache.capacity, 0
    if root.device.type == "cpu":
        end = min(-(-(int(root.max()) + rows) // KEY_BLOCK) * KEY_BLOCK, end)
        more = -rows % ROW_BLOCK  # rows that nobody reads
    index = root[:, None] + torch.arange(rows, device=root.device)  # [B, rows]
    offset = torch.arange(end, device=root.device) - root[:, None]  # [B, end]: which row lies there
    at = offset.clamp(0, rows - 1)[:, None].expand(-1, rows, -1)
    in_tree = ((offset >= 0) & (offset < rows))[:, None]
    prefix = structure.live[..., None] & (offset < 0)[:, None]
    visible = torch.where(in_tree, structure.ancestors.gather(2, at), prefix)
    mask = torch.zeros_like(visible, dtype=cache.keys.dtype).masked_fill(~visible, -torch.inf)
    mask = F.pad(mask, (0, 0, 0, more)).repeat(1, cache.group, 1)[:, None]  # query heads of one key head become rows

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer, index, k, v)
        q = F.pad(q, (0, 0, 0, more)).unflatten(1, (k.shape[1], cache.group)).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end], mask)
        return out.unflatten(2, (cache.group, rows + more))[:, :, :, :rows].flatten(1, 2)

    return attend


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding, halves layout. x [B, heads, rows, head_dim], rotation [B, rows, 2, head_dim / 2]."""
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    a, b = (half.to(rotation.dtype) for half in x.chunk(2, -1))
    return torch.cat([half.to(x.dtype) for half in (a * cos - b * sin, b * cos + a * sin)], -1)


def frequencies(config: Config) -> Tensor:
    """Rotary frequencies [head_dim / 2] float64, scaled as the model was trained."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    plain = config.rope_theta**-exponents
    scaling = config.rope_scaling
    return plain if scaling is None else scaled(plain, scaling)


def scaled(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.x: long wavelengths stretched, short ones kept, a ramp between; "linear": all stretched."""
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.original_context * plain / (2 * math.pi)  # rotations within the original context
    keep = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def hugging_face_names(config: Config) -> Iterable[tuple[str, list[str]]]:
    """Our parameter -> the Hugging Face tensors that it is made of, in order of concatenation."""
    yield "embedding", ["model.embed_tokens.weight"]
    yield "norm", ["model.norm.weight"]
    if not config.tied:
        yield "head", ["lm_head.weight"]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        yield ours + "attention_norm", [theirs + "input_layernorm.weight"]
        yield ours + "ffn_norm", [theirs + "post_attention_layernorm.weight"]
        yield ours + "qkv", [f"{theirs}self_attn.{p}_proj.weight" for p in "qkv"]
        if config.qkv_bias:
            yield ours + "qkv_bias", [f"{theirs}self_attn.{p}_proj.bias" for p in "qkv"]
        if config.qk_norm:
            yield ours + "q_norm", [theirs + "self_attn.q_norm.weight"]
            yield ours + "k_norm", [theirs + "self_attn.k_norm.weight"]
        yield ours + "out", [theirs + "self_attn.o_proj.weight"]
        yield ours + "gate_up", [f"{theirs}mlp.{p}_proj.weight" for p in ("gate", "up")]
        yield ours + "down", [theirs + "mlp.down_proj.weight"]


def shallow(config: Config, layers: int) -> Config:
    """The same shape with fewer layers: a draft model's."""
    return replace(config, layers=layers)
