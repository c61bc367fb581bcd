"""A .gguf file as a checkpoint: metadata -> Config, tensors dequantised one by one, tokenizer rebuilt."""

from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from bench.config import Config, RopeScaling
from bench.errors import BenchError
from bench.model import scaled
from bench.zoo.chat import TextTokenizer
from bench.zoo.checkpoint import Checkpoint, Weights
from bench.zoo.convert import require_supported
from bench.zoo.fetch import sha256
from bench.zoo.vocabulary import CONTROL, byte_level, sentencepiece

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>")  # of supported families


class Metadata:
    """Key/value pairs of a GGUF file; keys that begin with a dot belong to its architecture."""

    def __init__(self, reader: gguf.GGUFReader):
        self.values = {key: field.contents() for key, field in reader.fields.items()}
        self.architecture = self.values.get("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default."""
        return self.values.get(f"{self.architecture}{key}" if key.startswith(".") else key, default)

    def need(self, key: str) -> Any:
        """The value. BenchError without it."""
        if (value := self.get(key)) is None:
            raise BenchError(f"the GGUF file lacks {key.lstrip('.')!r}")
        return value


def read_gguf(path: Path) -> Checkpoint:
    """Everything in a GGUF file of a supported architecture; tensors are dequantised when they are asked for."""
    reader = open_gguf(path)
    metadata, tensors = Metadata(reader), {tensor.name: tensor for tensor in reader.tensors}
    require_supported(metadata.architecture, str(path))
    config = read_config(metadata, tensors)
    makers = {}
    for name, tensor in tensors.items():
        if name != "rope_freqs.weight":
            makers[huggingface_name(name)] = partial(dequantised, tensor, paired_heads(name, metadata, config))
    formats = sorted({tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1})
    return Checkpoint(config, Weights(makers), read_tokenizer(metadata), end_ids(metadata), sha256(path),
                      metadata.get("general.license", "unknown"), f"dequantised {', '.join(formats)}")


def open_gguf(path: Path) -> gguf.GGUFReader:
    """A reader that maps the file into memory. BenchError if it is no whole GGUF file."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise BenchError(f"{path} is not a readable GGUF file ({error})") from error
    if (parts := reader.get_field("split.count")) and parts.contents() > 1:
        raise BenchError(f"{path} is one part of a split model: join the parts first (llama-gguf-split --merge)")
    return reader


def huggingface_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight. BenchError for tensors that no model here has."""
    *block, part, kind = name.split(".")
    if part not in NAMES or (block and block[0] != "blk"):
        raise BenchError(f"the GGUF file's tensor {name!r} belongs to no supported architecture")
    return ".".join(([f"model.layers.{block[1]}"] if block else []) + [NAMES[part], kind])


def paired_heads(name: str, metadata: Metadata, config: Config) -> int:
    """Heads of a matrix that the file keeps in the paired rotary layout: q and k of Llama and Mistral; else 0."""
    if metadata.architecture not in ("llama", "mistral"):
        return 0
    return {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2], 0)


def dequantised(tensor: gguf.ReaderTensor, heads: int) -> Tensor:
    """float32 [out, in] (or [out]) of a tensor, rows put back into halves if `heads` are paired."""
    try:
        weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    except NotImplementedError as error:
        raise BenchError(f"{tensor.name}: format {tensor.tensor_type.name} cannot be dequantised") from error
    return halves_from_pairs(weight, heads) if heads else weight


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k matrix from the rotary layout that turns neighbours (2i, 2i+1), as Meta, llama.cpp and llama2.c
    have it, to the one that turns (i, i + head_dim / 2), as Hugging Face has it. [heads * head_dim, ...] -> the same.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def read_config(metadata: Metadata, tensors: dict[str, gguf.ReaderTensor]) -> Config:
    """The shape, from metadata and from which tensors there are. BenchError for arithmetic that we do not have."""
    hidden, heads = metadata.need(".embedding_length"), metadata.need(".attention.head_count")
    head_dim = metadata.get(".attention.key_length") or hidden // heads
    if metadata.get(".rope.dimension_count", head_dim) != head_dim:
        raise BenchError("the GGUF file rotates only part of each head: not supported")
    context = metadata.need(".context_length")
    return Config(
        vocab=len(metadata.need("tokenizer.ggml.tokens")), hidden=hidden, layers=metadata.need(".block_count"),
        heads=heads, kv_heads=metadata.get(".attention.head_count_kv", heads), head_dim=head_dim,
        ffn=metadata.need(".feed_forward_length"),
        context=min(context, metadata.get(".attention.sliding_window") or context),
        norm_eps=shortest(metadata.need(".attention.layer_norm_rms_epsilon")),
        rope_theta=shortest(metadata.get(".rope.freq_base", 10000.0)),
        rope_scaling=rope_scaling(metadata, tensors, head_dim), qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors, tied="output.weight" not in tensors)


def shortest(value: float) -> float:
    """The decimal number that was meant by a float32: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def rope_scaling(metadata: Metadata, tensors: dict[str, gguf.ReaderTensor], head_dim: int) -> RopeScaling | None:
    """Linear scaling from metadata; that of Llama 3.x, which GGUF keeps as a tensor of divisors, recognised by it."""
    kind = metadata.get(".rope.scaling.type", "none")
    factor = metadata.get(".rope.scaling.factor", metadata.get(".rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise BenchError(f"the GGUF file's rotary scaling {kind!r} is not supported; supported are linear and llama3")
    if "rope_freqs.weight" not in tensors:
        return RopeScaling("linear", factor) if factor != 1 else None
    divisors = torch.from_numpy(tensors["rope_freqs.weight"].data.copy()).double()
    guess = RopeScaling("llama3", round(float(divisors.max()), 3))  # 8 in Llama 3.1, 32 in 3.2; the rest never differed
    plain = metadata.get(".rope.freq_base", 10000.0) ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    if not torch.allclose(plain / scaled(plain, guess), divisors, rtol=1e-4):
        raise BenchError("the GGUF file's rope_freqs are not those of a Llama 3 model: not supported")
    return guess


def read_tokenizer(metadata: Metadata) -> TextTokenizer:
    """The file's tokenizer, rebuilt. BenchError for kinds other than byte-level BPE and SentencePiece BPE."""
    model, tokens = metadata.need("tokenizer.ggml.model"), metadata.need("tokenizer.ggml.tokens")
    kinds, pre = metadata.need("tokenizer.ggml.token_type"), metadata.get("tokenizer.ggml.pre", "missing")
    if model == "gpt2":
        backend = byte_level(tokens, kinds, metadata.need("tokenizer.ggml.merges"), pre)
    elif model == "llama":
        backend = sentencepiece(tokens, kinds, metadata.need("tokenizer.ggml.scores"),
                                metadata.get("tokenizer.ggml.add_space_prefix", True))
    else:
        raise BenchError(f"the GGUF file's tokenizer {model!r} is not supported; supported are gpt2 and llama")
    special = {f"{key}_token": tokens[i] for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"))
               if (i := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None}
    adds = metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in ("llama-bpe", "llama3", "llama-v3"))
    begin = [metadata.need("tokenizer.ggml.bos_token_id")] if adds else []
    return TextTokenizer(backend, metadata.get("tokenizer.chat_template"), special, begin)


def end_ids(metadata: Metadata) -> frozenset[int]:
    """Ids that end a text: those that the file names, and control tokens that do so in the supported families."""
    named = {metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")} - {None}
    tokens, kinds = metadata.need("tokenizer.ggml.tokens"), metadata.need("tokenizer.ggml.token_type")
    return frozenset(named | {i for i, token in enumerate(tokens) if token in ENDS and kinds[i] == CONTROL})
