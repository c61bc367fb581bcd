"""More sequences than rows: the same texts as one by one, and few steps in which rows stand idle."""

from collections import deque
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.conveyor import FREE, READ, STRIDE, Conveyor, Job, alike
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import Prompt
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
    assert not decoder.sequences.root.any()  # rows at rest have no keys to read


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
    launch = decoder.launch

    def counted(stride):
        nonlocal steps
        launch(stride)
        steps += stride

    decoder.launch = counted
    lengths = [48 if i % 8 == 0 else 2 for i in range(count)]
    Conveyor(decoder, frozenset()).drain(
        deque(Job(prompt(i), lengths[i], partial(said.__setitem__, i)) for i in range(count)))
    assert [len(said[i]) for i in range(count)] == lengths
    # A text holds its row for whole strides and one more; a row in FREE may be empty; the last long one runs alone.
    held = sum((-(-length // STRIDE) + 1) * STRIDE for length in lengths)
    assert sum(lengths) / rows < steps <= held / rows * FREE / (FREE - 1) + 48 + STRIDE < count / rows * 48


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for a CUDA device: a number read from it, or written to some of its places."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        read = operation is torch.ops.aten._local_scalar_dense.default
        self.count += read or (operation is torch.ops.aten.index_put_.default and not args[2].dim())
        return operation(*args, **kwargs or {})


def test_no_row_that_begins_or_ends_is_waited_for():
    sequences, numbers = tiny.decoder_of(AUTOREGRESSIVE, TARGET, Law(), 3).sequences, torch.zeros(3)
    with Waits() as waits:
        numbers[torch.tensor([1])] = 0
    assert waits.count == 1
    with Waits() as waits:
        sequences.put([0, 2], [prompt(1), prompt(2)], [5, 6])
        sequences.rest([0, 1])
    assert not waits.count
    assert sequences.done.tolist() == [True, True, False]
    assert sequences.lengths[0] == 1


def test_prompts_are_read_beside_those_of_their_length():
    """Every job in one part; no part larger than `READ` with its padding, and none that could take the next prompt."""
    lengths = [3000, 40, 900, 41, 2500, 39, 800] * 5
    parts = list(alike([Job(Prompt([1] * length, NoiseKey(0, i)), 1, print) for i, length in enumerate(lengths)]))
    sizes = [[len(job.prompt.ids) for job in part] for part in parts]
    assert [size for part in sizes for size in part] == sorted(lengths)
    assert all(len(part) * max(part) <= READ for part in sizes)
    assert all((len(a) + 1) * b[0] > READ for a, b in pairwise(sizes))
    assert not list(alike([]))
