"""Settings: presets, flags over them, what is refused, and what a resumed run may change."""

import argparse
from pathlib import Path

import pytest
import torch

from bench import suite
from bench.errors import BenchError
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
             "--batch", "4", "--device", "cpu", "--dtype", "fp32", "--repeats", "3", "--ignore-eos", "--raw"]
    assert chosen(named(*flags)) == RunSettings(
        target="tiny", methods=("autoregressive",), prompts="p.jsonl", limit=2, max_new_tokens=5, temperature=0.5,
        top_k=7, top_p=0.9, seed=11, batch=4, device="cpu", dtype="float32", repeats=3, ignore_eos=True, raw=True)


def test_the_main_job_is_large_enough():
    standard = SUITES["standard"]
    assert chosen(named()).suite == "standard"
    assert standard.limit is not None and standard.limit >= 24
    assert standard.max_new_tokens >= 48


def test_presets_leave_out_what_cannot_run_here(monkeypatch):
    assert chosen(named("--device", "cpu")).methods == ("prompt_lookup:k=3", "prompt_lookup", "hf_eager")
    assert chosen(named("--device", "cpu", "--batch", "2")).methods == ("prompt_lookup:k=3", "prompt_lookup")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert chosen(named("--device", "cuda")).methods[-1] == "hf_static"
    assert chosen(named("--device", "cpu", "--methods", "hf_static")).methods == ("hf_static",)  # asked for: fails


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
    saved = RunSettings.from_published(chosen(named("--suite", "smoke", "--seed", "3", "--device", "cpu")).published())
    assert continued(saved, {}) == saved
    assert continued(saved, named("--seed", "3", "--dtype", "auto", "--methods", "prompt_lookup:k=10")).seed == 3
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


@pytest.mark.parametrize("able, expected", [({}, "float32"), ({"amx_bf16": True}, "bfloat16"),
                                            ({"avx512_bf16": True}, "bfloat16")])
def test_dtype_follows_the_processor(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert chosen(named("--device", "cpu")).dtype == expected
