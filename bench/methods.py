"""Every method by name, and what the command line says about one: `name:key=value:key=value`.

The only file of `bench` that imports the other rooms. A new method needs one line in `METHODS`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from baselines import draft_lesson, medusa_lesson
from baselines.autoregressive import Autoregressive
from baselines.draft_model import DraftModel
from baselines.independent import Independent
from baselines.medusa import Medusa
from baselines.prompt_lookup import PromptLookup
from baselines.references import CACHES, Reference
from bench.errors import BenchError
from bench.loop import Method, NoSettings
from bench.sampling import Law
from bench.trainer import Trainable
from ptp import lesson as ptp_lesson
from ptp.decoding import PTP

METHODS: dict[str, type[Method]] = {
    "autoregressive": Autoregressive,
    "prompt_lookup": PromptLookup,
    "draft_model": DraftModel,
    "medusa": Medusa,
    "ptp": PTP,
    "independent": Independent,
}
REFERENCES: dict[str, type[Reference]] = dict.fromkeys(CACHES, Reference)  # decode outside the loop, in a section apart
LESSONS: dict[str, Any] = {  # what trains a method's drafter
    "draft_model": draft_lesson.Lesson,
    "medusa": medusa_lesson.Lesson,
    "ptp": ptp_lesson.Lesson,
    "independent": ptp_lesson.Control,
}
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Entry:
    """A method with its options: one line of the table."""

    name: str
    settings: Any  # the method's Settings

    @property
    def options(self) -> dict[str, Any]:
        """Its options, as they may be published."""
        given = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {key: public(value) if isinstance(value, str) else value for key, value in given.items()}

    @property
    def label(self) -> str:
        """The name and the options that are not the default; says nothing about where on this machine files lie."""
        default = options(self.name)
        return ":".join([self.name, *(f"{k}={shown(v)}" for k, v in self.options.items() if v != default[k])])


def parse(text: str) -> list[Entry]:
    """`a,b:key=value:key=value`: methods with commas between, options with colons.

    Square brackets hold a value that has commas or colons of its own: `draft_model:draft=[tiny:seed=1,layers=1]:k=4`.
    A piece without "=" belongs to the value before it: `draft_model:draft=hf:org/name`. BenchError in one line for an
    unknown method or option, a value of the wrong type, and a method that is named twice.
    """
    return parse_each(split(text, ","))


def parse_each(texts: Iterable[str]) -> list[Entry]:
    """The same, already split."""
    entries = [parse_one(text) for text in texts]
    labels = [entry.label for entry in entries]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise BenchError(f"method {min(twice)} is named twice: name it once (--repeats measures it again)")
    return entries


def parse_one(text: str) -> Entry:
    """One method with its options."""
    name, *pieces = split(text, ":")
    if name not in METHODS and name not in REFERENCES:
        raise BenchError(f"unknown method {name!r}; there are {', '.join([*METHODS, *REFERENCES])}")
    return Entry(name, filled(name, settings_type(name), pieces))


def lesson(text: str, target: Any, law: Law) -> Trainable:
    """What trains the drafter of a method for a zoo target: `name:key=value:key=value`, with options of training."""
    name, *pieces = split(text, ":")
    if name not in LESSONS:
        raise BenchError(f"there is nothing to train for {name!r}; there is for {', '.join(LESSONS)}")
    return LESSONS[name](target, law, filled(name, LESSONS[name].Options, pieces))


def filled(name: str, kind: type, pieces: list[str]) -> Any:
    """A dataclass of options with the given ones in place."""
    valid, types = defaults(kind), get_type_hints(kind)
    given = pairs(name, pieces, valid)
    for key in given:
        if key not in valid:
            raise BenchError(f"{name} has no option {key!r}; {listing(valid)}")
    return kind(**{key: convert(name, key, given[key], types[key]) for key in given})


def settings_type(name: str) -> type:
    """The dataclass of a method's options."""
    return METHODS[name].Settings if name in METHODS else NoSettings


def options(name: str) -> dict[str, Any]:
    """A method's options with their defaults."""
    return defaults(settings_type(name))


def defaults(kind: type) -> dict[str, Any]:
    """A dataclass' fields with their defaults."""
    return {f.name: f.default for f in fields(kind)}


def pairs(name: str, pieces: list[str], valid: Mapping[str, Any]) -> dict[str, str]:
    """["k=8", "draft=hf", "org/name"] -> {"k": "8", "draft": "hf:org/name"}."""
    given: dict[str, str] = {}
    key = ""
    for piece in pieces:
        before, equals, value = piece.partition("=")
        if equals:
            if before in given:
                raise BenchError(f"option {before} of {name} is given twice")
            key, given[before] = before, value
        elif key:
            given[key] += ":" + piece
        else:
            raise BenchError(f"{name}:{piece} is not NAME:KEY=VALUE; {listing(valid)}")
    return {key: value.removeprefix("[").removesuffix("]") for key, value in given.items()}


def listing(valid: Mapping[str, Any]) -> str:
    """The valid options and their defaults, as messages and `list` show them."""
    if not valid:
        return "it has no options"
    return "its options are " + ", ".join(f"{key}={shown(default)}" for key, default in valid.items())


def convert(name: str, key: str, text: str, kind: Any) -> Any:
    """A value in the type of its option (int, float, bool or str)."""
    try:
        return TRUTH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise BenchError(f"{name}:{key}={text} needs a value of type {kind.__name__}") from None


def split(text: str, separator: str) -> list[str]:
    """Pieces between separators that are outside square brackets."""
    return [piece.strip() for piece in re.split(rf"{separator}(?![^\[]*\])", text)]


def shown(value: Any) -> str:
    """A value as the command line writes it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"[{text}]" if re.search("[,:]", text) else text


def public(name: str) -> str:
    """What may be published of a name: of an absolute path, its last part."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() else name
