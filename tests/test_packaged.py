"""The models inside packages: right weights, right layout, right tokenizer. Downloads each once into the cache."""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import logits_of

from bench import zoo
from bench.errors import BenchError
from bench.model import Transformer
from bench.zoo import packaged

pytestmark = pytest.mark.slow
PARAGRAPH = (
    "The Industrial Revolution was the transition from creating goods by hand to using machines. Its start and end are "
    "widely debated by scholars, but the period generally spanned from about 1760 to 1840. According to some, this "
    "turning point in history is responsible for an increase in population, an increase in the standard of living, and "
    "the emergence of the capitalist economy. Machines such as the spinning jenny and the steam engine changed how "
    "people worked, and cities grew quickly around the new factories.")
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends. One "
    "day, she saw a big dog. The dog was very friendly and wanted to play with Lily. They ran and jumped and had a lot "
    "of fun. When it was time to go home, Lily said goodbye to the dog and went home to her mom.")


@pytest.fixture(scope="module")
def smollm2():
    return zoo.load("smollm2-135m")


@pytest.fixture(scope="module")
def stories():
    return zoo.load("stories15m")


def perplexity(model, ids):
    logits = model.logits(torch.tensor([ids]))[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).exp().item()


def with_paired_rows(found):
    """The same weights in the other rotary layout: what loading gives when nobody undoes it."""
    c, weights = found.config, dict(found.weights)
    for name, weight in weights.items():
        if heads := {"q_proj": c.heads, "k_proj": c.kv_heads}.get(name.split(".")[-2]):
            weights[name] = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return Transformer.from_weights(c, weights)


def test_the_default_model_is_what_it_says(smollm2):
    assert (smollm2.config.layers, smollm2.config.hidden, smollm2.config.vocab) == (30, 576, 49152)
    assert smollm2.checksum == packaged.SMOLLM2_GGUF
    assert (smollm2.licence, smollm2.random, smollm2.end_ids) == ("apache-2.0", False, {0, 2})
    assert "dequantised Q4_1" in smollm2.note


def test_the_default_model_reads_a_paragraph_only_in_the_right_rotary_layout(smollm2):
    ids = smollm2.tokenizer.encode(PARAGRAPH)
    assert 9 < perplexity(smollm2.model, ids) < 14
    assert perplexity(with_paired_rows(zoo.read("smollm2-135m")), ids) > 40


@pytest.mark.parametrize(("text", "tokens"), [
    ("\n\n1.", ["ĊĊ", "1", "."]),
    (" 42", ["Ġ", "4", "2"]),
    ("Steps:\n\n1. Mix 250 g.\n2. Wait 10 min.", ["Steps", ":", "ĊĊ", "1", ".", "ĠMix", "Ġ", "2", "5", "0", "Ġg", ".",
                                                "Ċ", "2", ".", "ĠWait", "Ġ", "1", "0", "Ġmin", "."]),
])
def test_the_default_tokenizer_takes_digits_one_by_one(smollm2, text, tokens):
    vocabulary = smollm2.tokenizer.vocabulary()
    assert smollm2.tokenizer.encode(text) == [vocabulary[token] for token in tokens]
    assert smollm2.tokenizer.decode(smollm2.tokenizer.encode(text)) == text


def test_the_default_chat_template_brings_its_own_system_prompt(smollm2):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)


def test_transformers_reads_the_converted_directory_the_same_way(smollm2):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.folder)
    turns = [{"role": "user", "content": "Count to 12."}, {"role": "assistant", "content": "1. one\n\n2. two"},
             {"role": "user", "content": "Go on — bitte!"}]
    ids = smollm2.tokenizer.chat(turns)
    assert ids == theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    expected = logits_of(model, torch.tensor([ids]))
    assert (smollm2.model.logits(torch.tensor([ids])) - expected).abs().max() < 1e-3


def test_a_damaged_cache_is_noticed(smollm2, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(smollm2.folder, tmp_path / smollm2.folder.name))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\x00\x01\x02\x03")
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path))
    with pytest.raises(BenchError, match=r"wrong checksum of .*expected sha256 \w{64}, got \w{64}; delete .* and run"):
        zoo.read("smollm2-135m")


def test_stories_are_read_in_the_right_rotary_layout(stories):
    assert (stories.licence, stories.checksum, stories.config.context) == ("MIT", packaged.STORIES, 256)
    ids = stories.tokenizer.encode(STORY)
    assert perplexity(stories.model, ids) < 4
    assert perplexity(with_paired_rows(zoo.read("stories15m")), ids) > 8


def test_stories_have_llamas_tokenizer_and_no_chat_template(stories):
    # ids of the Llama tokenizer as published with the models of Touvron et al. 2023
    assert stories.tokenizer.encode("Once upon a time") == [1, 9038, 2501, 263, 931]
    assert stories.tokenizer.encode("Hello world") == [1, 15043, 3186]
    assert stories.tokenizer.decode(stories.tokenizer.encode("  a 🙂\nb ")) == "  a 🙂\nb "
    with pytest.raises(BenchError, match="--raw"):
        stories.tokenizer.chat([{"role": "user", "content": "Hi"}])
