"""Places that cannot be written are refused before anything is computed, in one line, and nothing is left behind."""

import os
from pathlib import Path

import pytest

from bench import destination
from bench.__main__ import main
from bench.errors import BenchError


@pytest.mark.parametrize("command", [
    *(f"{name} --target nowhere" for name in ("run", "quality", "cost", "profile")),
    "rows --target nowhere", "data --target nowhere", "train medusa --target nowhere --data nowhere",
    "report nowhere", "batches nowhere nowhere", "project nowhere --rows nowhere", "learning nowhere", "world"])
@pytest.mark.parametrize("out", ["plain", "plain/new", "/proc/new"])
def test_nothing_is_computed_for_a_place_that_cannot_be_written(tmp_path, monkeypatch, capsys, command, out):
    """Not even read: everything else that these commands name is missing, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ptp.world.run", lambda *_: pytest.fail("it was computed"))
    Path("plain").touch()
    assert main([*command.split(), "--out", out]) == 2
    assert f"error: cannot write to {out}" in (error := capsys.readouterr().err)
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "plain"]


@pytest.mark.parametrize("command", ["rows --target nowhere", "batches nowhere nowhere", "report nowhere"])
def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--out", "new/directory"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_read_only(tmp_path):
    """Root may write anywhere, so another user asks where the test runs as root."""
    tmp_path.chmod(0o555)
    child = os.fork()
    if child == 0:
        said = []
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            for place in (tmp_path, tmp_path / "new" / "directory"):
                with pytest.raises(BenchError, match="cannot write to") as error:
                    destination.check(place)
                said.append(str(place) in str(error.value))
        finally:
            os._exit(0 if said == [True, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
