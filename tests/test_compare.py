"""The regression gate: what it finds, what it refuses, what it says."""

import json
from dataclasses import replace

import pytest
import synthetic
from synthetic import Plan, Shape

from bench.compare import compare
from bench.errors import BenchError
from bench.record import BASELINE, FILE

PLANS = (Plan(BASELINE), Plan("m", accept=0.6, depth=4, cost=1.2))
SHAPE = Shape(questions=40, repeats=2, tokens=24, noise=0.02)


def write(directory, records, **provenance):
    directory.mkdir()
    (directory / FILE).write_text("".join(record.to_json() + "\n" for record in records))
    (directory / "provenance.json").write_text(json.dumps(synthetic.PROVENANCE | provenance))
    return directory


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "old", synthetic.records(PLANS, SHAPE))


def again(slower=1.0, shape=SHAPE):
    """The same run measured anew: other noise, and the method slower by a factor."""
    records = synthetic.records((PLANS[0], replace(PLANS[1], cost=PLANS[1].cost * slower)), shape)
    noise = synthetic.np.random.default_rng(5)

    def scaled(record):
        factor = float(synthetic.np.exp(0.02 * noise.standard_normal()))
        phases = {name: [factor * time for time in times] for name, times in record.phases.items()}
        return replace(record, phases=phases, wall_ms=record.wall_ms * factor)

    return [scaled(record) for record in records]


def test_nothing_changed(old, tmp_path):
    found = compare(old, write(tmp_path / "new", again()), fail_below=0.97, resamples=2000)
    assert list(found.ratios) == [BASELINE, "m"]
    for ratio in found.ratios.values():
        assert ratio.covers(1.0)
        assert ratio.prompts == 40
        assert ratio.high - ratio.low < 0.03
    assert (found.failed, found.notes, found.exit_code) == ((), (), 0)


def test_a_regression_fails_the_gate(old, tmp_path):
    new = write(tmp_path / "new", again(slower=1.05))
    found = compare(old, new, fail_below=0.97, resamples=2000)
    assert found.ratios["m"].estimate == pytest.approx(1 / 1.05, rel=0.01)
    assert found.failed == ("m",)
    assert found.exit_code == 1
    assert compare(old, new, resamples=2000).exit_code == 0
    assert compare(old, new, fail_below=0.9, resamples=2000).exit_code == 0
    assert compare(new, old, fail_below=0.97, resamples=2000).exit_code == 0
    text = str(found)
    assert "| m | 0.95" in text
    assert "slower: FAILED (below 0.97) |" in text
    assert "| autoregressive | 1.00" in text
    assert "no difference |" in text
    assert str(compare(new, old, resamples=2000)).count("faster |") == 1


def test_noise_alone_fails_nothing(tmp_path):
    """Two prompts that disagree: the estimate is low, the interval covers 1."""
    one = [synthetic.handmade("m", question, [1] * 10, 1.0) for question in (1, 2)]
    two = [synthetic.handmade("m", question, [1] * 10, time) for question, time in ((1, 0.9), (2, 1.5))]
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", two), fail_below=0.97)
    assert found.ratios["m"].estimate == pytest.approx(20 / 24)
    assert found.exit_code == 0
    assert "no difference, few prompts" in str(found)


def changed(records, **settings):
    return [replace(record, settings=record.settings | settings) for record in records]


@pytest.mark.parametrize(
    ("settings", "provenance", "words"),
    [
        ({"target": "other"}, {}, "target was synthetic, is other"),
        ({"temperature": 0.7}, {}, r"temperature was 0\.0, is 0\.7"),
        ({"top_p": 0.9}, {}, r"top_p was 1\.0, is 0\.9"),
        ({"max_new_tokens": 99}, {}, "max_new_tokens was 24, is 99"),
        ({"dtype": "bfloat16"}, {}, "dtype was float32, is bfloat16"),
        ({"device": "cuda", "clock": "cuda events"}, {"card": {"name": "NVIDIA H200"}}, "device was cpu, is cuda"),
        ({}, {"cpu": {"model": "Another CPU"}}, "processor was Synthetic CPU, is Another CPU"),
        ({}, {"files": {"model": "2" * 64}}, "file model was 111111111111, is 222222222222"),
    ],
)
def test_other_circumstances_are_refused(old, tmp_path, settings, provenance, words):
    new = write(tmp_path / "new", changed(again(), **settings), **provenance)
    with pytest.raises(BenchError, match=words) as error:
        compare(old, new, resamples=100)
    assert "--force" in str(error.value)
    forced = compare(old, new, force=True, resamples=100)
    assert any(words.split(" was")[0] in note for note in forced.notes)


def test_another_gpu_is_refused_and_another_card_noted(tmp_path):
    records = changed(synthetic.records(PLANS, SHAPE), device="cuda")
    runs = [
        write(tmp_path / name, records, card={"name": gpu, "id": card})
        for name, gpu, card in (("a", "NVIDIA H200", "1"), ("b", "NVIDIA H100", "2"), ("c", "NVIDIA H200", "3"))
    ]
    with pytest.raises(BenchError, match="processor was NVIDIA H200, is NVIDIA H100"):
        compare(runs[0], runs[1], resamples=100)
    assert compare(runs[0], runs[2], resamples=100).notes == (
        "another card of the same model: cards differ by a few percent",
    )
    assert compare(runs[0], runs[0], resamples=100).notes == ()


def test_cards_of_parts_are_told_apart(tmp_path):
    records = changed(synthetic.records(PLANS, SHAPE), device="cuda")
    runs = [write(tmp_path / second, records, card={"name": "NVIDIA H200"},
                  parts=[{"card": {"id": "1"}}, {"card": {"id": "1"}, "resumed": [{"card": {"id": second}}]}])
            for second in "12"]
    assert len(compare(runs[0], runs[1], resamples=100).notes) == 1
    assert compare(runs[1], runs[1], resamples=100).notes == ()


def test_batches_of_another_size_are_refused(old, tmp_path):
    with pytest.raises(BenchError, match="batch was 1, is 4"):
        compare(old, write(tmp_path / "new", again(shape=replace(SHAPE, batch=4))), resamples=100)


def test_only_what_both_runs_hold_is_paired(old, tmp_path):
    """The new run is longer by a repeat, lacks question 1, asks question 2 otherwise, and lacks the baseline."""
    records = [record for record in again(shape=replace(SHAPE, repeats=3)) if record.question_id != 1]
    records = [replace(r, prompt_tokens=99) if r.question_id == 2 else r for r in records if r.method == "m"]
    found = compare(old, write(tmp_path / "new", records), resamples=500)
    assert list(found.ratios) == ["m"]
    assert found.ratios["m"].prompts == 38
    assert found.notes == (
        "only the old run has autoregressive",
        "4 of 80 old records have no partner and are left out",
        "41 of 117 new records have no partner and are left out",
    )


def test_prompts_of_one_length_are_not_yet_the_same(tmp_path):
    """Question 1 has become another of as many tokens."""
    one = [replace(record, prompt=f"{record.question_id}") for record in synthetic.records(PLANS, SHAPE)]
    two = [replace(record, prompt="another") if record.question_id == 1 else record for record in one]
    found = compare(write(tmp_path / "one", one), write(tmp_path / "two", two), resamples=100)
    assert {ratio.prompts for ratio in found.ratios.values()} == {39}


def test_a_broken_text_fails_however_fast_it_is(old, tmp_path):
    new = write(tmp_path / "new", again(slower=0.5))
    (new / "verdicts.json").write_text(json.dumps({"m": {"verdict": "BROKEN"}, BASELINE: {"verdict": "identical"}}))
    found = compare(old, new, resamples=100)
    assert (found.broken, found.failed, found.exit_code) == (("m",), (), 1)
    assert str(found).count("FAILED (its new text is BROKEN)") == 1
    assert compare(new, old, resamples=100).exit_code == 0


def test_changed_texts_are_noted(old, tmp_path):
    records = again()
    first = next(record for record in records if record.method == "m")
    records[records.index(first)] = replace(first, tokens=[token + 1 for token in first.tokens])
    assert compare(old, write(tmp_path / "new", records), resamples=100).notes == (
        "1 of 160 texts are not what they were",
    )


@pytest.mark.parametrize("bar", [0.0, -3.0, 1.05, float("nan")])
def test_a_gate_that_could_not_do_what_it_says_is_refused(old, bar):
    with pytest.raises(BenchError, match="--fail-below"):
        compare(old, old, fail_below=bar, resamples=100)


def test_nothing_in_common(old, tmp_path):
    other = [replace(record, method="other " + record.method) for record in again()]
    with pytest.raises(BenchError, match="share no method"):
        compare(old, write(tmp_path / "a", other))
    elsewhere = [replace(record, prompt_tokens=77) for record in again()]
    with pytest.raises(BenchError, match="share no prompt"):
        compare(old, write(tmp_path / "b", elsewhere))


def test_a_damaged_provenance(old, tmp_path):
    (old / "provenance.json").write_text("{")
    new = write(tmp_path / "new", again())
    with pytest.raises(BenchError, match=r"provenance\.json"):
        compare(old, new)
    (old / "provenance.json").write_text("[]")
    with pytest.raises(BenchError, match="holds no JSON object"):
        compare(old, new)
    for run in (old, new):
        (run / "provenance.json").unlink()
    assert compare(old / FILE, new / FILE, resamples=100).ratios["m"].prompts == 40
