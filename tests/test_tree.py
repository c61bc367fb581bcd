"""`Structure` and `chain` against a walk from every row to its start."""

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.tree import Structure, Tree, chain, chain_parents

MANY = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def forests(draw):
    """Parents of a batch of forests: row 0 is the root, any row may be padding (its own parent) or hang from one."""
    rows, batch = draw(st.integers(1, 18)), draw(st.integers(1, 3))
    return [[draw(st.integers(max(0, i - draw(st.integers(0, 18))), i)) for i in range(rows)] for _ in range(batch)]


def assert_is_the_walk(structure, batch_of_parents):
    for b, parents in enumerate(batch_of_parents):
        paths = [tiny.path(parents, row) for row in range(len(parents))]
        assert [set(row.nonzero().flatten().tolist()) for row in structure.ancestors[b]] == [set(p) for p in paths]
        assert structure.depths[b].tolist() == [len(p) - 1 for p in paths]
        assert structure.live[b].tolist() == [p[0] == 0 for p in paths]


@MANY
@given(forests())
def test_structure_is_the_walk(batch_of_parents):
    assert_is_the_walk(Structure.of(torch.tensor(batch_of_parents)), batch_of_parents)


def test_a_long_chain_needs_every_doubling():
    for rows in range(1, 70):
        parents = chain_parents(rows, 2, "cpu")
        assert_is_the_walk(Structure.of(parents), parents.tolist())


@MANY
@given(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_chain_is_the_structure_of_its_parents(rows, drafts):
    found = chain(rows, len(drafts), "cpu", torch.tensor(drafts))
    parents = [[i if i > count else max(i - 1, 0) for i in range(rows)] for count in drafts]
    assert_is_the_walk(found, parents)


def test_chain_without_counts_has_no_padding():
    assert_is_the_walk(chain(5, 3, "cpu"), [[0, 0, 1, 2, 3]] * 3)
    assert chain_parents(5, 3, "cpu").tolist() == [[0, 0, 1, 2, 3]] * 3


@MANY
@given(forests(), st.data())
def test_positions_are_root_plus_depth_and_slots_sit_earlier(batch_of_parents, data):
    rows, batch = len(batch_of_parents[0]), len(batch_of_parents)
    n, shift = data.draw(st.integers(1, rows)), data.draw(st.integers(0, 2))
    root = data.draw(st.lists(st.integers(0, 50), min_size=batch, max_size=batch))
    parents = torch.tensor(batch_of_parents)
    tree = Tree(torch.zeros(batch, n, dtype=torch.int64), parents, depth=rows, slot_shift=shift)
    positions = tree.resolve().positions(tree, torch.tensor(root)).tolist()
    for b, own in enumerate(batch_of_parents):
        for row in range(rows):
            assert positions[b][row] == root[b] + len(tiny.path(own, row)) - 1 - (shift if row >= n else 0)


def test_resolve_derives_once_and_keeps_what_is_given():
    tree = Tree(torch.zeros(1, 3, dtype=torch.int64), chain_parents(3, 1, "cpu"), depth=2)
    assert tree.resolve() is tree.resolve()
    given_structure = chain(3, 1, "cpu")
    tree.structure = given_structure
    assert tree.resolve() is given_structure
