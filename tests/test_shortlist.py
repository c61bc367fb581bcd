"""Shortlists: which ids are kept, that rows of the cut head come back as these ids, and that no text changes."""

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from math import ceil
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch
from test_distribution import GRID, ROOT, TARGETS, joint_law, product_law
from test_packing import texts

from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from baselines.independent import Independent
from baselines.medusa import Heads, Medusa, candidates
from baselines.medusa import Settings as MedusaSettings
from bench import zoo
from bench.__main__ import main
from bench.drafters import Card, quantised, read, restored, save
from bench.errors import BenchError
from bench.methods import lesson
from bench.noise import NoiseKey
from bench.packing import Reader, packed
from bench.reading import read as reading
from bench.sampling import MASS_BITS, NOISE_BITS, Law, pick
from bench.sequences import Prompt, Sequences
from bench.shortlist import Head, Shortlist, coverage, enlist, option
from bench.texts import Corpus, Origin, Shard, Text, shard_path
from bench.train import begun
from bench.trainer import Plan, Trainer
from bench.verify import Trial, reject
from ptp.calibration import attempt
from ptp.decoding import PTP

TARGET = tiny.transformer(seed=1)
IDS = [1, 2, 5, 6, 8, 11]  # of 12; no row of the cut head has the number of its id
LAW = Law(0.7, top_k=50)
TINY = zoo.load("tiny")


def filled(module, ids=IDS):
    """A drafter whose shortlist holds these ids."""
    module.shortlist = Shortlist(len(ids))
    module.shortlist.ids.copy_(torch.tensor(ids))
    return module


def cut(model, ids=IDS):
    """A draft model that has only these rows of its head."""
    model.head, model.listed = torch.nn.Parameter(model.head[ids], requires_grad=False), torch.tensor(ids)
    return model


def text(ids, answer=0, **more):
    return Text(np.array(ids, np.int32), (0, 0), answer, **more)


def test_answers_decide_and_of_equals_the_smaller_ids():
    some = [text([9, 9, 9, 7, 3, 7], 3), text([4, 4, 8, 8, 5, 2], 4, earlier=((0, 1), (1, 3)))]  # 7 3 7, 4 8, 5 2
    for size, wanted in ((1, [7]), (3, [2, 3, 7]), (5, [2, 3, 4, 5, 7]), (8, [0, 1, 2, 3, 4, 5, 7, 8])):
        module = filled(torch.nn.Module(), list(range(size)))
        enlist(module, some)
        assert module.shortlist.ids.tolist() == wanted
    assert coverage(module, [text([7, 7, 9, 1], 1)]) == {"covered": round(2 / 3, 5)}


def test_without_a_shortlist_nothing_changes():
    module = torch.nn.Module()
    module.shortlist = Shortlist()
    enlist(module, [text([1, 2])])
    assert coverage(module, [text([1, 2])]) == module.state_dict() == option(0, 12) == option(12, 12) == {}
    head = module.shortlist.head(TARGET)
    assert head.weight is TARGET.head
    assert (head.ids, head.bytes) == (None, 0)
    with pytest.raises(BenchError, match="shortlist must be 0"):
        option(-1, 12)


def test_a_cut_head_is_the_head_with_all_other_ids_ruled_out():
    head, hidden = filled(torch.nn.Module()).shortlist.head(TARGET), torch.randn(50, 16, dtype=torch.float64)
    whole = masked(TARGET.score(hidden))
    assert torch.allclose(head.score(hidden), whole[:, IDS])
    assert head.bytes == 6 * 16 * 8
    for law in tiny.LAWS.values():
        noise = torch.randint(1 << 30, (50,))
        assert torch.equal(head.named(pick(noise, law(head.score(hidden)))), pick(noise, law(whole)))


def masked(logits):
    """Logits of all ids with only those of the list left possible."""
    out = torch.full_like(logits, -torch.inf)
    out[..., IDS] = logits[..., IDS]
    return out


def test_heads_rank_the_ids_of_the_list():
    heads, hidden = filled(tiny.random_heads(TARGET)), torch.randn(5, 16, dtype=torch.float64)
    best = candidates(heads.shortlist.head(TARGET), heads, hidden)
    for head in range(3):
        logits = masked(TARGET.score(heads(hidden, head)))
        assert torch.equal(best[:, head], logits.argsort(-1, descending=True)[:, :4])


class Noted(PTP):
    """Notes what is drafted, which has to be what the cut law gives to the noise."""

    seen: ClassVar[set[int]] = set()

    def guess(self, said, positions):
        draft, before = super().guess(said, positions), self.sequences.root_tokens()
        for j in range(said.shape[1]):
            whole = masked(TARGET.score(self.drafter.corrected(TARGET, said[:, j], before[:, 0])))
            noise = self.sequences.noise.at("target", positions)[:, j]
            expected = pick(noise, replace(self.law, top_p=1.0)(whole)) if self.way == "pick" else whole.argmax(-1)
            assert torch.equal(draft.tokens[:, j], expected)
            before = draft.tokens[:, j : j + 1]
            Noted.seen |= set(expected.tolist())
        return draft


MAKES = {
    "draft_model": lambda: partial(DraftModel, settings=DraftSettings(draft="-", k=3),
                                   drafter=cut(tiny.perturbed(TARGET, 0.15))),
    "medusa": lambda: partial(Medusa, settings=MedusaSettings(rows=12), drafter=filled(tiny.random_heads(TARGET))),
    "ptp": lambda: partial(Noted, settings=PTP.Settings(k=4, slots=12),
                           drafter=filled(tiny.random_student(TARGET, sequential=True))),
    "categorical": lambda: partial(Noted, settings=PTP.Settings(k=4, slots=12),
                                   drafter=filled(tiny.random_student(TARGET, "c", sequential=True))),
    "independent": lambda: partial(Independent, settings=Independent.Settings(k=4, slots=12),
                                   drafter=filled(tiny.random_student(TARGET, informed=False, sequential=True))),
}


@pytest.mark.parametrize("name", MAKES)
def test_the_text_is_that_of_autoregressive_decoding(name):
    make, telling = MAKES[name](), 0
    for law in tiny.LAWS.values():
        work = [*tiny.groups(7, 6, 4), *tiny.groups(8, 2, 4)]
        drafted = tiny.decode(make, TARGET, law, work)
        plain = tiny.decode(tiny.registered("autoregressive", TARGET), TARGET, law, work)
        assert [one.tokens for one in drafted] == [one.tokens for one in plain]
        assert any(set(one.tokens) - set(IDS) for one in plain)  # also where ids that are never drafted are said
        telling += sum(one.tells for one in drafted)
    assert telling > 30
    assert Noted.seen <= set(IDS)


# The cycle says every second id of a larger vocabulary; the others, ruled out, are not on the list.
SAID = list(range(1, 16, 2))
CYCLE = tiny.bigram(60.0 * torch.eye(16, dtype=torch.float64).roll(2, 1))


def knowing():
    """A sequential student whose readout says what the embedding of the token before says (see test_ptp_sequential)."""
    student, one, none = tiny.random_student(CYCLE, sequential=True), torch.eye(16), torch.zeros(16, 16)
    student.readout.narrow.data = torch.cat([torch.cat([none, one], 1), torch.cat([none, -one], 1)]).double()
    student.readout.widen.data = 1000 * torch.cat([one, -one], 1).double()
    for confidence in student.confidence.values():
        confidence.slope.zero_()
        confidence.intercept.fill_(20)
    return filled(student, SAID)


def perfect_heads():
    """Head i knows the token i + 1 places on."""
    heads = Heads(16, 4, ranks=2).double()
    for shift, matrix in enumerate(heads.matrices, 1):
        matrix.data = 3 * torch.eye(16, dtype=torch.float64).roll(2 * shift, 0)
    heads.accuracy.copy_(torch.tensor([1.0, 0.0]))
    return filled(heads.requires_grad_(False), SAID)


ORACLES = {
    "draft_model": partial(DraftModel, settings=DraftSettings(draft="-", k=4),
                           drafter=cut(tiny.perturbed(CYCLE, 0), SAID)),
    "medusa": partial(Medusa, settings=MedusaSettings(rows=5), drafter=perfect_heads()),
    "ptp": partial(PTP, settings=PTP.Settings(k=4, slots=5), drafter=knowing()),
}


@pytest.mark.parametrize("law", [Law(), Law(1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_perfect_drafter_is_perfect_with_what_it_needs_on_its_list(name, law):
    work = [tiny.Group(tuple(Prompt([(i + 2 * j) % 16 for j in range(length)], NoiseKey(0, i))
                             for i, length in ((1, 9), (3, 12), (5, 17))))]
    for one in tiny.decode(ORACLES[name], CYCLE, law, work, 30):
        assert set(one.tokens) <= set(SAID)
        assert one.steps == (ceil(30 / 5) if name == "draft_model" else 1 + ceil(29 / 5))


# `reject`: every number on the grid, through the method itself. Three of four ids may be drafted.
LISTED = [0, 2, 3]
CUT_DRAFTS = [[8, 0, 4, 4], [4, 0, 8, 4], [16, 0, 0, 0], [0, 0, 8, 8]]


def one_step(target, numbers):
    """A step of one draft by `DraftModel` under these numbers for draft, test and residual."""
    sequences = Sequences(tiny.bigram(2.0 * torch.tensor(target)), len(numbers), 4, 2)
    for place, name in enumerate(("draft", "test", "residual")):
        sequences.noise.streams[name][:] = numbers[:, place : place + 1]
    sequences.tokens[:] = ROOT
    draft = cut(tiny.bigram(2.0 * torch.tensor(CUT_DRAFTS)), LISTED)
    tree = DraftModel(sequences, tiny.exact, DraftSettings(draft="-", k=1, verify="reject"), draft).propose(0)
    assert (tree.draft_mass[:, 0] == torch.tensor(CUT_DRAFTS[ROOT]) << (MASS_BITS - 4)).all()
    assert set(tree.tokens[:, 1].tolist()) == set(LISTED)
    logits = 2.0 * torch.tensor(target)[tree.tokens]
    return reject(Trial(tree, logits, sequences.root, tiny.exact, sequences.noise))


@pytest.mark.parametrize("name", TARGETS)
def test_over_all_noise_rejection_follows_the_target_exactly(name):
    counts, (excess, square, variance) = joint_law(TARGETS[name], 1, one_step)
    assert (counts == product_law(TARGETS[name], 1)).all()
    assert excess == 0
    assert square == variance > 0


def test_a_law_over_rows_instead_of_ids_would_show(monkeypatch):
    """The planted mistake: the tokens have their ids, the draft's law has not."""
    named = Head.named
    monkeypatch.setattr(Head, "named", lambda head, rows: rows if rows.dim() == 3 else named(head, rows))
    monkeypatch.setattr("baselines.draft_model.pick", lambda noise, law: torch.tensor(LISTED)[pick(noise, law)])
    with pytest.raises(AssertionError):
        one_step(TARGETS["another law"], torch.cartesian_prod(*[torch.arange(16)] * 3) * GRID)


# Files, training and what is measured.
OPTIONS = {"medusa": "medusa:heads=2:shortlist=24", "draft_model": "draft_model:layers=1:k=2:shortlist=24",
           "ptp": "ptp:slots=4:rank=8:groups=8:sequential=true:sequential_width=16:shortlist=24"}
LOADS = {"medusa": lambda file: (Medusa, MedusaSettings(rows=8, weights=file)),
         "draft_model": lambda file: (DraftModel, DraftSettings(draft=file, k=2)),
         "ptp": lambda file: (PTP, PTP.Settings(k=3, slots=9, weights=file))}
FLAGS = ("--target", "tiny", "--rows", "2", "--length", "64", "--device", "cpu")


@cache
def own():
    """Texts that the target wrote, after one word that it was given."""
    torch.manual_seed(0)
    tokens = torch.randint(256, (120, 1))
    for _ in range(30):
        fresh = pick(torch.randint(1 << NOISE_BITS, (120,)), LAW(TINY.model.logits(tokens)[:, -1]))
        tokens = torch.cat([tokens, fresh[:, None]], 1)
    return [text(ids.numpy(), 1, greedy=i >= 80) for i, ids in enumerate(tokens)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Those texts, some of which are taken for greedy ones."""
    folder = tmp_path_factory.mktemp("data")
    for number, law in enumerate((LAW, LAW, Law())):
        Shard(own()[40 * number : 40 * number + 40], Origin("tiny", "tiny", law, {})).save(shard_path(folder, number))
    return folder


def most_said(data):
    """By hand: the 24 words that answers of texts to learn from say most."""
    corpus = Corpus.read(data, "tiny", greedy=False)
    count = Counter(int(token) for one in corpus.seen for begin, end in one.answers for token in one.ids[begin:end])
    return sorted(sorted(count, key=lambda token: (-count[token], token))[:24]), corpus


@pytest.mark.parametrize("name", ["medusa", "draft_model", "ptp"])
def test_what_is_trained_with_a_list_keeps_it_and_drafts_from_it(name, data, tmp_path):
    expected, corpus = most_said(data)
    ended = ["train", OPTIONS[name], "--data", str(data), *FLAGS, "--steps", "4"]
    assert main([*ended, "--out", str(tmp_path / "a")]) == 0
    file = tmp_path / "a" / "drafter.safetensors"
    card, stored = read(file)
    assert stored["shortlist.ids"].dtype == torch.uint16
    assert stored["shortlist.ids"].tolist() == expected != list(range(24))
    said = [token for one in corpus.held_out for begin, end in one.answers for token in one.ids[begin:end].tolist()]
    assert card.notes["covered"] == pytest.approx(sum(token in expected for token in said) / len(said), abs=1e-5)
    kind, settings = LOADS[name](str(file))
    make = partial(kind, settings=settings, drafter=kind.load(settings, TINY))
    method = make(Sequences(TINY.model, 1, 8, 24), LAW)
    assert method.head.ids.tolist() == expected
    assert method.head.weight.shape == (24, TINY.config.hidden)
    work = tiny.groups(1, 2, 2)
    plain = tiny.decode(tiny.registered("autoregressive", TINY.model), TINY.model, LAW, work)
    assert [t.tokens for t in tiny.decode(make, TINY.model, LAW, work)] == [t.tokens for t in plain]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_training_and_a_start_keep_the_list(name, data, tmp_path):
    """Even where the texts would give another one."""
    one, other = lesson(OPTIONS[name], TINY, LAW), lesson(OPTIONS[name], TINY, LAW)
    reader = Reader(texts(20), 2, 64, 0)
    enlist(one.module, [text(range(100, 140))])
    trainers = [Trainer(pupil, reader, reader, Plan(60, 2)) for pupil in (one, other)]
    trainers[0].save(tmp_path, {})
    trainers[1].restore(tmp_path, {})
    assert other.module.shortlist.ids.tolist() == list(range(100, 124))
    card = Card(name, one.options, "tiny", "tiny", "", LAW, 1, 1.0, 1.0, 1.0)
    save(tmp_path / "drafter.safetensors", one.module, card)
    fresh = lesson(OPTIONS[name], TINY, LAW)
    begun(fresh, tmp_path / "drafter.safetensors", name, TINY)
    assert fresh.module.shortlist.ids.tolist() == list(range(100, 124))
    with pytest.raises(BenchError, match="another shape"):
        begun(lesson(OPTIONS[name].replace("=24", "=0"), TINY, LAW), tmp_path / "drafter.safetensors", name, TINY)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_without_a_list_is_what_it_was(name, tmp_path):
    """Its card and its tensors name none, and all ids may be drafted."""
    one = lesson(OPTIONS[name].replace("=24", "=0"), TINY, LAW)
    assert "shortlist" not in repr(one.options) + repr(list(one.module.state_dict()))
    assert one.options == lesson(OPTIONS[name].replace("=24", "=100000"), TINY, LAW).options
    save(tmp_path / "x.safetensors", one.module, Card(name, one.options, "tiny", "tiny", "", LAW, 1, 1.0, 1.0, 1.0))
    kind, settings = LOADS[name](str(tmp_path / "x.safetensors"))
    method = kind(Sequences(TINY.model, 1, 8, 24), LAW, settings, kind.load(settings, TINY))
    assert method.head.ids is None
    assert method.head.weight.shape == TINY.model.head.shape


def test_ids_survive_the_disk_whatever_their_size():
    for last, kind in ((65535, torch.uint16), (65536, torch.int32)):
        stored = quantised({"ids": torch.tensor([0, 40000, last])})
        assert stored["ids"].dtype == kind
        assert restored(stored)["ids"].tolist() == [0, 40000, last]


def test_a_draft_of_all_layers_is_right_where_the_target_says_what_is_listed():
    one = lesson("draft_model:layers=2:k=1:shortlist=24", TINY, Law(0.7))
    enlist(one.module, [text([3 * i for i in range(24)])])
    batch = packed([texts(4)[:2], texts(4)[2:]], 2, 64)
    best = TINY.model.score(reading(TINY.model, batch).hidden).argmax(-1)
    silent = batch.silent(Law(0.7), 1) & batch.followed(0)
    right = torch.isin(best[silent], torch.arange(24) * 3)
    tokens, places = one.acceptance(batch)[1].tolist()
    assert places == len(right)
    assert tokens == places + right.sum()
    assert 0 < right.sum() < len(right)


def test_examinations_draft_from_the_list():
    one, batch = lesson(OPTIONS["ptp"], TINY, LAW), packed([own()[:4], own()[-4:]], 2, 128)
    for ids in (range(24), range(200, 224)):
        enlist(one.module, [text(ids)])
        tried = attempt(one.module, TINY.model, batch, LAW, 32, (0.1,))
        drafts = [trials.draft.tokens for found in tried.values() for trials in found]
        assert {token for some in drafts for token in some.flatten().tolist()} <= set(ids)
        assert sum(some.numel() for some in drafts) > 50
