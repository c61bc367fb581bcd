"""Completions and losses against slow, obvious versions: every text alone, every completion alone, sums written out."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

import ptp.completions
from bench.blur import WIDTHS, Held
from bench.cache import Cache
from bench.forward import PlainForward, prefill
from bench.losses import distil, of_tokens
from bench.packing import PADDING, Batch
from bench.reading import read
from bench.sampling import Law, pick
from bench.tree import Tree
from ptp.bins import Drawn
from ptp.calibration import calibrate
from ptp.completions import Completions, at, complete, explain, random_starts, under
from ptp.confidence import Confidence
from ptp.draft import Draft
from ptp.kinds import KINDS
from ptp.losses import Voice, own_noise
from ptp.noise_embedding import NONE, NoiseDesign
from ptp.student import Design, Student

MODEL = tiny.transformer(seed=4)
TEXTS = [[7, 5, 0], [4, 9], [10, 1, 3]]  # lengths of the texts in each row; the rest is padding
SLOTS = 4


def pack_of(lengths=TEXTS, width=15):
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (len(lengths), width), generator=random)
    texts = torch.full_like(tokens, PADDING)
    for row, sizes in zip(texts, lengths, strict=True):
        row[: sum(sizes)] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    no = torch.zeros_like(texts, dtype=torch.bool)
    return Batch(tokens, texts, ~no, no)


PACK = pack_of()


def texts_of(pack):
    """(row, first index, end) of every text."""
    for row, ids in enumerate(pack.texts.tolist()):
        for text in set(ids) - {PADDING}:
            yield row, ids.index(text), ids.index(text) + ids.count(text)


def student(kind="o", informed=True):
    torch.manual_seed(1)
    made = Student(Design(kind, SLOTS, rank=3, informed=informed, blurred=True), tiny.CONFIG).double()
    for parameter in made.adapter.parameters():
        parameter.data = torch.randn_like(parameter) / 4
    return made


def test_a_packed_pass_is_every_text_alone():
    context = read(MODEL, PACK)
    for row, first, end in texts_of(PACK):
        alone = MODEL.logits(PACK.tokens[row : row + 1, first:end])
        assert torch.allclose(MODEL.score(context.hidden[row : row + 1, first:end]), alone, atol=1e-5)
        assert PACK.positions()[row, first:end].tolist() == list(range(end - first))


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("law", [Law(1.0), Law(0.7, top_k=5), Law(3.0, top_p=0.9)])
def test_noise_explains_the_texts(law, chunk, monkeypatch):
    monkeypatch.setattr(ptp.completions, "CHUNK", chunk)
    drawn = explain(MODEL, read(MODEL, PACK), law, beta=0.4)
    explained = excluded = 0
    for row, first, end in texts_of(PACK):
        choices = law(MODEL.logits(PACK.tokens[row : row + 1, first:end])[0])
        assert not drawn.explained[row, first]
        for place in range(first + 1, end):
            one = type(choices)(choices.ids[place - first - 1], choices.mass[place - first - 1])
            token, mass = PACK.tokens[row, place], one.dense(12)[PACK.tokens[row, place]]
            assert drawn.explained[row, place] == (mass > 0)
            if mass > 0:
                assert pick(drawn.noise[row, place], one) == token
            explained, excluded = explained + int(mass > 0), excluded + int(mass == 0)
    assert explained > 10
    assert (excluded > 0) == (law != Law(1.0))
    assert not drawn.explained[PACK.texts == PADDING].any()


def test_greedy_texts_have_no_noise():
    drawn = explain(MODEL, read(MODEL, PACK), Law())
    assert (drawn.noise == NONE).all()
    for row, first, end in texts_of(PACK):
        best = MODEL.logits(PACK.tokens[row : row + 1, first:end])[0].argmax(-1)
        assert torch.equal(drawn.explained[row, first + 1 : end], PACK.tokens[row, first + 1 : end] == best[:-1])


def test_noise_explains_sampled_tokens_and_greedy_ones_need_none():
    greedy = (torch.arange(15) % 3 == 0).expand_as(PACK.tokens)
    drawn = explain(MODEL, read(MODEL, replace(PACK, greedy=greedy)), Law(0.7, top_k=5))
    assert torch.equal(drawn.noise == NONE, greedy)
    assert torch.equal(drawn.explained[greedy], PACK.follows()[greedy])  # whatever the arg max
    plain = explain(MODEL, read(MODEL, PACK), Law(0.7, top_k=5)).explained
    assert torch.equal(drawn.explained[~greedy], plain[~greedy])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_group_changes_its_law(kind):
    """A group is valid up to the first token of the other kind."""
    greedy = torch.arange(15).expand_as(PACK.tokens) // 4 % 2 == 0
    noise = torch.where(greedy, NONE, 5)
    drawn = Drawn(noise, PACK.follows())
    made = Completions.of(PACK, kind, all_starts(), under(drawn, all_starts(), SLOTS))
    usual = Completions.of(PACK, kind, all_starts(), under(Drawn(torch.full_like(noise, 5), PACK.follows()),
                                                           all_starts(), SLOTS))
    for row, start, j in usual.valid.nonzero().tolist():
        kinds = set(greedy[row, start + 1 : start + 2 + j].tolist())
        assert made.valid[row, start, j] == (len(kinds) == 1)
        assert made.silent[row, start] == greedy[row, start + 1]
    assert 0 < made.valid.sum() < usual.valid.sum()


def some_noise():
    """Noise for every token; one in six is unexplained."""
    random = torch.Generator().manual_seed(2)
    explained = torch.rand(PACK.tokens.shape, generator=random) > 1 / 6
    return Drawn(torch.randint(1 << 30, PACK.tokens.shape, generator=random), explained & PACK.follows())


def all_starts():
    """Every index of every row: also those in padding and at the ends of texts."""
    return torch.arange(PACK.tokens.shape[1]).repeat(len(PACK.tokens), 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_indices_are_those_of_the_definition(kind):
    drawn = some_noise()
    made = Completions.of(PACK, kind, all_starts(), under(drawn, all_starts(), SLOTS))
    ends = {(row, at): end for row, first, end in texts_of(PACK) for at in range(first, end)}
    firsts = {(row, at): first for row, first, end in texts_of(PACK) for at in range(first, end)}
    usable = 0
    for (row, start), end in ends.items():
        for j in range(SLOTS):
            label = start + 1 + j if kind.name == "o" else start + 2 + j
            fine = label < end and all(drawn.explained[row, start + 1 : start + 2 + j])
            assert made.valid[row, start, j] == fine
            position = start - firsts[row, start] + (j if kind.name == "o" else j + 1)
            assert made.positions(PACK)[row, start, j] == position
            if fine:
                assert made.noise[row, start, j] == drawn.noise[row, start + 1 + j]
                assert made.tokens(PACK)[row, start, j] == PACK.tokens[row, label]
            usable += fine
    assert usable > 20
    assert not made.valid[PACK.texts == PADDING].any()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_slot_predicts_what_decoding_would_be_given(kind):
    pack = pack_of()
    pack.said[:, 2::4] = False
    made = Completions.of(pack, kind, all_starts(), under(some_noise(), all_starts(), SLOTS))
    assert at(pack.said, made.labels)[made.valid].all()
    usual = Completions.of(PACK, kind, all_starts(), under(some_noise(), all_starts(), SLOTS))
    assert 0 < made.valid.sum() < usual.valid.sum()
    random = random_starts(pack, 200)
    assert pack.said.gather(1, random + 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_completion_is_that_completion_alone(kind):
    """The other way round: each text prefix in the engine's cache, each group as slots under its last token."""
    one, drawn = student(kind), some_noise()
    made = Completions.of(PACK, one.kind, all_starts(), under(drawn, all_starts(), SLOTS))
    hidden = complete(MODEL, one.adapter, read(MODEL, PACK), made, one.embed(made.noise))
    for row, first, end in texts_of(PACK):
        for start in range(first, end):
            logits = alone(one, PACK.tokens[row, first : start + 1], made.noise[row, start])
            assert torch.allclose(MODEL.score(hidden[row, start]), logits, atol=1e-5)


def alone(one, prefix, noise):
    """Logits of one group of slots that hangs from the last token of `prefix`, by the engine's own forward."""
    cache, slots = Cache(MODEL.config, 1, 40, MODEL.norm), len(noise)
    prefill(MODEL, cache, prefix[None, :-1])
    tree = Tree(prefix[None, -1:], torch.arange(slots + 1)[None].sub(1).clamp(min=0), depth=0,
                slots=one.embed(noise)[None], slot_shift=one.kind.known)
    return PlainForward(MODEL, cache)(tree, torch.tensor([len(prefix) - 1]), one.adapter).slot_logits[0]


def test_starts_are_followed_by_a_token_of_their_text():
    torch.manual_seed(0)
    starts = random_starts(PACK, 500)
    allowed = {(row, at) for row, first, end in texts_of(PACK) for at in range(first, end - 1)}
    assert {(row, at) for row, some in enumerate(starts.tolist()) for at in some} == allowed


def test_own_noise_is_read_off_the_own_law_position_by_position():
    """Each `u` lies in its token's bin under the law that the slots before it give, each group run by the engine."""
    one = student("c")
    starts = torch.tensor([[0, 2, 7, 8], [4, 5, 0, 12], [9, 3, 13, 1]])
    torch.manual_seed(5)
    drawn = own_noise(Voice(MODEL, one.embedding), read(MODEL, PACK), starts, SLOTS, Law(1.0))
    made = Completions.of(PACK, one.kind, starts, drawn)
    bare, checked = student("c"), 0
    for parameter in bare.adapter.parameters():
        parameter.data.zero_()  # without a teacher the model itself is trained: there is no adapter
    for row, first, end in texts_of(PACK):
        for group, start in enumerate(starts[row].tolist()):
            if not first <= start < end:
                continue
            prefix = PACK.tokens[row, first : start + 1]
            logits = torch.cat([MODEL.logits(prefix[None])[0, -1:], alone(bare, prefix, drawn.noise[row, group])])
            for j in range(min(SLOTS, end - start - 1)):
                choices = Law(1.0)(logits[j])
                assert pick(drawn.noise[row, group, j], choices) == PACK.tokens[row, start + 1 + j]
                checked += 1
    assert checked > 20
    assert made.valid.sum() > 10


def test_a_student_learns_to_listen_and_the_target_stays():
    """A target that forgets what it said: its next token is a step function of `u` alone."""
    target = tiny.transformer(seed=6, spread=1.0)
    target.embedding.data[:] = target.embedding.data[0].clone()
    before = [p.clone() for p in target.parameters()]
    right = {informed: trained(target, informed) for informed in (True, False)}
    assert right[False] < 0.45 < 0.75 < right[True]
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


def trained(target, informed, steps=60):
    """Share of slots that predict their token, at the end of a short training."""
    torch.manual_seed(0)
    design = Design("o", slots=2, rank=2, informed=informed, noise=NoiseDesign("thresholds"))
    one = Student(design, target.config).double()
    optimizer = torch.optim.Adam([*one.embedding.parameters(), *one.adapter.parameters()], 5e-2)
    right = []
    for step in range(steps):
        pack = Batch.whole(sampled(target, 12, 10, step))
        context, starts = read(target, pack), random_starts(pack, 8)
        made = Completions.of(pack, one.kind, starts, under(explain(target, context, Law(1.0)), starts, 2))
        hidden = complete(target, one.adapter, context, made, one.embed(made.noise))
        optimizer.zero_grad()
        distil(hidden.flatten(0, 2), target, of_tokens(made.tokens(pack).flatten()), made.valid.flatten()).backward()
        optimizer.step()
        correct = target.score(hidden).argmax(-1) == made.tokens(pack)
        right.append((correct & made.valid).sum() / made.valid.sum())
    return sum(right[-10:]) / 10


def sampled(target, batch, length, seed, law=Law(1.0)):  # noqa: B008
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(12, (batch, 1), generator=random)
    for _ in range(length - 1):
        u = torch.randint(1 << 30, (batch,), generator=random)
        tokens = torch.cat([tokens, pick(u, law(target.logits(tokens)[:, -1]))[:, None]], 1)
    return tokens


def test_confidence_is_measured_and_conditional():
    """Scores whose truth is known: the second place is right with another chance once the first was."""
    torch.manual_seed(0)
    score = torch.randn(20000, 2)
    first = torch.rand(20000) < torch.sigmoid(2 * score[:, 0] - 1)
    second = torch.rand(20000) < torch.where(first, torch.sigmoid(0.5 * score[:, 1] + 1), 0.01)
    confidence = Confidence(slots=3, known=1)
    confidence.measure(Draft(torch.zeros(20000, 2), score), torch.stack([first, second], 1))
    assert confidence.slope.tolist() == pytest.approx([2, 0.5], abs=0.1)
    assert confidence.intercept.tolist() == pytest.approx([-1, 1], abs=0.1)
    one, both = float(first.float().mean()), float((first & second).float().mean())
    assert confidence.runs.tolist() == pytest.approx([0, 0, one, one + both])
    assert confidence(score[:4]).shape == (4, 2)


@pytest.mark.parametrize("right", [True, False])
def test_places_that_are_always_right_or_wrong_stay_finite(right):
    confidence = Confidence(slots=3, known=0)
    confidence.measure(Draft(torch.zeros(50, 3), torch.randn(50, 3)), torch.full((50, 3), right))
    chance = confidence(torch.zeros(3))
    assert torch.isfinite(confidence.slope).all()
    assert chance[0] > 0.99 if right else chance[0] < 0.01


@pytest.mark.parametrize("law", [Law(1.0), Law()], ids=["sampled", "greedy"])
@pytest.mark.parametrize(("kind", "informed"), [("o", True), ("c", True), ("o", False), ("c", False)])
def test_calibration_counts_what_drafting_gets_right(kind, informed, law):
    """Every whole group drafted again, alone: the runs are theirs."""
    one = student(kind, informed)
    texts = [sampled(MODEL, 6, 14, seed, law) for seed in (1, 2)]
    torch.manual_seed(3)
    calibrate(one, MODEL, map(Batch.whole, texts), law, groups=9)
    for way in one.ways(law):
        torch.manual_seed(3)
        guessed = partial(GUESSES[way], width=one.blur)
        runs = [run for text in texts for run in runs_by_hand(one, Batch.whole(text), law, guessed)]
        assert len(runs) > 30
        expected = [sum(min(run, max(j - one.kind.known, 0)) for run in runs) / len(runs) for j in range(SLOTS + 1)]
        assert one.confidence[way].runs.tolist() == pytest.approx(expected)
        assert expected[-1] > 0


@pytest.mark.parametrize("informed", [True, False])
def test_the_width_of_the_longest_runs_is_kept(informed):
    one, text, law, mean = student("c", informed), sampled(MODEL, 6, 14, 1, Law(1.0)), Law(1.0), {}
    for width in WIDTHS:
        torch.manual_seed(3)
        runs = list(runs_by_hand(one, Batch.whole(text), law, partial(GUESSES["blurred"], width=width)))
        mean[width] = sum(runs) / len(runs)
    torch.manual_seed(3)
    calibrate(one, MODEL, [Batch.whole(text)], law, groups=9)
    assert one.blur == pytest.approx(max(mean, key=mean.get))
    assert float(one.confidence["blurred"].runs[-1]) == pytest.approx(max(mean.values()))
    assert min(mean.values()) < max(mean.values())


GUESSES = {  # a token by each way of drawing: noise, logits, law, width
    "argmax": lambda u, logits, law, width: logits.argmax(),
    "greedy": lambda u, logits, law, width: logits.argmax(),
    "pick": lambda u, logits, law, width: pick(u, law(logits)),
    "blurred": lambda u, logits, law, width: Held.of(u, law(logits), width).ids,
}


def runs_by_hand(one, pack, law, guessed):
    """Leading right drafts of every whole group, with the random numbers that calibration drew."""
    drawn, starts = explain(MODEL, read(MODEL, pack), law), random_starts(pack, 9)
    for row, some in enumerate(starts.tolist()):
        for start in some:
            if start + SLOTS + one.kind.ahead > pack.tokens.shape[1]:
                continue
            logits = alone(one, pack.tokens[row, : start + 1], drawn.noise[row, start + 1 : start + 1 + SLOTS])
            run, wrong = 0, False
            for j in range(one.kind.known, SLOTS):
                label = start + one.kind.ahead + j
                guess = guessed(drawn.noise[row, label], logits[j], law)
                wrong = wrong or bool(guess != pack.tokens[row, label])
                run += not wrong
            yield run
