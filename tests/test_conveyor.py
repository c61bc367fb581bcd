"""More sequences than rows: the same texts as one by one, and few steps in which rows stand idle."""

from collections import deque
from functools import partial

import pytest

from bench.conveyor import FREE, STRIDE, Conveyor, Job
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import SLACK, Prompt
from tests import tiny

TARGET, ENDS = tiny.transformer(seed=5), frozenset({3})
AUTOREGRESSIVE = tiny.registered("autoregressive", TARGET)
LIMITS = (1, 5, 30, 17)


def prompt(number):
    return Prompt([(number + i) % 12 for i in range(1 + 3 * number % 11)], NoiseKey(2, number))


def one_by_one(law, count, limits, ends):
    decoder = tiny.decoder_of(AUTOREGRESSIVE, TARGET, law, 1)
    return [tiny.clipped(decoder.decode([prompt(i)], limits[i % 4], ends), limits[i % 4], ends)[0].tokens
            for i in range(count)]


@pytest.mark.parametrize("law", [Law(), Law(1.0), Law(0.7, top_k=5)])
@pytest.mark.parametrize("rows", [1, 3, 16, 50])
def test_texts_do_not_depend_on_who_shares_the_rows(law, rows):
    decoder, said = tiny.decoder_of(AUTOREGRESSIVE, TARGET, law, rows), {}
    jobs = deque(Job(prompt(i), LIMITS[i % 4], partial(said.__setitem__, i)) for i in range(40))
    Conveyor(decoder, ENDS).drain(jobs)
    assert [said[i] for i in range(40)] == one_by_one(law, 40, LIMITS, ENDS)
    assert any(ids[-1] in ENDS and len(ids) > 1 for ids in said.values())
    assert not jobs


def test_a_job_may_bring_more_jobs():
    """Chains of three, each continuing what the one before has said, in rows that are shared by all."""
    decoder, waiting, ended = tiny.decoder_of(AUTOREGRESSIVE, TARGET, Law(1.0), 3), deque(), {}

    def go_on(number, turn, before, said):
        ids = before + said
        if turn == 3:
            ended[number] = ids
        else:
            waiting.append(Job(Prompt(ids, NoiseKey(2, number, turn)), 6, partial(go_on, number, turn + 1, ids)))

    for number in range(10):
        go_on(number, 0, prompt(number).ids, [])
    Conveyor(decoder, frozenset()).drain(waiting)
    alone = tiny.decoder_of(AUTOREGRESSIVE, TARGET, Law(1.0), 1)
    for number in range(10):
        ids = prompt(number).ids
        for turn in range(3):
            ids = ids + alone.decode([Prompt(ids, NoiseKey(2, number, turn))], 6).tokens[0]
        assert ended[number] == ids


def test_no_row_waits_for_the_longest():
    """One text in eight is long: a plain batch would spend 8 x 48 row steps for 1 x 48 + 7 x 2 tokens."""
    rows, count = 8, 160
    decoder, said, steps = tiny.decoder_of(AUTOREGRESSIVE, TARGET, Law(1.0), rows), {}, 0
    run = decoder.run

    def counted(limit):
        nonlocal steps
        run(limit)
        steps += len(decoder.times)

    decoder.run = counted
    lengths = [48 if i % 8 == 0 else 2 for i in range(count)]
    Conveyor(decoder, frozenset()).drain(
        deque(Job(prompt(i), lengths[i], partial(said.__setitem__, i)) for i in range(count)))
    assert [len(said[i]) for i in range(count)] == lengths
    # A short text holds its row for one stride; a row in FREE may be empty; at the end the last long text runs alone.
    held = sum(max(length, STRIDE) + STRIDE + SLACK for length in lengths)
    assert steps <= held / rows * FREE / (FREE - 1) + 48 < count / rows * 48
