"""Memory and energy: what is counted, and a method alone in its process."""

import json

import pytest
import tiny
import torch

from bench import consumption, cost, suite
from bench.__main__ import main
from bench.consumption import Meter, copied_bytes_per_s
from bench.contents import read_object
from bench.cost import Account, read_bytes
from bench.errors import BenchError
from bench.loop import Raw
from bench.noise import NoiseKey
from bench.sequences import Prompt, Sequences

CPU = torch.device("cpu")


def test_the_meter_sees_memory_that_was_given_back():
    meter = Meter(CPU)
    before, size = meter.peak_bytes(), 400 << 20
    torch.ones(before + size, dtype=torch.uint8)  # more than the process ever had
    assert meter.peak_bytes() >= before + size
    meter.start()
    assert meter.energy_mj() is None


@pytest.mark.parametrize(("seen", "energy"), [
    ((7000, 7900), 900),  # mJ, as the driver counts
    ((7000, 7000), None), ((None, 7900), None), ((7000, None), None)])
def test_energy_is_what_the_driver_counted_in_between(monkeypatch, seen, energy):
    """Virtual machines often tell nothing, at times not even always."""
    readings = iter(seen)

    def tell(card):
        if (reading := next(readings)) is None:
            raise consumption.pynvml.NVMLError(consumption.pynvml.NVML_ERROR_NOT_SUPPORTED)
        return reading

    monkeypatch.setattr(consumption.pynvml, "nvmlDeviceGetTotalEnergyConsumption", tell)
    meter = Meter(CPU)
    meter.card = "a card"
    meter.start()
    assert meter.energy_mj() == energy


def test_copy_bandwidth_is_plausible():
    assert 1e8 < copied_bytes_per_s(CPU) < 1e13


def test_what_steps_must_read():
    """Weights at every step; of the cache what is filled: prompt and half of the answer, on the average."""
    model = tiny.transformer()
    sequences = Sequences(model, 2, context=20, widest=4)
    prompts = [Prompt([1] * length, NoiseKey(0, length)) for length in (3, 5)]
    raw = Raw([[1] * 4, [1] * 2], [], [], torch.zeros(0), [1] * 4, {}, [0.0] * 4, 0.0, 0.0)
    c = model.config
    row = 2 * c.layers * c.kv_heads * c.head_dim * 8  # keys and values, float64
    weights = sum(p.numel() for p in model.parameters()) - c.vocab * c.hidden  # the embedding is looked up
    assert read_bytes(sequences, prompts, raw) == 4 * (weights * 8 + (3 + 2 + 5 + 1) * row)
    assert Account(steps_s=2.0, read_bytes=30.0).share(60.0) == 0.25


def test_each_method_has_its_own_share(monkeypatch, tmp_path):
    """In this process, without waiting: a draft model is counted, prompt lookup has nothing."""
    monkeypatch.setattr(cost, "in_a_process", cost.alone)
    monkeypatch.setattr(cost, "copied_bytes_per_s", lambda device: 1e10)  # measured in a test of its own
    draft = "draft_model:draft=[tiny:seed=1]:k=2"
    assert main(["cost", "--suite", "smoke", "--methods", f"prompt_lookup:k=3,{draft}", "--device", "cpu", "--batch",
                 "4", "--seconds", "0.05", "--max-new-tokens", "6", "--out", str(tmp_path)]) == 0
    found = read_object(tmp_path / "cost.json")
    assert list(found) == ["autoregressive", "prompt_lookup:k=3", draft]
    assert found["autoregressive"]["own_memory_mib"] == found["prompt_lookup:k=3"]["own_memory_mib"] == 0
    assert found[draft]["own_memory_mib"] > 0.5
    for entry in found.values():
        assert entry["energy_mj_per_token"] is None
        assert entry["tokens"] >= 4 and entry["seconds"] >= 0.05
        assert entry["roofline_share"] > 0


def test_batches_are_full_and_go_on():
    settings = suite.RunSettings(target="tiny", limit=3, methods=(), batch=2, device="cpu", dtype="float32")
    questions = cost.prompts.load(None, 3)
    batches = cost.first_turns(settings, questions, cost.Prompter(cost.zoo.load("tiny").tokenizer, 8), 2)
    seen = [prompt.noise.question_id for _ in range(3) for prompt in next(batches)]
    assert seen[:3] == seen[3:] and set(seen) == {question.question_id for question in questions}


@pytest.mark.slow
def test_alone_means_a_process_of_its_own():
    """What goes wrong there is told here."""
    settings = suite.RunSettings(target="nowhere", methods=(), device="cpu", dtype="float32")
    with pytest.raises(BenchError, match="no model 'nowhere'"):
        cost.in_a_process(settings, "autoregressive", 1.0)


def test_a_run_is_measured_as_it_was_asked_for(monkeypatch, tmp_path):
    asked = suite.chosen({"suite": "smoke", "device": "cpu", "limit": 2, "temperature": 0.5})
    (tmp_path / "provenance.json").write_text(json.dumps({"settings": asked.published()}))
    seen = []
    monkeypatch.setattr(cost, "in_a_process", lambda settings, label, seconds: seen.append((settings, label)) or
                        cost.Cost(1.0, 0.0, 2.0, 0.5, 10, seconds))
    assert main(["cost", str(tmp_path)]) == 0
    assert [(s.temperature, s.limit, s.target) for s, _ in seen] == [(0.5, 2, "tiny")] * len(seen)
    assert main(["cost", str(tmp_path), "--limit", "1"]) == 0  # fewer of its questions
    assert [(s.temperature, s.limit) for s, _ in seen[len(seen) // 2 :]] == [(0.5, 1)] * (len(seen) // 2)
    assert next(s.methods for s, _ in seen) == ()
    assert {label for _, label in seen} == set(json.loads((tmp_path / "cost.json").read_text()))


def test_ctrl_c_keeps_what_was_measured(monkeypatch, tmp_path):
    def once(settings, label, seconds):
        if label != "autoregressive":
            raise KeyboardInterrupt
        return cost.Cost(1.0, 0.0, None, 0.5, 10, seconds)

    monkeypatch.setattr(cost, "in_a_process", once)
    assert main(["cost", "--suite", "smoke", "--device", "cpu", "--out", str(tmp_path)]) == 130
    assert list(json.loads((tmp_path / "cost.json").read_text())) == ["autoregressive"]


@pytest.mark.parametrize("flags", ["--repeats 2", "--part 1/2", "--seconds 0", "nowhere"])
def test_bad_input(capsys, flags):
    assert main(["cost", "--suite", "smoke", *flags.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
