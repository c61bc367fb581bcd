"""The search for an earlier occurrence of the current n-gram, against a slow one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prompt_lookup import Settings, longest_match
from bench.errors import BenchError


def slow_match(ids, ngram):
    """(index of the last token, length) of the longest earlier occurrence of a suffix; of equals the latest."""
    for length in range(min(ngram, len(ids)), 0, -1):
        for end in range(len(ids) - 2, length - 2, -1):
            if ids[end - length + 1 : end + 1] == ids[len(ids) - length :]:
                return end, length
    return 0, 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), min_size=1, max_size=3), st.integers(1, 4))
def test_the_longest_match_is_found_and_of_equals_the_latest(texts, ngram):
    tokens = torch.randint(3, (len(texts), 24), generator=torch.Generator().manual_seed(0))  # old text lies behind
    for row, ids in zip(tokens, texts, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    end, length = longest_match(tokens, torch.tensor([len(ids) for ids in texts]), ngram)
    assert list(zip(end.tolist(), length.tolist(), strict=True)) == [slow_match(ids, ngram) for ids in texts]


@pytest.mark.parametrize("options", [{"k": 0}, {"ngram": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(BenchError, match="k >= 1 and ngram >= 1"):
        Settings(**options)
