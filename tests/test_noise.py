"""Shared noise: what it depends on, and that it is uniform."""

from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.noise import STREAMS, Noise, NoiseKey
from bench.sampling import NOISE_BITS

question_ids = st.integers(0, 2**40) | st.text(max_size=8)
keys = st.builds(NoiseKey, st.integers(0, 2**40), question_ids, st.integers(0, 9))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(keys, st.sampled_from(STREAMS), st.integers(0, 300), st.integers(0, 300))
def test_a_longer_request_has_the_same_start(key, stream, short, more):
    long = key.numbers(stream, short + more)
    assert long.dtype == np.int64
    assert len(long) == short + more
    assert (key.numbers(stream, short) == long[:short]).all()
    assert ((long >= 0) & (long < 2**NOISE_BITS)).all()


def test_seed_question_turn_and_stream_all_matter():
    questions: list[int | str] = [0, 1, 2, "12"]
    every = [NoiseKey(seed, question, turn) for seed in (0, 1, 12) for question in questions for turn in (0, 1, 2)]
    rows = [key.numbers(stream, 64) for key, stream in product(every, STREAMS)]
    assert len({tuple(row) for row in rows}) == len(rows) == 144
    table = np.array(rows)
    same = (table[:, None] == table[None]).sum(-1) - 64 * np.eye(len(table), dtype=int)
    assert same.max() <= 1  # two of 64 numbers below 2^30 do not meet in one place
    # |correlation| of two rows is about 1/8; 6 standard deviations hold for all 10,296 pairs.
    correlation = np.corrcoef(table) - np.eye(len(table))
    assert np.abs(correlation).max() < 6 / 8


def uniform(numbers, bins=64):
    counts = np.bincount(numbers >> (NOISE_BITS - 6), minlength=bins)
    return stats.chisquare(counts).pvalue


def test_numbers_are_uniform_along_a_sequence_and_across_sequences():
    for stream in STREAMS:
        assert uniform(NoiseKey(0, 0).numbers(stream, 1 << 16)) > 1e-4
        assert uniform(np.array([NoiseKey(0, question).numbers(stream, 1)[0] for question in range(2048)])) > 1e-4
        assert uniform(np.array([NoiseKey(seed, 0).numbers(stream, 8)[7] for seed in range(2048)])) > 1e-4
    assert uniform(np.abs(NoiseKey(0, 0).numbers("target", 1 << 16) - (1 << 29))) < 1e-12  # the test can fail


def test_low_bits_are_uniform_too():
    numbers = NoiseKey(3, 4).numbers("target", 1 << 16)
    assert stats.chisquare(np.bincount(numbers & 63, minlength=64)).pvalue > 1e-4


def test_published_runs_can_be_repeated():
    """These numbers are part of every published text: whoever changes them starts a new series of results."""
    assert NoiseKey(0, 1, 0).numbers("target", 3).tolist() == [111944181, 97038358, 752268670]


def test_a_batch_reads_its_own_rows_at_absolute_positions():
    batch = [NoiseKey(5, question) for question in range(3)]
    noise = Noise(3, 40, "cpu")
    noise.fill([NoiseKey(6, question) for question in range(3)])
    noise.fill(batch)
    positions = torch.tensor([[0, 7], [39, 3], [5, 5]])
    for stream in STREAMS:
        found = noise.at(stream, positions).tolist()
        assert found == [key.numbers(stream, 40)[at].tolist() for key, at in zip(batch, positions, strict=True)]
    assert noise.at("test", torch.tensor([[40], [99], [0]])).shape == (3, 1)  # past the end: any number, no error
