"""The sequential readout: what each slot hears is the token drafted before it, in decoding, measuring and training."""

from dataclasses import replace
from functools import cache, partial
from itertools import product
from math import ceil
from types import SimpleNamespace

import pytest
import tiny
import torch

import bench.model
import bench.shortlist
from baselines.independent import Independent
from bench.cache import Cache
from bench.errors import BenchError
from bench.forward import PlainForward, prefill
from bench.noise import NoiseKey
from bench.packing import Batch
from bench.reading import read
from bench.sampling import Law, pick
from bench.sequences import Prompt
from bench.tree import Tree
from ptp.calibration import calibrate
from ptp.completions import explain, random_starts
from ptp.confidence import Confidence
from ptp.decoding import PTP, Settings
from ptp.draft import Draft, draw
from ptp.kinds import KINDS
from ptp.lesson import Control, Lesson, Options
from ptp.losses import Voice, own_noise
from ptp.noise_embedding import NONE
from ptp.student import Design, Student

TARGET = tiny.transformer(seed=1)


def head_inputs(student, target, prefix, noise):
    """Of one group of slots that hangs from the last token of `prefix`, by the engine: [slots, hidden]."""
    kept, slots = Cache(target.config, 1, 60, target.norm), len(noise)
    prefill(target, kept, prefix[None, :-1])
    tree = Tree(prefix[None, -1:], torch.arange(slots + 1)[None].sub(1).clamp(min=0), depth=0, score_slots=False,
                slots=student.embed(noise)[None].double(), slot_shift=student.kind.known)
    return PlainForward(target, kept)(tree, torch.tensor([len(prefix) - 1]), student.adapter).slot_hidden[0]


@torch.no_grad()
def by_hand(student, target, prefix, own, noise, pull):
    """Tokens and scores of a group's drafts, each with the one before it in sight.

    `own`: the target's token after `prefix`; `noise` [slots + 1]: of that token and all that follow; `pull`: the way.
    """
    tokens, scores = [own], []
    hidden = head_inputs(student, target, prefix, noise[:-1])
    for j in range(student.kind.known, len(hidden)):
        logits = target.score(student.readout(hidden[j], target.embedding[tokens[-1]]))
        one = pull(logits[None], noise[None, j + student.kind.ahead - 1])
        tokens.append(int(one.tokens))
        scores.append(float(one.score))
    return tokens[1:], scores


class Checked(PTP):
    """Drafts every group again, alone and slowly."""

    seen = 0

    def observe(self, seen):
        super().observe(seen)
        s, known = self.sequences, self.kind.known
        assert seen.tree.slots is None or seen.result.slot_logits is None
        for b in range(s.batch):
            if (length := int(self.length[b])) == 0 or s.done[b]:
                continue
            root = int(s.root[b])
            places = torch.arange(root, root + length + known + 1)
            noise = self.heard(places.expand(s.batch, -1))[b]
            tokens, scores = by_hand(self.drafter, s.target, s.tokens[b, :root], int(s.tokens[b, root]), noise,
                                     partial(draw, self.way, law=self.law))
            assert self.drafts[b, :length].tolist() == tokens
            expected = self.confidence(torch.tensor([scores]))[0]
            assert torch.allclose(self.chance[b, :length], expected, atol=1e-4)
            Checked.seen += length > 1


@pytest.mark.parametrize("law", ["greedy", "plain"])
@pytest.mark.parametrize("pqd", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_drawn_one_after_the_other(kind, pqd, law):
    """Ragged batches, groups of uneven length; the text is that of autoregressive decoding in the end."""
    student, Checked.seen = tiny.random_student(TARGET, kind, sequential=True), 0
    settings = Settings(k=4, slots=12, pqd=pqd)
    work = tiny.groups(3, 3, 3)
    texts = tiny.decode(partial(Checked, settings=settings, drafter=student), TARGET, tiny.LAWS[law], work, 12)
    truth = tiny.decode(tiny.registered("autoregressive", TARGET), TARGET, tiny.LAWS[law], work, 12)
    assert [text.tokens for text in texts] == [text.tokens for text in truth]
    assert Checked.seen > 20


@pytest.mark.parametrize("slots", [1, 9, 99])
@pytest.mark.parametrize("method", [PTP, Independent])
@pytest.mark.parametrize("kind", KINDS)
def test_text_of_autoregressive_decoding(kind, method, slots):
    """One slot, a budget that leaves groups empty, and more than is of use."""
    student = tiny.random_student(TARGET, kind, informed=method is PTP, sequential=True)
    make, telling = partial(method, settings=method.Settings(k=3, slots=slots), drafter=student), 0
    for name, law in tiny.LAWS.items():
        work = tiny.groups(7, 4, 4)
        texts = tiny.decode(make, TARGET, law, work)
        truth = tiny.decode(tiny.registered("autoregressive", TARGET), TARGET, law, work)
        assert [text.tokens for text in texts] == [text.tokens for text in truth], name
        telling += sum(text.tells for text in texts)
    assert (telling > 10) == ((kind, slots) != ("o", 1))


# Every token is followed by its successor, and this readout says what the embedding of the token before says.
CYCLE = tiny.bigram(40.0 * torch.eye(8, dtype=torch.float64).roll(1, 1))


def knowing(kind):
    """A student whose adapter guesses, and whose readout knows better: silu(x) - silu(-x) = x."""
    student, one, none = tiny.random_student(CYCLE, kind, sequential=True), torch.eye(8), torch.zeros(8, 8)
    student.readout.narrow.data = torch.cat([torch.cat([none, one], 1), torch.cat([none, -one], 1)]).double()
    student.readout.widen.data = 1000 * torch.cat([one, -one], 1).double()
    for confidence in student.confidence.values():
        confidence.slope.zero_()
        confidence.intercept.fill_(20)
    return student


@pytest.mark.parametrize("law", [Law(), Law(1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_needs_only_the_token_before_is_perfect(kind, k, law):
    make = partial(PTP, settings=Settings(k=k, slots=k + KINDS[kind].known), drafter=knowing(kind))
    work = [tiny.Group(tuple(Prompt([(i + j) % 8 for j in range(length)], NoiseKey(0, i))
                             for i, length in enumerate([9, 1, 12])))]
    for limit in (1, k + 1, k + 2, 30):
        for text in tiny.decode(make, CYCLE, law, work, limit):
            assert text.steps == 1 + ceil((limit - 1) / (k + 1))


def test_slots_are_scored_only_where_they_are_drafted_from(monkeypatch):
    rows, scores = [], bench.model.scores
    for module in (bench.model, bench.shortlist):
        monkeypatch.setattr(module, "scores", lambda x, head: rows.append(x.shape[1]) or scores(x, head))
    make = partial(PTP, settings=Settings(k=3, slots=9), drafter=tiny.random_student(TARGET, sequential=True))
    text, = tiny.decode(make, TARGET, Law(), tiny.groups(1, 1, 1), 6)
    assert rows == [4, 1, 1, 1] * (len(rows) // 4)
    assert len(rows) // 4 >= text.steps


def test_unscored_slots_are_what_the_head_makes_the_same_logits_of():
    student = tiny.random_student(TARGET)
    tree = Tree(torch.tensor([[3, 5]]), torch.tensor([[0, 0, 1, 2, 0]]), depth=1,
                slots=student.embed(torch.tensor([[1, 2, 3]])).double())
    forward = PlainForward(TARGET, Cache(TARGET.config, 1, 20, TARGET.norm))
    scored, bare = (forward(replace(tree, score_slots=wanted), torch.tensor([0]), student.adapter, (2,))
                    for wanted in (True, False))
    assert torch.equal(scored.logits, bare.logits)
    assert torch.equal(scored.taps[0], bare.taps[0])
    assert scored.slot_hidden is bare.slot_logits is None
    assert torch.allclose(TARGET.score(bare.slot_hidden), scored.slot_logits, atol=1e-5)


def test_an_untrained_readout_changes_nothing_and_the_rest_begins_as_without_it():
    made = {}
    for sequential in (False, True):
        torch.manual_seed(0)
        made[sequential] = Student(Design(slots=4, rank=2, sequential=sequential), TARGET.config)
    hidden = torch.randn(3, TARGET.config.hidden)
    assert torch.equal(made[True].readout(hidden, torch.randn_like(hidden)), hidden)
    for name, value in made[False].state_dict().items():
        assert torch.equal(made[True].state_dict()[name], value)
    with pytest.raises(BenchError, match="sequential_width and beta must be positive"):
        Options(sequential=True, sequential_width=0)


# Every token follows from the one before it, but for a coin: what a slot can only guess, the readout is told.
COINS = tiny.bigram(torch.randn(12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3)
LESSONS = {"o": (Lesson, {}), "c": (Lesson, {"kind": "c"}), "control": (Control, {}),
           "no teacher": (Lesson, {"kind": "c", "teacher": False})}


def written(batch, length, law=Law(1.0)):  # noqa: B008
    """Texts of that target."""
    torch.manual_seed(0)
    tokens = torch.randint(12, (batch, 1))
    for _ in range(length - 1):
        fresh = pick(torch.randint(1 << 30, (batch,)), law(COINS.logits(tokens)[:, -1]))
        tokens = torch.cat([tokens, fresh[:, None]], 1)
    return tokens


@cache
def taught(name, sequential):
    """A lesson after a short training on the first texts."""
    kind, options = LESSONS[name]
    torch.manual_seed(0)
    shape = Options(slots=4, rank=4, groups=8, sequential=sequential, sequential_width=32, **options)
    lesson, texts = kind(SimpleNamespace(model=COINS, config=COINS.config), Law(1.0), shape), written(96, 24)
    optimizer = torch.optim.Adam(lesson.module.parameters(), 1e-2)
    for step in range(80):
        torch.manual_seed(step)
        optimizer.zero_grad()
        lesson.loss(Batch.whole(texts[torch.randint(64, (16,))])).backward()
        optimizer.step()
    return lesson


@pytest.mark.parametrize("name", LESSONS)
def test_students_that_see_the_token_before_accept_more(name):
    """The same training with and without; on texts that neither has seen."""
    accepted, held_out = {}, Batch.whole(written(96, 24)[64:])
    for sequential in (False, True):
        lesson = taught(name, sequential)
        torch.manual_seed(0)
        lesson.measure([held_out])
        tokens, places = lesson.acceptance(held_out)[0].tolist()
        accepted[sequential] = tokens / places
    assert accepted[True] > accepted[False] + 0.2


@pytest.mark.parametrize("law", [Law(1.0), Law()], ids=["sampled", "greedy"])
@pytest.mark.parametrize("name", ["o", "c", "control"])
def test_what_is_measured_is_what_drafting_one_by_one_gives(name, law):
    """Given the text's own tokens a student shows what it would on its own drafts, as far as anything depends on it."""
    student, pack = taught(name, True).module, Batch.whole(written(8, 14, law))
    slots, known, ahead = student.design.slots, student.kind.known, student.kind.ahead
    torch.manual_seed(3)
    calibrate(student, COINS, [pack], law, groups=9)
    for way in student.ways(law):
        torch.manual_seed(3)
        noise, drafts, right = explain(COINS, read(COINS, pack), law).noise, [], []
        for row, some in enumerate(random_starts(pack, 9).tolist()):
            for start in (start for start in some if start + slots + ahead <= pack.tokens.shape[1]):
                whole = range(start + 1, start + slots + ahead)  # tokens of the group: first the target's own
                text = pack.tokens[row, whole].tolist()
                u = torch.cat([noise[row, whole], noise.new_full((known,), NONE)])  # one-hot ones look no farther
                tokens, scores = by_hand(student, COINS, pack.tokens[row, : start + 1], text[0], u,
                                         partial(draw, way, law=law, blur=student.blur))
                drafts.append(scores)
                right.append([a == b for a, b in zip(tokens, text[1:], strict=True)])
        expected = Confidence(slots, known)
        expected.measure(Draft(torch.tensor(right).long(), torch.tensor(drafts)), torch.tensor(right))
        for quantity in ("runs", "slope", "intercept"):
            found = getattr(student.confidence[way], quantity)
            assert torch.allclose(found, getattr(expected, quantity), atol=1e-3), quantity
        assert 0.2 < expected.runs[-1] < slots - known + (law == Law())  # greedy texts may be known to the end


def test_without_a_teacher_noise_is_read_off_the_corrected_laws():
    """Those of which the text's token before is a part, as of what is trained and drafted from."""
    student, pack, slots = taught("no teacher", True).module, Batch.whole(written(4, 12)), 4
    starts = torch.tensor([[0, 3, 6]]).repeat(4, 1)
    voice = Voice(COINS, student.embed, student.adapter, student.corrected)
    noise = own_noise(voice, read(COINS, pack), starts, slots, Law(1.0)).noise
    for row, group in product(range(4), range(3)):
        start = int(starts[row, group])
        text, u = pack.tokens[row, start + 1 : start + 1 + slots], noise[row, group]
        hidden = head_inputs(student, COINS, pack.tokens[row, : start + 1], u)
        logits = COINS.score(student.readout(hidden[:-1], COINS.embedding[text[:-1]]))
        assert torch.equal(pick(u[1:], Law(1.0)(logits)), text[1:])
