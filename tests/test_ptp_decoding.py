"""Parallel Token Prediction in the loop: exact whatever the student says, and as fast as it can be when it knows."""

from dataclasses import replace
from functools import partial
from math import ceil
from typing import ClassVar

import pytest
import tiny
import torch

from baselines.independent import Independent
from bench.errors import BenchError
from bench.noise import NoiseKey
from bench.sampling import Law, pick
from bench.sequences import Prompt
from ptp.decoding import PTP, Settings
from ptp.draft import Draft
from ptp.noise_embedding import NONE

TARGET = tiny.transformer(seed=1)
LIMIT = 24
WORK = {name: (tiny.groups(seed, 8, 1), tiny.groups(50 + seed, 13, 4)) for seed, name in enumerate(tiny.LAWS)}


class Knowing(PTP):
    """Drafts what the target itself will say, by running it."""

    def guess(self, logits, positions):
        s, known = self.sequences, self.sequences.tokens.clone()
        for at in positions.split(1, 1):
            logits = s.target.logits(known[:, : int(at.max())])  # causal: what lies past a row's own end is not seen
            last = logits.gather(1, (at - 1)[..., None].expand(-1, -1, logits.shape[2]))
            known.scatter_(1, at, pick(s.noise.at("target", at), self.law(last)))
        return Draft(known.gather(1, positions), torch.full_like(positions, 500.0, dtype=torch.float32))


class HalfGood(Knowing):
    """Knows two tokens in three, and is sure or unsure without reason, so that the groups are uneven."""

    def guess(self, logits, positions):
        known = super().guess(logits, positions)
        wrong = (positions * 7919 + known.tokens * 31) % 3 == 0
        return Draft((known.tokens + wrong) % tiny.CONFIG.vocab, ((positions * 5 + known.tokens) % 7 - 3).float())


def maker(method=PTP, drafter=None, **options):
    settings = Settings(**options)
    drafter = drafter or tiny.random_student(TARGET, settings.kind or "o", informed=method is not Independent,
                                             blurred=settings.draw == "blurred")
    return partial(method, settings=settings, drafter=drafter)


@pytest.fixture(scope="module")
def truth():
    """Texts of autoregressive decoding by law, alone and in ragged batches."""
    make = tiny.registered("autoregressive", TARGET)
    return {law: texts_of(make, law) for law in tiny.LAWS}


def texts_of(make, law):
    return [text for work in WORK[law] for text in tiny.decode(make, TARGET, tiny.LAWS[law], work, LIMIT)]


def require_exact(make, truth, laws=tuple(tiny.LAWS)):
    """Every text is the baseline's; returns how many of them had drafts both accepted and refused."""
    telling = 0
    for law in laws:
        texts = texts_of(make, law)
        assert [text.tokens for text in texts] == [text.tokens for text in truth[law]]
        telling += sum(text.tells for text in texts)
    return telling


CONFIGURATIONS = {
    "o": {"kind": "o", "k": 3, "slots": 10},
    "c": {"kind": "c", "k": 3, "slots": 9},
    "o, one slot": {"kind": "o", "k": 2, "slots": 1},  # never a draft
    "c, one slot": {"kind": "c", "k": 2, "slots": 1},  # most hypotheses get nothing
    "o, all slots": {"kind": "o", "k": 3, "slots": 99},  # 16 of them are of use
    "c, apart": {"kind": "c", "k": 4, "pqd": False},
    "o, apart": {"kind": "o", "k": 4, "pqd": False},
    "o, shuffled": {"kind": "o", "k": 3, "slots": 10, "shuffled": True},
}


@pytest.mark.parametrize("kind", ["o", "c"])
def test_text_of_autoregressive_decoding(kind, truth):
    assert require_exact(maker(HalfGood, **CONFIGURATIONS[kind]), truth) >= 200


def test_text_of_an_ignorant_categorical_student(truth):
    """The registry's own tests see a one-hot one."""
    assert require_exact(maker(PTP, **CONFIGURATIONS["c"]), truth, ["plain", "top-p"]) >= 50


def test_budgets_are_uneven_and_some_are_zero():
    """Drafts of every length follow one another, and sequences of a batch have different ones."""
    for name, lengths in (("o", {0, 1, 2, 3}), ("c", {0, 1, 2, 3}), ("c, one slot", {0, 1}), ("o, one slot", {0})):
        texts = tiny.decode(maker(HalfGood, **CONFIGURATIONS[name]), TARGET, Law(1.0), WORK["plain"][1][:4], LIMIT)
        assert {drafted for text in texts for drafted in text.drafted[1:]} == lengths, name
        batches = [[text.drafted for text in texts[i : i + 4]] for i in range(0, 16, 4)]
        ragged = any(len(set(step)) > 1 for batch in batches for step in zip(*batch, strict=False))
        assert ragged == (len(lengths) > 1), name


@pytest.mark.parametrize("name", list(CONFIGURATIONS)[2:])
@pytest.mark.parametrize("method", [PTP, HalfGood])
def test_other_budgets_and_ways_to_draft(method, name, truth):
    telling = require_exact(maker(method, **CONFIGURATIONS[name]), truth, ["top-k"])
    assert (telling > 0) == (name != "o, one slot")


@pytest.mark.parametrize("draw", ["argmax", "pick", "blurred"])
@pytest.mark.parametrize("kind", ["o", "c"])
def test_the_control_is_exact_too(draw, kind, truth):
    make = maker(Independent, kind=kind, draw=draw, k=3, slots=9)
    assert require_exact(make, truth, ["greedy", "plain"]) > 20


def ideal(tokens, k, pqd):
    """Steps of a perfect student: the first knows nothing; without PQD every other one only drafts."""
    if pqd:
        return 1 + ceil((tokens - 1) / (k + 1))
    pairs, rest = divmod(tokens, k + 2)
    return 2 * pairs + min(rest, 2)


@pytest.mark.parametrize("law", ["greedy", "top-p"])
@pytest.mark.parametrize("pqd", [True, False])
@pytest.mark.parametrize(("kind", "k"), [("o", 1), ("c", 1), ("o", 4), ("c", 4), ("c", 7), ("o", 7)])
def test_a_perfect_student_needs_the_ideal_number_of_steps(kind, k, pqd, law):
    slots = k + (kind == "o")
    make = maker(Knowing, kind=kind, k=k, slots=slots, pqd=pqd)
    prompts = tuple(Prompt(list(range(n)), NoiseKey(5, n)) for n in (1, 9, 4, 6))
    for limit in (1, 2, k + 2, k + 3, 23):
        for text in tiny.decode(make, TARGET, tiny.LAWS[law], [tiny.Group(prompts)], limit):
            assert len(text.tokens) == limit
            assert text.steps == ideal(limit, k, pqd)


class Watched(HalfGood):
    """Checks every tree against indices written out: slot j under row d takes u[root + d + 1 + j] and sits there
    (O: one less), behind the rows up to d and the slots of its group before it."""

    uneven: ClassVar[set[int]] = set()

    def propose(self, kind):
        tree, s, n = super().propose(kind), self.sequences, 1 + self.settings.k
        structure, root = tree.resolve(), s.root.tolist()
        places = structure.positions(tree, s.root)
        for b in range(s.batch):
            for slot in range(places.shape[1] - n):
                d, j = int(self.groups.row[b, slot]), int(self.groups.place[b, slot])
                if d > self.length[b]:
                    continue  # hangs from padding
                own = root[b] + d + 1 + j
                assert places[b, n + slot] == own - int(self.kind.name == "o")
                family = [*range(d + 1), *range(n + slot - j, n + slot + 1)]
                assert structure.ancestors[b, n + slot].nonzero().flatten().tolist() == family
                noise = s.noise.streams["target"][b, own] if self.law.temperature else torch.tensor(NONE)
                assert torch.allclose(tree.slots[b, slot], self.drafter.embed(noise).double(), atol=1e-5)
                self.uneven.add(int(self.groups.count[b, d]))
        return tree


@pytest.mark.parametrize("law", [Law(), Law(1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["o", "c"])
def test_slots_hear_the_noise_of_the_tokens_they_predict(kind, law):
    Watched.uneven.clear()
    tiny.decode(maker(Watched, kind=kind, k=3, slots=10), TARGET, law, WORK["plain"][1][:1], 12)
    assert len(Watched.uneven) >= 3


def test_misfits_are_refused():
    sequences = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, Law(), 1).sequences
    for options, message in [({"kind": "x"}, "kind must be"), ({"k": 0}, "k >= 1"), ({"slots": 0}, "slots >= 1")]:
        with pytest.raises(BenchError, match=message):
            Settings(**options)
    with pytest.raises(BenchError, match="is of kind c"):
        PTP(sequences, Law(), Settings(kind="o", k=3), tiny.random_student(TARGET, "c"))
    with pytest.raises(BenchError, match="trained for 8 slots"):
        PTP(sequences, Law(), Settings(k=8), tiny.random_student(TARGET))
    with pytest.raises(BenchError, match="belongs to ptp"):
        Independent(sequences, Law(), Settings(k=3), tiny.random_student(TARGET))
    for method, law in ((PTP, Law()), (Independent, Law(1.0))):
        with pytest.raises(BenchError, match="shuffled=true changes nothing"):
            maker(method, k=3, shuffled=True)(sequences, law)
    with pytest.raises(BenchError, match="draw must be"):
        Settings(draw="best")


def test_noise_changes_drafts_but_never_the_text():
    """The student hears `u`: with another noise it drafts otherwise."""
    text = {}
    for shuffled in (False, True):
        settings = replace(Settings(**CONFIGURATIONS["o"]), shuffled=shuffled)
        make = partial(PTP, settings=settings, drafter=tiny.random_student(TARGET))
        decoder = tiny.decoder_of(make, TARGET, Law(1.0), 1)
        raw = decoder.decode([Prompt([1, 2], NoiseKey(0, 0))], LIMIT)
        text[shuffled] = (raw.tokens[0][:LIMIT], decoder.method.chance.tolist())
    assert text[False][0] == text[True][0]
    assert text[False][1] != text[True][1]


@pytest.mark.parametrize("method", [PTP, Independent])
def test_what_is_left_out_is_settled_by_the_student(method):
    sequences = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, Law(), 1).sequences
    student = tiny.random_student(TARGET, "c", informed=method is PTP)
    settings = method(sequences, Law(1.0), Settings(k=3), student).settings
    assert settings == Settings(k=3, kind="c", draw="pick" if method is PTP else "argmax")


def test_the_control_draws_as_it_was_measured_to_do_best():
    sequences = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, Law(), 1).sequences
    student = tiny.random_student(TARGET, informed=False)
    for best, worse in (("pick", "argmax"), ("argmax", "pick")):
        student.confidence[best].runs[-1], student.confidence[worse].runs[-1] = 2.5, 2.0
        for asked, way in (("", best), (worse, worse)):
            made = Independent(sequences, Law(1.0), Settings(k=3, draw=asked), student)
            assert (made.way, made.settings.draw) == (way, way)
            assert made.confidence is student.confidence[way]
    assert Independent(sequences, Law(), Settings(k=3), student).confidence is student.confidence["greedy"]


def test_a_blurred_pick_is_drawn_where_it_was_measured():
    sequences = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, Law(), 1).sequences
    for method, other in ((PTP, "argmax"), (Independent, "pick")):
        plain, student = (tiny.random_student(TARGET, informed=method is PTP, blurred=b) for b in (False, True))
        with pytest.raises(BenchError, match=r"not measured with draw=blurred, but with argmax.*leave draw out"):
            method(sequences, Law(1.0), Settings(k=3, draw="blurred"), plain)
        student.width.fill_(0.25)
        for better, worse in ((other, "blurred"), ("blurred", other)):
            student.confidence[better].runs[-1], student.confidence[worse].runs[-1] = 2.5, 2.0
            made = method(sequences, Law(1.0), Settings(k=3), student)
            assert (made.way, made.settings.draw, made.blur) == (better, better, 0.25)
        assert method(sequences, Law(), Settings(k=3, draw="blurred"), student).way == "greedy"


def test_greedy_drafts_have_a_confidence_of_their_own():
    sequences = tiny.decoder_of(tiny.registered("autoregressive", TARGET), TARGET, Law(), 1).sequences
    for kind, law, way in (("o", Law(), "greedy"), ("c", Law(), "greedy"), ("o", Law(0.7), "argmax"),
                           ("c", Law(0.7), "pick")):
        student = tiny.random_student(TARGET, kind)
        made = PTP(sequences, law, Settings(k=3), student)
        assert (made.way, made.confidence) == (way, student.confidence[way])
