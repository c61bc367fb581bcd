"""What the command line says about methods."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import methods, zoo
from bench.errors import BenchError
from bench.loop import Method
from bench.measure import Team, settled
from bench.methods import Entry, parse
from bench.suite import RunSettings


@dataclass(frozen=True)
class Settings:
    number: int = 3
    share: float = 0.5
    fast: bool = False
    name: str = "x"


class Everything(Method):
    Settings = Settings


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "everything", Everything)


def test_values_take_the_type_of_their_option():
    [entry] = parse("everything:number=7:share=1e-3:fast=yes:name=7")
    assert entry.settings == Settings(7, 0.001, True, "7")


def test_label_is_the_name_and_what_is_not_default():
    labels = [entry.label for entry in parse("everything:number=3:fast=true:share=0.25, prompt_lookup:ngram=2:k=10")]
    assert labels == ["everything:share=0.25:fast=true", "prompt_lookup:ngram=2"]


def test_records_show_what_the_trained_part_decided():
    target, asked = zoo.load("tiny"), ("ptp:k=2:slots=4", "independent:kind=c:k=2:slots=4", "prompt_lookup:k=2")
    settings = RunSettings(target="tiny", methods=asked, temperature=1.0, device="cpu", dtype="float32")
    rig = Team(settings, target, context=64).rig(1)
    shown = {label: settled(rig.team.entries[label], decoder).options for label, decoder in rig.decoders.items()}
    own = {"k": 2, "slots": 4, "pqd": True, "shuffled": False, "weights": "", "draw": "argmax"}
    assert shown["ptp:k=2:slots=4"] == {"kind": "o", **own}
    assert shown["independent:kind=c:k=2:slots=4"] == {"kind": "c", **own}
    assert shown["prompt_lookup:k=2"] == {"k": 2, "ngram": 3}


@pytest.mark.parametrize("text, draft", [
    ("draft_model:draft=smollm2-135m:k=3", "smollm2-135m"),
    ("draft_model:draft=hf:org/name@v1:k=3", "hf:org/name@v1"),
    ("draft_model:draft=[tiny:seed=1,layers=1]:k=3", "tiny:seed=1,layers=1"),
    ("draft_model:k=3:draft=[hf:org/name]", "hf:org/name"),
])
def test_values_may_hold_separators(text, draft):
    entries = parse(f"prompt_lookup,{text},everything")
    assert [entry.name for entry in entries] == ["prompt_lookup", "draft_model", "everything"]
    assert (entries[1].settings.draft, entries[1].settings.k) == (draft, 3)
    assert parse(entries[1].label) == [entries[1]]


def test_label_says_nothing_about_this_machine():
    entry = Entry("draft_model", parse(f"draft_model:draft={Path.home() / 'models' / 'small'}")[0].settings)
    assert entry.label == "draft_model:draft=small"


@pytest.mark.parametrize("text, message", [
    ("everthing", "unknown method 'everthing'; there are .*everything"),
    ("", "unknown method ''"),
    ("prompt_lookup,,everything", "unknown method ''"),
    ("everything:nmber=3", r"no option 'nmber'; its options are number=3, share=0.5, fast=false, name=x"),
    ("autoregressive:k=3", "no option 'k'; it has no options"),
    ("everything:number=3.5", "everything:number=3.5 needs a value of type int"),
    ("everything:share=half", "everything:share=half needs a value of type float"),
    ("everything:fast=maybe", "everything:fast=maybe needs a value of type bool"),
    ("everything:3", "everything:3 is not NAME:KEY=VALUE"),
    ("everything:number=3:number=4", "number of everything is given twice"),
    ("everything:number=3,everything", "everything is named twice"),
    ("prompt_lookup:k=0", "k >= 1"),
])
def test_bad_input_is_one_line(text, message):
    with pytest.raises(BenchError) as caught:
        parse(text)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)
