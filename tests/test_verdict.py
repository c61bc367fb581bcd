"""Verdicts: what each one takes, the bound behind near-ties, and the null."""

import json
from dataclasses import asdict, replace
from functools import partial

import judged
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.draft_model import DraftModel, Settings
from bench import loop, verdict
from bench.errors import BenchError
from bench.forward import PlainForward
from bench.null import PaddedAutoregressive, Padding, Rate, padded_rate, shared
from bench.record import BASELINE, TWIN, Writer
from bench.sampling import NOISE_BITS, Law, pick
from bench.ties import Recheck, movement, obtainable, widened
from bench.verdict import judge, write

LAWS = {"greedy": Law(), "sampled": Law(0.7), "top-k": Law(1.0, top_k=5), "top-p": Law(0.7, top_p=0.8)}
TARGET = tiny.transformer(seed=3)
LOOKUP = {"prompt_lookup": tiny.registered("prompt_lookup", TARGET)}


def tampered(case, label, change):
    """The run with every text of a method changed by `change(tokens) -> tokens`; kept counts follow."""
    def altered(record):
        tokens = change(list(record.tokens))
        return replace(record, tokens=tokens, **{name: [1] * len(tokens) for name in ("rows", "kept")},
                       **{name: [0] * len(tokens) for name in ("drafted", "accepted")})

    return replace(case, records=[altered(r) if r.method == label else r for r in case.records])


# The bound: what `pick` can give when logits move.

LOGITS = st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=9)
NEAR = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=9)  # no bin is as small as the rounding of masses
SOME_LAW = st.builds(Law, st.sampled_from([0.3, 0.7, 1.0, 1.5]), st.sampled_from([0, 1, 2, 4, 20]),
                     st.sampled_from([1.0, 0.3, 0.8, 0.95]))
MOVES = st.sampled_from([0.001, 0.05, 0.3, 1.0])
NOISE = st.integers(0, 2**NOISE_BITS - 1)


@settings(max_examples=200, deadline=None)
@given(LOGITS, SOME_LAW, NOISE, MOVES, st.integers(0, 2**32))
def test_whatever_moved_logits_can_give_is_called_obtainable(values, law, noise, move, seed):
    logits = torch.tensor(values)
    shifts = torch.rand(200, len(values), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    shifts[:100] = shifts[:100].sign() * 0.999  # corners reach farthest
    found = pick(torch.full((200,), noise), law(logits + move * shifts)).unique().tolist()
    assert all(obtainable(logits.double(), law, noise, token, move) for token in found)


def drawn_by_moving(logits, law, noise, token, move):
    """Whether `pick` gives `token` somewhere between the moves that lower and that raise the ids up to it."""
    ids, low, high = torch.arange(len(logits)), 0.0, 1.0
    move = torch.tensor(move, dtype=torch.float64)  # in float32 the search would step over narrow bins
    least, most = torch.where(ids < token, -move, move), torch.where(ids <= token, move, -move)
    for share in [0.0, 1.0] + [None] * 60:
        share = (low + high) / 2 if share is None else share
        got = int(pick(torch.tensor(noise), law(logits + (1 - share) * least + share * most)))
        if got == token:
            return True
        low, high = (share, high) if got > token else (low, share)
    return False


@settings(max_examples=60, deadline=None)
@given(NEAR, st.sampled_from([0.3, 1.0]), st.integers(2**NOISE_BITS // 50, 2**NOISE_BITS * 49 // 50), st.data())
def test_without_truncation_a_little_more_than_the_movement_gives_the_token(values, temperature, noise, data):
    logits, law = torch.tensor(values).double(), Law(temperature)
    token = data.draw(st.integers(0, len(values) - 1))
    needed = movement(logits, law, noise, token)
    assert drawn_by_moving(logits, law, noise, token, 1.01 * needed + 1e-6)
    if needed > 1e-5:
        assert not drawn_by_moving(logits, law, noise, token, 0.99 * needed - 1e-6)


def test_movement_by_hand():
    logits = torch.tensor([1.0, 0.4, -1.0], dtype=torch.float64)
    assert movement(logits, Law(), 0, 1) == pytest.approx(0.3, rel=2e-3)  # greedy: the gap closes from both sides
    assert movement(logits, Law(), 0, 0) == 0
    even = torch.zeros(2, dtype=torch.float64)
    three_quarters = 3 * 2**NOISE_BITS // 4
    assert movement(even, Law(1.0), three_quarters, 1) == 0
    # id 0 owns e^d / (e^d + e^-d) of the law after a move by d: 3/4 at d = ln(3) / 2
    assert movement(even, Law(1.0), three_quarters, 0) == pytest.approx(0.5493, rel=2e-3)
    assert movement(logits, Law(1.0, top_k=2), 2**NOISE_BITS - 1, 2) == pytest.approx(0.7, rel=2e-3)  # overtakes id 1
    assert movement(torch.tensor([0.0, 500.0], dtype=torch.float64), Law(1.0), 2**29, 0) == float("inf")


def test_the_recheck_sees_the_row_that_drew_the_token():
    model, ids = judged.cast(judged.roomy(), torch.bfloat16), list(range(20))
    row = Recheck(model).rows(ids, {7, 20 - 1})[7]
    exact = widened(model, torch.float32).logits(torch.tensor([ids[:7]]))[0, -1]
    assert torch.allclose(row.exact, exact.double(), atol=1e-5)
    assert 1e-3 < row.deviation < 0.5
    assert row.deviation == (row.exact - row.seen).abs().max()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.float16, 0.05)])
def test_the_recheck_is_wider_than_the_run(dtype, most):
    row = Recheck(judged.cast(judged.roomy(), dtype)).rows(list(range(20)), {19})[19]
    assert 0 < row.deviation < most


# Whole runs.


@pytest.mark.parametrize("law", LAWS)
def test_a_healthy_engine_is_identical(law):
    case = judged.measure({TWIN: tiny.registered(BASELINE, TARGET), **LOOKUP}, TARGET, LAWS[law], judged.work(1, 8))
    found = case.verdicts()
    assert {label: v.verdict for label, v in found.items()} == dict.fromkeys(found, "identical")
    assert found["prompt_lookup"].sequences == 8
    assert found["prompt_lookup"].first_positions == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("law", LAWS)
def test_one_other_token_is_broken(law, dtype):
    case = judged.measure(LOOKUP, judged.cast(TARGET, dtype), LAWS[law], judged.work(2, 4))
    changed = tampered(case, "prompt_lookup", lambda t: [*t[:9], (t[9] + 1) % 12, *t[10:]])
    found = changed.verdicts()["prompt_lookup"]
    assert (found.verdict, found.diverged, found.first_positions) == ("BROKEN", 4, [9] * 4)
    assert "token 9" in found.detail
    assert "not by rounding" in found.detail


@pytest.mark.parametrize("change", [lambda t: t[:-3], lambda t: [*t, 0]])
def test_a_text_that_ends_elsewhere_is_broken(change):
    case = tampered(judged.measure(LOOKUP, TARGET, Law(), judged.work(2, 2)), "prompt_lookup", change)
    found = case.verdicts()["prompt_lookup"]
    assert found.verdict == "BROKEN"
    assert "one text ends" in found.detail


class Shaken(PlainForward):
    """Logits of every step with several rows are off by up to `amount`, each time by other numbers."""

    amount = 0.0

    def __call__(self, tree, root, *rest):
        result = super().__call__(tree, root, *rest)
        if tree.tokens.shape[1] > 1:
            random = torch.Generator().manual_seed(int(root.sum()) * 1000 + int(tree.tokens.sum()))
            result.logits += self.amount * (2 * torch.rand(result.logits.shape, generator=random) - 1)
        return result


@pytest.fixture
def shaken(monkeypatch):
    """A function that plants the shaking."""
    def plant(amount):
        monkeypatch.setattr(Shaken, "amount", amount)
        monkeypatch.setattr(loop, "forward_for", lambda model, cache, widest: Shaken(model, cache))

    return plant


@pytest.mark.parametrize("law", LAWS)
def test_logits_moved_within_the_dtypes_deviation_are_ties(law, shaken):
    target = judged.cast(judged.roomy(), torch.bfloat16)
    row = Recheck(target).rows(list(range(20)), {19})[19]
    shaken(row.deviation / 4)
    padded = {"padded": partial(PaddedAutoregressive, settings=Padding(8))}
    found = judged.measure(padded, target, LAWS[law], judged.work(3, 8, batch=4, vocab=64)).verdicts()["padded"]
    assert found.verdict == "numerical ties", found.detail
    assert 1 <= found.diverged == len(found.first_positions) < 32


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_moved_far_beyond_it_are_broken(law, dtype, shaken):
    shaken(3.0)
    target = judged.cast(judged.roomy(), dtype)
    padded = {"padded": partial(PaddedAutoregressive, settings=Padding(8))}
    found = judged.measure(padded, target, LAWS[law], judged.work(3, 2, batch=4, vocab=64)).verdicts()["padded"]
    assert found.verdict == "BROKEN"
    assert "not by rounding" in found.detail


def test_half_precision_by_itself_is_never_broken():
    """Whether texts part at all depends on the machine's kernels; that rounding explains it if they do, does not."""
    target = judged.cast(judged.roomy(1), torch.bfloat16)
    makes: dict[str, tiny.Make] = {"padded": partial(PaddedAutoregressive, settings=Padding(8)),
                                   "prompt_lookup": tiny.registered("prompt_lookup", target)}
    for law in LAWS.values():
        found = judged.measure(makes, target, law, judged.work(4, 3, batch=4, vocab=64)).verdicts()
        assert {v.verdict for v in found.values()} <= {"identical", "numerical ties"}, found


def test_ties_that_are_more_frequent_than_the_null_are_broken(shaken, monkeypatch):
    target = judged.cast(judged.roomy(), torch.bfloat16)
    shaken(0.02)
    padded = {"padded": partial(PaddedAutoregressive, settings=Padding(8))}
    case = judged.measure(padded, target, Law(0.7), judged.work(3, 8, batch=4, vocab=64))
    assert case.verdicts()["padded"].verdict == "numerical ties"
    monkeypatch.setattr(verdict, "padded_rate", lambda *_: Rate(1, 10_000))
    found = case.verdicts()["padded"]
    assert found.verdict == "BROKEN"
    assert "more often than rounding explains" in found.detail


def test_lossy_reference_missing_and_repeated():
    case = judged.measure(LOOKUP, TARGET, Law(), judged.work(2, 2))
    own = [r for r in case.records if r.method == "prompt_lookup"]
    def as_(label, kind, **changes):
        return [replace(r, method=label, settings=r.settings | {"lossless": kind}, **changes) for r in own]

    extra = [*as_("typical", "lossy"), *as_("hf_eager", "reference"), *as_("late", "match", repeat=1)]
    found = judge([*case.records, *extra], case.target, case.prompts)
    assert {label: v.verdict for label, v in found.items()} == {
        BASELINE: "identical", "prompt_lookup": "identical", "typical": "lossy", "hf_eager": "reference",
        "late": "unchecked"}


def test_rejection_is_judged_by_its_statistic():
    settings = Settings(draft="-", k=3, verify="reject")
    makes = {"reject": partial(DraftModel, settings=settings, drafter=tiny.perturbed(TARGET, 0.15))}
    case = judged.measure(makes, TARGET, Law(1.0), judged.work(5, 6, batch=4))
    found = case.verdicts()["reject"]
    assert found.verdict == "distribution"
    assert found.diverged > 0
    for excess, name in ((100.0, "BROKEN"), (-100.0, "BROKEN"), (0.0, "distribution")):
        evidence = {"excess": excess, "variance": 25.0, "tested": 90}
        records = [replace(r, rejection=r.rejection and evidence) for r in case.records]
        assert judge(records, case.target, case.prompts)["reject"].verdict == name
    untested = [replace(r, rejection=r.rejection and dict.fromkeys(r.rejection, 0)) for r in case.records]
    assert judge(untested, case.target, case.prompts)["reject"].verdict == "unchecked"


def test_greedy_rejection_is_judged_by_its_text():
    settings = Settings(draft="-", k=3, verify="reject")
    makes = {"reject": partial(DraftModel, settings=settings, drafter=tiny.perturbed(TARGET, 0.15))}
    case = judged.measure(makes, TARGET, Law(), judged.work(5, 4))
    assert case.verdicts()["reject"].verdict == "identical"
    changed = tampered(case, "reject", lambda t: [*t[:9], (t[9] + 1) % 12, *t[10:]])
    assert changed.verdicts()["reject"].verdict == "BROKEN"


# The null.


def test_padding_changes_nothing_in_exact_arithmetic():
    for batch in (1, 4):
        case = judged.measure({}, TARGET, Law(1.0), judged.work(6, 5, batch, ends=frozenset({10, 11})))
        rate = padded_rate(case.target, case.records, case.prompts, rows=7)
        assert rate == Rate(0, sum(len(r.tokens) for r in case.records))
        assert min(len(r.tokens) for r in case.records) < 24


def test_repeats_count_once():
    case = judged.measure(LOOKUP, TARGET, Law(), judged.work(2, 3))
    again = [replace(r, repeat=1) for r in case.records]
    once, twice = ([r for r in records if r.method == BASELINE] for records in (case.records, case.records + again))
    assert padded_rate(case.target, once, case.prompts, 4) == padded_rate(case.target, twice, case.prompts, 4)
    pairs = [verdict.Pair(r, r) for r in twice]
    assert verdict.rate(pairs) == verdict.rate(pairs[:3]) == Rate(0, 72)


def test_the_excess_of_a_rate():
    assert Rate(0, 100).excess(Rate(0, 100)) == 1
    assert Rate(1, 100).excess(Rate(0, 100)) == 0.5  # one event, equal tokens
    assert Rate(3, 100).excess(Rate(0, 300)) == pytest.approx(1 / 64)
    assert Rate(20, 1000).excess(Rate(20, 1000)) > 0.4
    assert Rate(60, 1000).excess(Rate(20, 1000)) < 1e-5


def test_shared():
    assert shared([1, 2, 3], [1, 2, 4]) == 2
    assert shared([1, 2], [1, 2, 4]) == 2
    assert shared([], [1]) == 0


# The file, and bad input.


def test_the_file_holds_the_verdicts(tmp_path):
    case = judged.measure(LOOKUP, TARGET, Law(), judged.work(2, 2))
    with Writer(tmp_path) as writer:
        writer.append(*case.records)
    found = write(tmp_path, case.target, case.prompts)
    assert json.loads((tmp_path / verdict.FILE).read_text()) == {label: asdict(v) for label, v in found.items()}


@pytest.mark.parametrize("spoil", [
    dict.clear, lambda prompts: prompts.update({key: [1] * 50 for key in prompts}),
    lambda prompts: prompts.update({key: [ids[0] ^ 1, *ids[1:]] for key, ids in prompts.items()})])
def test_prompts_of_another_run_are_refused(spoil):
    case = tampered(judged.measure(LOOKUP, TARGET, Law(), judged.work(2, 2)), "prompt_lookup", lambda t: [0, *t[1:]])
    spoil(case.prompts)
    with pytest.raises(BenchError, match="judge a run with its own questions"):
        case.verdicts()
