"""Our forward against transformers', on random checkpoints of every architecture, from both kinds of file."""

import json
from dataclasses import replace
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from checkpoints import CASES, logits_of, make, save
from tokenizers.pre_tokenizers import ByteLevel

from bench import zoo
from bench.config import RopeScaling
from bench.errors import BenchError
from bench.model import Transformer
from bench.zoo.convert import from_huggingface, to_huggingface
from bench.zoo.gguf_file import NAMES
from bench.zoo.synthetic import KINDS, SHAPES

F32 = gguf.GGMLQuantizationType.F32
IDS = torch.randint(3, 261, (2, 80), generator=torch.Generator().manual_seed(1))
# One setting per architecture whose loss must show, or the comparison with transformers says nothing.
LOSSES = {
    "llama": {"rope_theta": 5000.0}, "llama tied, as many keys as heads": {"norm_eps": 1e-2},
    "llama 3": {"rope_scaling": None}, "llama linear": {"rope_scaling": None}, "mistral": {"rope_theta": 5000.0},
    "qwen2": {"rope_theta": 10000.0}, "qwen2 tied": {"norm_eps": 1e-2}, "qwen3": {"norm_eps": 1e-2},
}


def difference(found, expected, **changes):
    model = Transformer.from_weights(replace(found.config, **changes), found.weights, "cpu", torch.float32)
    return (model.logits(IDS) - expected).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, tmp_path):
    reference = make(case)
    expected = logits_of(reference, IDS)
    found = zoo.read(str(save(reference, tmp_path)))
    assert expected.std() >= 1
    assert difference(found, expected) < 1e-4
    assert difference(found, expected, **LOSSES[case]) > 1e-2


@pytest.mark.parametrize("case", ["qwen2", "qwen3"])
def test_biases_and_key_norms_matter(case, tmp_path):
    reference = make(case)
    expected = logits_of(reference, IDS)
    for name, p in reference.named_parameters():
        if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
            p.data.fill_(1.0 if "norm" in name else 0.0)
    assert difference(zoo.read(str(save(reference, tmp_path))), expected) > 1e-2


def test_shards_are_read_through_their_index(tmp_path):
    reference = make("qwen2")
    found = zoo.read(str(save(reference, tmp_path, max_shard_size="100KB")))
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert difference(found, logits_of(reference, IDS)) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_configs_of_older_transformers_say_the_same(case, tmp_path):
    folder = save(make(case), tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    new = from_huggingface(raw, "new")
    settings = raw.pop("rope_parameters")
    raw["rope_theta"] = settings.pop("rope_theta")
    kind = settings.pop("rope_type")
    raw["rope_scaling"] = None if kind == "default" else {"type": kind, **settings}
    assert from_huggingface(raw, "old") == new


@pytest.mark.parametrize("config", [*KINDS.values(), *SHAPES.values()])
def test_converting_a_shape_to_hugging_face_and_back_loses_nothing(config):
    assert from_huggingface(to_huggingface(config), "config") == config


def minimal(kind="llama", **more):
    return {"model_type": kind, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 4096, **more}


@pytest.mark.parametrize(("raw", "named"), [
    (minimal("gemma2"), "gemma2.*supported are llama, mistral, qwen2, qwen3"),
    (minimal(attention_bias=True), "attention_bias"),
    (minimal("qwen3", attention_bias=True), "attention_bias"),
    (minimal(mlp_bias=True), "mlp_bias"),
    (minimal(hidden_act="gelu"), "hidden_act"),
    (minimal(partial_rotary_factor=0.5), "partial_rotary_factor"),
    (minimal(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    (minimal(quantization_config={"quant_method": "gptq"}), "quantization_config"),
    (minimal(rope_scaling={"type": "yarn", "factor": 4.0}), "yarn"),
    (minimal(layer_types=["linear_attention"]), "layer_types"),
    ({k: v for k, v in minimal().items() if k != "hidden_size"}, "hidden_size"),
])
def test_what_the_forward_cannot_do_is_refused(raw, named):
    with pytest.raises(BenchError, match=named):
        from_huggingface(raw, "config.json")


@pytest.mark.parametrize(("raw", "context"), [
    (minimal("mistral", sliding_window=512), 512),
    (minimal("mistral", sliding_window=None), 4096),
    (minimal("mistral", max_position_embeddings=32768), 4096),  # transformers' default window
    (minimal("qwen2", sliding_window=512, use_sliding_window=False), 4096),
    (minimal("qwen2", sliding_window=512, use_sliding_window=True), 512),
    (minimal("qwen3", sliding_window=512, layer_types=["full_attention", "sliding_attention"]), 512),
])
def test_the_context_ends_where_a_sliding_window_would_begin(raw, context):
    assert from_huggingface(raw, "config.json").context == context


def write_gguf(path, reference, arch, number_format=F32, freqs=None, tokenizer=None):
    """A file as llama.cpp's converter writes it: q and k rows of a llama in the paired rotary layout."""
    c, writer = reference.config, gguf.GGUFWriter(path, arch)
    add_shape(writer, c)
    (tokenizer or byte_level)(writer, c.vocab_size)
    for name, p in reference.state_dict().items():
        if not (name == "lm_head.weight" and c.tie_word_embeddings):
            add_weight(writer, c, name, p, number_format if p.dim() > 1 else F32)
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", freqs)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def add_shape(writer, c):
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_key_length(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)


def add_weight(writer, c, name, p, number_format):
    bare = name.replace("model.layers.", "blk.").split(".")
    block = bare[:2] if bare[0] == "blk" else []
    part = {theirs: ours for ours, theirs in NAMES.items()}[".".join(bare[len(block):-1])]
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(part)
    if heads and writer.arch == "llama":
        p = p.reshape(heads, 2, -1, *p.shape[1:]).swapaxes(1, 2).reshape(p.shape)
    writer.add_tensor(".".join([*block, part, bare[-1]]), gguf.quantize(p.numpy(), number_format),
                      raw_dtype=number_format)


def byte_level(writer, vocab, pre="qwen2"):
    """Bytes, two merges, and as many idle tokens as the vocabulary needs."""
    tokens = ["<s>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "Ġa", "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"<idle {i}>" for i in range(vocab - len(tokens)))])
    writer.add_token_types([3, 3] + [1] * (vocab - 2))
    writer.add_token_merges(["Ġ a", "h e"])
    writer.add_eos_token_id(0)


def sentencepiece(writer, vocab):
    """Llama 2's kind: three special tokens, bytes, pieces with scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"<idle {i}>" for i in range(vocab - len(tokens)))])
    writer.add_token_scores([-float(i) for i in range(vocab)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ bos_token }}{{ messages[0]['content'] }}")


@pytest.mark.parametrize(("case", "arch"), [("llama", "llama"), ("llama tied, as many keys as heads", "llama"),
                                            ("qwen2", "qwen2"), ("qwen2 tied", "qwen2"), ("qwen3", "qwen3")])
def test_gguf_files_give_the_same_logits(case, arch, tmp_path):
    reference = make(case)
    found = zoo.read(str(write_gguf(tmp_path / "model.gguf", reference, arch)))
    assert found.end_ids == {0, 1}
    assert difference(found, logits_of(reference, IDS)) < 1e-4


@pytest.mark.parametrize("number_format", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0,
                                           gguf.GGMLQuantizationType.BF16])
def test_quantised_gguf_files_hold_the_dequantised_weights(number_format, tmp_path):
    reference = make("qwen2")
    found = zoo.read(str(write_gguf(tmp_path / "model.gguf", reference, "qwen2", number_format)))
    for p in (p for p in reference.parameters() if p.dim() > 1):
        p.data = torch.from_numpy(gguf.dequantize(gguf.quantize(p.detach().numpy(), number_format), number_format))
    assert difference(found, logits_of(reference, IDS)) < 1e-4
    assert number_format.name in found.note


def test_the_rotary_scaling_of_a_llama_3_gguf_is_recognised_by_its_divisors(tmp_path):
    case = make("llama")
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    wavelengths = 2 * np.pi / plain
    ramp = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    divisors = (1 / (ramp + (1 - ramp) / 8.0)).astype(np.float32)
    found = zoo.read(str(write_gguf(tmp_path / "a.gguf", case, "llama", freqs=divisors)))
    assert found.config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    with pytest.raises(BenchError, match="rope_freqs"):
        zoo.read(str(write_gguf(tmp_path / "b.gguf", case, "llama", freqs=divisors[::-1].copy())))


def test_odd_gguf_files_are_refused_in_one_line(tmp_path):
    reference = make("llama")
    with pytest.raises(BenchError, match=r"gpt2.*supported are llama"):
        zoo.read(str(write_gguf(tmp_path / "a.gguf", reference, "gpt2")))
    with pytest.raises(BenchError, match="pre-tokenizer 'tekken' is not known"):
        zoo.read(str(write_gguf(tmp_path / "b.gguf", reference, "llama", tokenizer=partial(byte_level, pre="tekken"))))
    whole = write_gguf(tmp_path / "c.gguf", reference, "llama").read_bytes()
    (tmp_path / "c.gguf").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(BenchError, match=r"c.gguf is not a readable GGUF file"):
        zoo.read(str(tmp_path / "c.gguf"))
    (tmp_path / "d.gguf").write_bytes(b"not a model at all, but long enough to have a header")
    with pytest.raises(BenchError, match=r"d.gguf is not a readable GGUF file"):
        zoo.read(str(tmp_path / "d.gguf"))


def test_gguf_files_bring_their_tokenizers(tmp_path):
    reference, question = make("llama"), [{"role": "user", "content": "a"}]
    found = zoo.read(str(write_gguf(tmp_path / "a.gguf", reference, "llama", tokenizer=sentencepiece)))
    assert found.end_ids == {2}
    assert found.tokenizer.encode("a aé") == [1, 261, 261, 3 + 0xC3, 3 + 0xA9]  # <s> ▁a ▁a and two bytes
    assert found.tokenizer.decode([1, 261, 261, 3 + 0xC3, 3 + 0xA9]) == "a aé"
    assert found.tokenizer.chat(question) == [1, 261]
    found = zoo.read(str(write_gguf(tmp_path / "b.gguf", reference, "llama")))
    assert found.tokenizer.encode(" ahe<|im_end|>") == [258, 259, 1]
    with pytest.raises(BenchError, match="--raw"):
        found.tokenizer.chat(question)
