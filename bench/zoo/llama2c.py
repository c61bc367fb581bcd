"""Model and tokenizer files of llama2.c (its run.c and export.py: the "version 0" formats), head tied to embedding."""

import math
import struct
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.config import Config
from bench.zoo.chat import TextTokenizer
from bench.zoo.checkpoint import Weights, tensor_shapes
from bench.zoo.gguf_file import halves_from_pairs
from bench.zoo.vocabulary import CONTROL, NORMAL, UNKNOWN, sentencepiece

HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
PARTS = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")  # each for all layers
BYTE = 6  # token type of the GGUF specification
BEGIN, END = 1, 2


def read_config(data: bytes) -> Config:
    """The shape in the header of a model file."""
    hidden, ffn, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(data)
    return Config(vocab=vocab, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
                  head_dim=hidden // heads, ffn=ffn, context=context, tied=True)


def read_weights(data: bytes, config: Config) -> Weights:
    """Float32 tensors behind the header, in the file's order; q and k rows put into Hugging Face's rotary layout."""
    names = [f"model.layers.{layer}.{part}.weight" for part in PARTS for layer in range(config.layers)]
    sizes, makers, at = tensor_shapes(config), {}, HEADER.size
    for name in ["model.embed_tokens.weight", *names, "model.norm.weight"]:
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2], 0)
        makers[name] = partial(tensor_at, data, at, sizes[name], heads)
        at += 4 * math.prod(sizes[name])
    return Weights(makers)


def tensor_at(data: bytes, offset: int, shape: tuple[int, ...], heads: int) -> Tensor:
    """One float32 tensor; `heads` are in the paired rotary layout (0: none)."""
    values = np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape)
    weight = torch.from_numpy(values.copy())
    return halves_from_pairs(weight, heads) if heads else weight


def read_tokenizer(data: bytes, vocab: int) -> TextTokenizer:
    """Llama's SentencePiece vocabulary: after one int, `vocab` times (score float32, length int32, bytes)."""
    tokens, scores, at = [], [], 4
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", data, at)
        tokens.append(data[at + 8:at + 8 + length])
        scores.append(score)
        at += 8 + length
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]  # the file decorates or decodes these
    pieces += [token.decode().replace(" ", "▁") for token in tokens[len(pieces):]]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (vocab - 259)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return TextTokenizer(sentencepiece(pieces, kinds, scores), None, special, [BEGIN])
