"""How far a run is, on a terminal and in a log."""

import io

from rich.console import Console
from synthetic import handmade

from bench import progress
from bench.progress import Bar, Lines

BATCH = [handmade("prompt_lookup", 1, [4, 4], 10.0)]  # eight tokens


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    now = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    with progress.progress(4, Console(file=out)) as bar:
        assert isinstance(bar, Lines)
        for records in (BATCH, BATCH, [], BATCH):  # the third was there before the run was resumed
            bar.advance(records)
    speed = 8000 / BATCH[0].wall_ms
    assert out.getvalue().splitlines() == [f"2/4  prompt_lookup  {speed:.1f} tokens/s  0:00:11 left",
                                           f"4/4  prompt_lookup  {speed:.1f} tokens/s  0:00:00 left"]


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    with progress.progress(2, Console(file=out, force_terminal=True, width=100)) as bar:
        assert isinstance(bar, Bar)
        bar.advance(BATCH)
        bar.advance(BATCH)
    text = out.getvalue()
    assert "warming up" in text
    assert "prompt_lookup" in text
    assert "2/2" in text
    assert f"{8000 / BATCH[0].wall_ms:.1f} tokens/s" in text
