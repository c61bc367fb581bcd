"""Settings: presets, flags over them, what is refused, and what a resumed run may change."""

import argparse
from pathlib import Path

import pytest
import torch

from bench import drafters, suite
from bench.errors import BenchError
from bench.methods import parse_one
from bench.suite import SUITES, RunSettings, chosen, continued, given


def named(*flags: str) -> dict:
    parser = argparse.ArgumentParser()
    suite.arguments(parser)
    return given(parser.parse_args(flags))


def test_flags_override_the_preset_and_nothing_else():
    settings = chosen(named("--suite", "smoke", "--limit", "3", "--dtype", "fp64", "--methods", "prompt_lookup:k=4"))
    assert settings.limit == 3
    assert settings.dtype == "float64"
    assert settings.methods == ("prompt_lookup:k=4",)
    assert settings.max_new_tokens == SUITES["smoke"].max_new_tokens


def test_every_flag_reaches_its_setting():
    flags = ["--target", "tiny", "--methods", "autoregressive", "--prompts", "p.jsonl", "--limit", "2",
             "--max-new-tokens", "5", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9", "--seed", "11",
             "--batch", "4", "--device", "cpu", "--dtype", "fp32", "--repeats", "3", "--ignore-eos", "--raw",
             "--part", "2/4"]
    assert chosen(named(*flags)) == RunSettings(
        target="tiny", methods=("autoregressive",), prompts="p.jsonl", limit=2, max_new_tokens=5, temperature=0.5,
        top_k=7, top_p=0.9, seed=11, batch=4, device="cpu", dtype="float32", repeats=3, ignore_eos=True, raw=True,
        part="2/4")


def test_the_main_job_is_large_enough():
    standard = SUITES["standard"]
    assert chosen(named()).suite == "standard"
    assert standard.limit is not None and standard.limit >= 24
    assert standard.max_new_tokens >= 48


NEED_A_DRAFTER = {"draft_model", "medusa", "ptp", "independent"}


def names(*flags: str) -> list[str]:
    return [parse_one(method).name for method in chosen(named(*flags)).methods]


def test_presets_leave_out_what_cannot_run_here(monkeypatch):
    assert chosen(named("--device", "cpu", "--target", "nowhere")).methods == ("prompt_lookup:k=3", "hf_eager")
    assert chosen(named("--device", "cpu", "--target", "nowhere", "--batch", "2")).methods == ("prompt_lookup:k=3",)
    assert chosen(named("--device", "cpu", "--methods", "hf_static")).methods == ("hf_static",)  # asked for: fails
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "hf_static" in names("--device", "cuda", "--target", "nowhere")
    assert "hf_static" not in names("--device", "cpu", "--suite", "paper")


@pytest.mark.parametrize("preset", SUITES)
@pytest.mark.parametrize("target", ["tiny", "tiny:seed=1", "shape:llama-7b"])
def test_presets_name_all_methods(preset, target):
    assert {*names("--suite", preset, "--target", target, "--device", "cpu")} >= NEED_A_DRAFTER | {"prompt_lookup"}


def test_a_cpu_gets_few_rows(monkeypatch):
    few = chosen(named("--device", "cpu", "--target", "tiny")).methods
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    many = chosen(named("--device", "cuda", "--target", "tiny")).methods
    rows = [{parse_one(method).name: parse_one(method).settings for method in methods} for methods in (few, many)]
    assert rows[0]["medusa"].rows < rows[1]["medusa"].rows
    for name in ("ptp", "independent"):
        assert rows[0][name].slots < rows[1][name].slots
        assert rows[0][name].slots == rows[0]["ptp"].slots  # PTP and its control get the same budget
        assert rows[0][name].k == rows[0]["ptp"].k


def test_a_card_that_is_named_is_the_current_one(monkeypatch):
    """What takes no device, as a launch by Triton, goes there; without a number nothing is chosen."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [suite.find_device(name) for name in ("cuda", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    assert current == ["cuda:1"]


def test_noise_is_shuffled_only_where_there_is_some():
    paper = ("--suite", "paper", "--target", "tiny", "--device", "cpu")
    assert "ptp:k=3:slots=10:shuffled=true" in chosen(named(*paper)).methods
    assert "ptp:k=3:slots=10:shuffled=true" not in chosen(named(*paper, "--temperature", "0")).methods


@pytest.mark.parametrize("there", [set(), {"medusa"}, NEED_A_DRAFTER])
def test_presets_leave_out_what_has_no_drafter(there, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(drafters, "SHIPPED", tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    for method in there:
        (tmp_path / "smollm2-135m" / f"{method}.safetensors").touch()
    assert {*names("--device", "cpu")} & NEED_A_DRAFTER == there
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (there != NEED_A_DRAFTER)
    for method in NEED_A_DRAFTER - there:
        assert f"{method}:" in lines[0]
    assert names("--device", "cpu", "--methods", "medusa") == ["medusa"]  # asked for: fails if it must
    assert not capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--methods", "hf_eager", "--batch", "2"], "hf_eager decodes one sequence at a time"),
    (["--limit", "0"], "--limit must be at least 1, got 0"),
    (["--max-new-tokens", "-5"], "--max-new-tokens must be at least 1"),
    (["--batch", "0"], "--batch must be at least 1"),
    (["--repeats", "0"], "--repeats must be at least 1"),
    (["--temperature", "-1"], "temperature must be 0"),
    (["--temperature", "nan"], "temperature must be 0"),
    (["--top-p", "1.5"], "top-p must be above 0 and at most 1"),
    (["--top-k", "-1"], "top-k must be 0"),
    (["--dtype", "int8"], "unknown dtype 'int8': use one of auto, fp32"),
    (["--device", "tpu"], "unknown device 'tpu'"),
    (["--device", "cpu:1"], "unknown device 'cpu:1'"),
    (["--device", "cuda:99"], "there is no device cuda:99"),
    (["--suite", "standrad"], "unknown suite 'standrad': use one of smoke, standard, paper"),
    (["--methods", "medussa"], "unknown method 'medussa'"),
])
def test_bad_settings_are_one_line(flags, message):
    with pytest.raises(BenchError, match=message) as caught:
        chosen(named(*flags))
    assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_its_settings():
    asked = named("--suite", "smoke", "--seed", "3", "--device", "cpu", "--methods", "prompt_lookup")
    saved = RunSettings.from_published(chosen(asked).published())
    assert continued(saved, named("--methods", "prompt_lookup:k=10")).published() == saved.published()
    assert continued(saved, {}) == saved
    assert continued(saved, named("--seed", "3", "--dtype", "auto")).seed == 3
    with pytest.raises(BenchError, match="has --seed 3, not 4"):
        continued(saved, named("--seed", "4"))
    with pytest.raises(BenchError, match="has --methods prompt_lookup, not prompt_lookup:k=9"):
        continued(saved, named("--methods", "prompt_lookup:k=9"))


def test_what_is_published_says_nothing_about_this_machine():
    here = Path.cwd()
    settings = RunSettings(target=str(here / "model"), prompts=str(here / "q.jsonl"),
                           methods=(f"draft_model:draft={here / 'draft'}",))
    assert str(here) not in str(settings.published())
    saved = RunSettings.from_published(settings.published())
    assert continued(saved, {"target": settings.target, "methods": settings.methods}).target == settings.target


def test_settings_of_another_version_are_refused():
    with pytest.raises(BenchError, match=r"do not fit this version of ptp-bench \(temprature\)"):
        RunSettings.from_published(SUITES["smoke"].published() | {"temprature": 1})


def test_runs_of_before_were_whole():
    saved = SUITES["smoke"].published()
    del saved["part"]
    assert RunSettings.from_published(saved) == SUITES["smoke"]


@pytest.mark.parametrize("able, expected", [({}, "float32"), ({"amx_bf16": True}, "bfloat16"),
                                            ({"avx512_bf16": True}, "bfloat16")])
def test_dtype_follows_the_processor(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert chosen(named("--device", "cpu")).dtype == expected
