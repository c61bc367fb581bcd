"""The pages in docs/: their code runs, what they name exists, the method that they add is one."""

import argparse
import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import tiny
from test_exactness import LIMIT, TARGET, WORK

from bench import methods
from bench.__main__ import COMMANDS, main
from bench.record import read

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
MODULE = re.compile(r"(?:bench|baselines|ptp)(?:\.\w+)+")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?|\w+\.(?:py|md|jsonl)")


def code(page):
    """The blocks of a page, as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL))


def quoted(text):
    """What stands in backticks, outside blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(text):
    """Command lines of `python -m bench`, split into words."""
    return [line.split() for line in re.findall(r"python -m bench ([^`#\n]+)", text)]


def exists(name):
    """Whether a dotted name is a module or something in one, and a path is there."""
    if not MODULE.fullmatch(name):
        return (ROOT / name).exists()
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_the_pages_are_there_and_short():
    assert {"tree", "noise", "timing", "statistics", "training", "adding-a-method"} <= set(PAGES)
    for name, text in PAGES.items():
        assert len(text) <= 8000 and len(text.splitlines()) <= 120, f"{name} is longer than two screens"


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in PAGES[page]])
def test_the_code_of_a_page_runs(page):
    exec(compile(code(page), f"{page}.md", "exec"), {"__name__": page})


def test_most_pages_have_code_to_run():
    assert sum("```python" in text and "assert" in code(page) for page, text in PAGES.items()) >= 4


@TEXTS
def test_modules_and_files_that_a_page_names_exist(text):
    named = [name for name in quoted(text) if MODULE.fullmatch(name) or FILE.fullmatch(name)]
    made = {"records.jsonl"}  # by a run
    assert not [name for name in named if name not in made and not exists(name)]
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    assert not [link for link in linked if not (ROOT / "docs" / link).exists()]


def test_the_search_for_names_finds_and_refuses():
    assert exists("bench.loop.Method") and exists("bench/loop.py") and exists("bench.sequences.SLACK")
    assert not exists("bench.loop.Nothing") and not exists("bench.nothing.Method") and not exists("bench/nothing.py")
    assert sum(len(quoted(text)) for text in PAGES.values()) > 60


@TEXTS
def test_commands_and_flags_that_a_page_shows_exist(text):
    for name, *words in commands(text):
        parser = argparse.ArgumentParser()
        importlib.import_module(COMMANDS[name][0]).arguments(parser)
        assert not [word for word in words if word.startswith("--") and word not in parser._option_string_actions], name
    targets = re.findall(r"^([.\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make (\w+)", text)) <= set(targets)


@pytest.fixture
def echo(monkeypatch):
    """The example of the page, registered as the page says."""
    names = {"__name__": "echo"}
    exec(compile(code("adding-a-method"), "adding-a-method.md", "exec"), names)
    monkeypatch.setitem(methods.METHODS, "echo", names["Echo"])
    return names["Echo"]


@pytest.mark.parametrize("law", tiny.LAWS)
def test_the_added_method_is_exact(echo, law):
    def decoded(make):
        return [text for work in WORK[law] for text in tiny.decode(make, TARGET, tiny.LAWS[law], work, LIMIT)]

    texts, truth = decoded(partial(echo, settings=echo.Settings(3))), decoded(tiny.registered("autoregressive", TARGET))
    assert [text.tokens for text in texts] == [text.tokens for text in truth]
    assert sum(text.tells for text in texts) >= 10


def test_the_added_method_runs_from_the_command_line(echo, tmp_path):
    [words] = [words for words in commands(PAGES["adding-a-method"]) if words[0] == "run"]
    assert main([*words, "--device", "cpu", "--limit", "2", "--out", str(tmp_path)]) == 0
    assert {"echo", "echo:k=4"} <= {record.method for record in read(tmp_path)}
