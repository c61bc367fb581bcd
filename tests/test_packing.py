"""Batches: texts in rows, which of their tokens are greedy, and a reader that any step can start with."""

import numpy as np
import pytest
import torch

from bench import zoo
from bench.packing import PADDING, Batch, Reader, Supply, packed
from bench.reading import read
from bench.sampling import Law
from bench.texts import Text

TINY = zoo.load("tiny")


def texts(count, seed=0, words=40):
    """Sawtooth texts; every third one was answered greedily from its fifth id on."""
    random = np.random.default_rng(seed)
    made = [(random.integers(words) + np.arange(random.integers(20, 60))) % words for _ in range(count)]
    return [Text(ids.astype(np.int32), (0, 0), 5, greedy=i % 3 == 0) for i, ids in enumerate(made)]


def test_packing_by_hand():
    some = [Text(np.array(ids, np.int32), (0, 0), answer, greedy=greedy)
            for ids, answer, greedy in (([1, 2, 3], 0, False), ([4, 5, 6, 7], 1, True), ([6, 7], 0, True))]
    batch = packed([some[:2], some[2:]], 3, 5)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [0] * 5]
    assert batch.texts.tolist() == [[0, 0, 0, 1, 1], [0, 0, PADDING, PADDING, PADDING], [PADDING] * 5]
    assert batch.greedy.tolist() == [[False] * 4 + [True], [True, True, False, False, False], [False] * 5]
    assert batch.positions().tolist()[0] == [0, 1, 2, 0, 1]
    assert batch.firsts().tolist()[:2] == [[0, 0, 0, 3, 3], [0, 0, 2, 2, 2]]
    assert batch.follows().tolist()[:2] == [[False, True, True, False, True], [False, True, False, False, False]]
    assert batch.followed(1).tolist()[:2] == [[True, True, False, True, False], [True, False, False, False, False]]
    assert batch.later(2).tolist()[:2] == [[3, 4, 5, 0, 0], [0, 0, 0, 0, 0]]


def test_rows_begin_with_texts_and_held_out_ones_are_whole():
    some = [text.ids.tolist() for text in texts(20)]
    reader, cut = Reader(texts(20), 3, 64, seed=3), 0
    for batch, held_out in [(reader.at(0), False), *((batch, True) for batch in reader.whole(3))]:
        for row, ids in zip(batch.tokens, batch.texts, strict=True):
            for number in set(ids.tolist()) - {PADDING}:
                part = row[ids == number].tolist()
                assert any(text[: len(part)] == part for text in some)
                assert part in some or not held_out
                cut += part not in some
    assert cut


def test_every_answer_of_a_greedy_text_is_greedy():
    batch = packed([[Text(np.arange(9, dtype=np.int32), (5, 6), 7, ((1, 2), (3, 4)), greedy=True)]], 1, 10)
    assert batch.greedy[0].tolist() == [False] * 3 + [True] + [False] * 3 + [True] * 2 + [False]
    assert torch.equal(batch.said, batch.greedy)
    assert batch.followed(1)[0].nonzero().flatten().tolist() == [2, 6, 7]  # a question is given, not decoded
    assert batch.followed(2)[0].nonzero().flatten().tolist() == [6]
    assert batch.silent(Law(0.7), 2)[0].tolist() == [False, True] + [False] * 3 + [True] * 2 + [False] * 3
    assert batch.silent(Law()).all()


def test_a_packed_pass_is_that_of_each_text_alone():
    some = texts(5)
    batch = packed([some], 1, sum(len(t.ids) for t in some))
    whole, start = read(TINY.model, batch).hidden[0], 0
    for text in some:
        alone = read(TINY.model, Batch.whole(torch.tensor(text.ids.tolist())[None])).hidden[0]
        assert torch.allclose(whole[start : start + len(text.ids)], alone, atol=1e-4)
        start += len(text.ids)


def test_the_reader_is_a_function_of_the_step_and_shows_all_held_out_text():
    reader = Reader(texts(20), 2, 64, seed=3)
    assert torch.equal(reader.at(5).tokens, reader.at(5).tokens)
    assert not torch.equal(reader.at(5).tokens, reader.at(6).tokens)
    assert (reader.at(5).texts != PADDING).all()
    batches = list(Reader(texts(20), 4, 64, 0).whole(4))
    shown = torch.cat([batch.tokens[batch.texts != PADDING] for batch in batches])
    assert len(batches) > 1
    assert all(batch.tokens.shape == (4, 64) for batch in batches)  # another shape would have to be compiled
    assert shown.tolist() == [i for text in texts(20) for i in text.ids.tolist()]


def test_supplies_come_in_any_order():
    reader = Reader(texts(20), 2, 64, seed=3)
    supply = Supply(reader, torch.device("cpu"))
    for step in (0, 1, 2, 7, 8, 3, 3):
        found, wanted = supply.at(step), reader.at(step)
        assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True))


def test_a_fault_of_the_worker_comes_to_light():
    with pytest.raises(ValueError, match="high <= 0"):
        Supply(Reader([], 2, 64, seed=3), torch.device("cpu")).at(0)
