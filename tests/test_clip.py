"""`clip` against a version that walks token by token."""

from hypothesis import example, given
from hypothesis import strategies as st

from bench.clip import clip

STEPS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=12)


def slow(steps: list[list[int]], limit: int, end_ids: set[int]) -> tuple[list[int], list[int]]:
    text: list[int] = []
    kept: list[int] = []
    for step in steps:
        count = 0
        for token in step:
            if len(text) == limit or (text and text[-1] in end_ids):
                break
            text.append(token)
            count += 1
        if count:
            kept.append(count)
    return text, kept


@given(STEPS, st.integers(1, 60), st.sets(st.integers(0, 9), max_size=3))
@example([[1, 2, 7, 3], [4]], 9, {7})  # the end id inside a step
@example([[1, 2], [3, 4]], 2, set())  # the limit at a border between steps
@example([[7, 7], [7]], 9, {7})  # several end ids: the first counts
def test_equals_the_slow_version(steps, limit, end_ids):
    tokens = [token for step in steps for token in step]
    clipped = clip(tokens, [len(step) - 1 for step in steps], limit, end_ids)
    assert (clipped.tokens, clipped.kept) == slow(steps, limit, end_ids)


@given(STEPS, st.integers(1, 60), st.sets(st.integers(0, 9), max_size=3))
def test_identities(steps, limit, end_ids):
    accepted = [len(step) - 1 for step in steps]
    clipped = clip([token for step in steps for token in step], accepted, limit, end_ids)
    assert sum(clipped.kept) == len(clipped.tokens) <= limit
    assert clipped.kept[-1] > 0
    assert all(1 <= kept <= offered + 1 for kept, offered in zip(clipped.kept, accepted, strict=False))
    assert not set(clipped.tokens[:-1]) & end_ids


def test_steps_after_the_end_are_dropped():
    # a sequence that is done stays where it is while its batch goes on: later counts refer to no token of its own
    assert clip([1, 2, 7], [1, 0, 3, 2], 9, {7}).kept == [2, 1]
