"""A drafter that knows the answer needs exactly ceil(T / (k + 1)) steps for T tokens.

Exactness cannot see a drafter that is broken; this can. `ORACLES` holds, for every registered method that drafts, a
perfect version of it in a world where the next token is the successor of the last.
"""

from dataclasses import dataclass
from functools import partial
from math import ceil

import pytest
import tiny
import torch

from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from baselines.independent import Independent
from baselines.medusa import Heads, Medusa
from baselines.medusa import Settings as MedusaSettings
from baselines.prompt_lookup import PromptLookup
from baselines.prompt_lookup import Settings as LookupSettings
from bench.loop import Method
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import Prompt
from bench.tree import Tree, chain
from ptp.decoding import PTP
from ptp.decoding import Settings as PTPSettings
from ptp.draft import Draft

TARGET = tiny.transformer(seed=2)
VOCAB = TARGET.config.vocab
LAW = Law(1.0)


@dataclass(frozen=True)
class Plan:
    """Drafts k deep; at depth `wrong_at` the token is wrong; so are the `siblings` around every right one."""

    k: int
    wrong_at: int = 0
    siblings: int = 0


class Oracle(Method):
    """Drafts what autoregressive decoding said. `drafter` [B, capacity]: the whole sequences, prompts included."""

    def __init__(self, sequences, law, settings, drafter):
        super().__init__(sequences, law, settings, drafter)
        layout = torch.tensor(rows_of(settings))  # [rows, 3]: parent, depth, error
        self.parents = layout[:, 0].repeat(sequences.batch, 1)
        self.depths, self.errors = layout[:, 1], layout[:, 2]
        self.rows = (len(layout),)

    def propose(self, kind):
        known = self.drafter.gather(1, self.sequences.root[:, None] + self.depths)
        tokens = (known + self.errors) % VOCAB
        k, is_chain = self.settings.k, self.settings.siblings == 0
        structure = chain(k + 1, self.sequences.batch, "cpu") if is_chain else None
        return Tree(tokens, self.parents, depth=k, is_chain=is_chain, structure=structure)


def rows_of(plan):
    """(parent, depth, error) of every row; wrong siblings come before the right one and have right children."""
    rows, right = [(0, 0, 0)], 0
    for depth in range(1, plan.k + 1):
        for error in range(1, plan.siblings + 1):
            rows.append((right, depth, error))
            if depth < plan.k:
                rows.append((len(rows) - 1, depth + 1, 0))
        rows.append((right, depth, int(depth == plan.wrong_at)))
        right = len(rows) - 1
    return rows


def prompts(lengths):
    random = torch.Generator().manual_seed(len(lengths))
    ids = [torch.randint(VOCAB, (length,), generator=random).tolist() for length in lengths]
    return tuple(Prompt(tokens, NoiseKey(7, i)) for i, tokens in enumerate(ids))


def run(plan, group, limit):
    """Texts by the oracle, texts of autoregressive decoding, and the number of the batch's steps."""
    batch, longer = len(group.prompts), limit + 24
    baseline = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, LAW, batch)
    answers = baseline.decode(list(group.prompts), longer, frozenset()).tokens
    known = torch.zeros(batch, 200, dtype=torch.int64)
    for row, prompt, answer in zip(known, group.prompts, answers, strict=True):
        row[: len(prompt.ids) + longer] = torch.tensor([*prompt.ids, *answer])
    oracle = tiny.decoder_of(partial(Oracle, settings=plan, drafter=known), TARGET, LAW, batch)
    raw = oracle.decode(list(group.prompts), limit, group.end_ids)
    texts = tiny.clipped(raw, limit, group.end_ids)
    assert [text.tokens for text in texts] == [cut(answer[:limit], group.end_ids) for answer in answers]
    return texts, len(raw.rows)


def cut(ids, end_ids):
    """Up to the first end id, which counts."""
    ends = [i for i, token in enumerate(ids) if token in end_ids]
    return ids[: ends[0] + 1] if ends else ids


@pytest.mark.parametrize(("k", "siblings"), [(1, 0), (3, 0), (7, 0), (1, 2), (4, 2), (6, 1)])
@pytest.mark.parametrize("limit", [1, 12, 23])
def test_the_right_chain_or_the_right_path_of_a_tree(k, siblings, limit):
    texts, steps = run(Plan(k, siblings=siblings), tiny.Group(prompts([5])), limit)
    assert steps == texts[0].steps == ceil(limit / (k + 1))
    assert texts[0].accepted == [k] * steps
    assert texts[0].drafted == [k] * steps


@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize("wrong_at", [1, 2, 4])
def test_a_draft_that_is_wrong_at_a_known_depth(wrong_at, siblings):
    texts, steps = run(Plan(4, wrong_at, siblings), tiny.Group(prompts([5])), 20)
    assert steps == texts[0].steps == ceil(20 / wrong_at)
    assert texts[0].accepted == [wrong_at - 1] * steps


@pytest.mark.parametrize("plan", [Plan(3), Plan(3, siblings=1), Plan(3, 2)], ids=["chain", "tree", "wrong"])
def test_a_ragged_batch_takes_as_many_steps_as_its_longest(plan):
    group = tiny.Group(prompts([1, 9, 4, 6]), end_ids=frozenset({0, 1}))
    texts, steps = run(plan, group, 22)
    per_step = plan.wrong_at or plan.k + 1
    assert [text.steps for text in texts] == [ceil(len(text.tokens) / per_step) for text in texts]
    assert len({len(text.tokens) for text in texts}) > 1
    assert steps == max(text.steps for text in texts)


# A world where the next token is the successor of the last, so that a perfect drafter can be written down.
CYCLE = tiny.bigram(40.0 * torch.eye(8, dtype=torch.float64).roll(1, 1))


def perfect_heads(count):
    """Head i shifts the one-hot hidden state by i + 1 places. Only first ranks are of use, so the tree is a chain."""
    heads = Heads(8, count, ranks=2).double()
    for shift, matrix in enumerate(heads.matrices, 1):
        matrix.data = 3 * torch.eye(8, dtype=torch.float64).roll(shift, 0)
    heads.accuracy.copy_(torch.tensor([1.0, 0.0]))
    return heads.requires_grad_(False)


class Successors:
    """A student that knows the world, and is sure of itself."""

    def guess(self, logits, positions):
        s = self.sequences
        known = (s.root_tokens() + positions - s.root[:, None]) % 8
        return Draft(known, torch.full_like(positions, 500.0, dtype=torch.float32))


class PerfectPTP(Successors, PTP):
    pass


class PerfectIndependent(Successors, Independent):
    pass


LATE = {"medusa", "ptp", "independent"}  # learn from a step, so that their first one has no drafts
ORACLES: dict[str, tuple[tiny.Make, int]] = {  # name: (a perfect version of the method, its k)
    "draft_model": (partial(DraftModel, settings=DraftSettings(draft="-", k=4), drafter=CYCLE), 4),
    "medusa": (partial(Medusa, settings=MedusaSettings(rows=5), drafter=perfect_heads(4)), 4),
    "prompt_lookup": (partial(PromptLookup, settings=LookupSettings(k=6)), 6),
    "ptp": (partial(PerfectPTP, settings=PTPSettings(k=4, slots=5), drafter=tiny.random_student(CYCLE)), 4),
    "independent": (partial(PerfectIndependent, settings=PTPSettings(k=4, slots=5),
                            drafter=tiny.random_student(CYCLE, informed=False)), 4),
}


def test_every_registered_method_that_drafts_has_an_oracle():
    assert set(ORACLES) == set(tiny.matching()) - {"autoregressive"}, "give the new method a line in ORACLES"


@pytest.mark.parametrize("law", [Law(), Law(1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_perfect_version_of_the_method(name, law):
    make, k = ORACLES[name]
    work = [tiny.Group(tuple(Prompt([(i + j) % 8 for j in range(length)], NoiseKey(0, i))
                             for i, length in enumerate([9, 10, 12, 17])))]
    for limit in (1, k + 1, k + 2, 30):
        for text, prompt in zip(tiny.decode(make, CYCLE, law, work, limit), work[0].prompts, strict=True):
            assert text.tokens == [(prompt.ids[-1] + 1 + i) % 8 for i in range(limit)]
            assert text.steps == (1 + ceil((limit - 1) / (k + 1)) if name in LATE else ceil(limit / (k + 1)))


def test_a_draft_model_that_is_its_target_is_an_oracle():
    make = partial(DraftModel, settings=DraftSettings(draft="-", k=3), drafter=TARGET)
    for law in tiny.LAWS.values():
        for text in tiny.decode(make, TARGET, law, [tiny.Group(prompts([1, 9, 4, 6]))], 22):
            assert text.steps == ceil(22 / 4)
