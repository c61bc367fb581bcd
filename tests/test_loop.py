"""The loop and the state of a batch: kinds of steps, ends, what is left behind, what `Raw` says, and bad requests."""

from functools import partial
from typing import Any

import pytest
import tiny
import torch

from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from bench import loop
from bench.errors import BenchError
from bench.loop import Decoder, Method
from bench.methods import METHODS
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import MAX_END_IDS, Prompt, Sequences
from bench.timing import PHASES
from bench.tree import Tree, chain_parents

TARGET = tiny.transformer(seed=6)
LAW = Law(1.0)
PROMPTS = [Prompt([3], NoiseKey(1, 0)), Prompt([1, 2, 3, 4, 5], NoiseKey(1, 1)), Prompt([7, 7], NoiseKey(1, 2))]
AUTOREGRESSIVE = tiny.registered("autoregressive", TARGET)
DRAFTING = tiny.registered("draft_model", TARGET)


def texts(make, prompts, limit, end_ids=frozenset()):
    raw = tiny.decoder_of(make, TARGET, LAW, len(prompts)).decode(prompts, limit, end_ids)
    return [text.tokens for text in tiny.clipped(raw, limit, end_ids)]


class Alternating(Method):
    """Two kinds of step: one guess, then three; it writes down what it is shown."""

    rows = (2, 4)

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings, drafter)
        self.started, self.seen = 0, []

    def start(self):
        self.started += 1

    def propose(self, kind):
        n, s = self.rows[kind], self.sequences
        tokens = (s.root_tokens() + torch.arange(n)) % 12
        return Tree(tokens, chain_parents(n, s.batch, s.device), depth=n - 1)

    def observe(self, seen):
        self.seen.append((seen, self.sequences.lengths.clone()))


def test_kinds_of_steps_alternate_and_the_text_stays():
    decoder = tiny.decoder_of(Alternating, TARGET, LAW, 3)
    raw, method = decoder.decode(PROMPTS, 15, frozenset()), decoder.method
    assert isinstance(method, Alternating)
    assert raw.rows == [(2, 4)[step % 2] for step in range(len(raw.rows))]
    assert [text.tokens for text in tiny.clipped(raw, 15, frozenset())] == texts(AUTOREGRESSIVE, PROMPTS, 15)
    assert method.started == 2  # once before the capture, once for the prompts


def test_observe_sees_every_step_after_its_commit():
    decoder = tiny.decoder_of(Alternating, TARGET, LAW, 3)
    raw, method = decoder.decode(PROMPTS, 15, frozenset()), decoder.method
    assert isinstance(method, Alternating)
    before = torch.tensor([len(p.ids) for p in PROMPTS])
    assert len(method.seen) == len(raw.rows)
    for step, (seen, lengths) in enumerate(method.seen):
        assert seen.kind == step % 2
        assert seen.root.tolist() == (before - 1).tolist()
        assert seen.outcome.accepted.tolist() == raw.accepted[step]
        done = before >= torch.tensor([len(p.ids) + 15 for p in PROMPTS])
        assert lengths.tolist() == torch.where(done, before, before + seen.outcome.accepted + 1).tolist()
        before = lengths


def test_the_host_learns_of_every_step_who_is_done():
    sequences = Sequences(TARGET, 3, 64, widest=8)
    decoder = Decoder(Alternating(sequences, LAW), sequences)
    for limit in (9, 15):  # the second time, the flags of the first are still there
        raw = decoder.decode(PROMPTS, limit, frozenset())
        kept = (torch.tensor(raw.accepted) + 1).cumsum(0)
        assert torch.equal(sequences.log.done[: len(kept)], kept >= limit)
        assert kept[-2:].lt(limit).any()


def test_a_sequence_that_is_done_freezes():
    """Neither its tokens, its length nor its cached prefix change while the others go on."""
    free = texts(AUTOREGRESSIVE, PROMPTS, 20)
    first = [{token: text.index(token) for token in reversed(text)} for text in free]
    end = max(first[1], key=lambda token: min(first[0].get(token, 20), first[2].get(token, 20)) - first[1][token])
    ends = frozenset({end})
    sequences = Sequences(TARGET, 3, 64, widest=8)
    snapshots: list[Any] = []

    class Watched(Alternating):
        def propose(self, kind):
            if bool(sequences.done[1]):
                root = int(sequences.root[1])
                cached = (sequences.cache.keys[:, 1, :, :root], sequences.cache.values[:, 1, :, :root])
                snapshots.append([root, sequences.tokens[1, : root + 1].tolist(), *[t.clone() for t in cached]])
            return super().propose(kind)

    raw = Decoder(Watched(sequences, LAW), sequences).decode(PROMPTS, 20, ends)
    assert len(snapshots) >= 3
    for root, tokens, keys, values in snapshots:
        assert (root, tokens) == (snapshots[0][0], snapshots[0][1])
        assert torch.equal(keys, snapshots[0][2])
        assert torch.equal(values, snapshots[0][3])
    assert [text.tokens for text in tiny.clipped(raw, 20, ends)] == texts(AUTOREGRESSIVE, PROMPTS, 20, ends)


@pytest.mark.parametrize("make", [AUTOREGRESSIVE, DRAFTING, Alternating], ids=["autoregressive", "draft", "kinds"])
def test_a_batch_leaves_nothing_behind(make):
    """Decoding other prompts in between changes nothing."""
    decoder = tiny.decoder_of(make, TARGET, LAW, 3)
    other = [Prompt([5] * 11, NoiseKey(2, i)) for i in range(3)]
    runs = [decoder.decode(prompts, 20, ends) for prompts, ends in
            ((PROMPTS, frozenset()), (other, frozenset({1, 2, 3})), (PROMPTS, frozenset()))]
    assert runs[0].tokens == runs[2].tokens
    assert runs[0].accepted == runs[2].accepted
    assert runs[0].drafted == runs[2].drafted


def test_two_methods_share_sequences_and_the_order_does_not_matter():
    sequences = Sequences(TARGET, 3, 64, widest=8)
    decoders = [Decoder(make(sequences, LAW), sequences) for make in (AUTOREGRESSIVE, DRAFTING, Alternating)]
    found = [[text.tokens for text in tiny.clipped(decoder.decode(PROMPTS, 12, frozenset()), 12, frozenset())]
             for decoder in (*decoders, *reversed(decoders))]
    assert all(run == found[0] for run in found)


@pytest.mark.parametrize("name", METHODS)
def test_state_stays_where_it_is(name):
    """A captured step reads and writes the same memory for ever, so that state must be changed in place."""
    decoder = tiny.decoder_of(tiny.registered(name, TARGET), TARGET, LAW, 3)
    sequences = decoder.sequences

    def places():
        return [(key, value.data_ptr()) for owner in (decoder.method, sequences, sequences.log, sequences.cache)
                for key, value in vars(owner).items() if torch.is_tensor(value)]

    before = places()
    decoder.decode(PROMPTS, 15)
    assert places() == before


def test_many_methods_may_get_ready_on_the_same_sequences(monkeypatch):
    """On CUDA every program runs before it is captured; the log of so short a context has room for seven steps."""
    def run_first(works, device):
        for work in works:
            work()
        return works

    monkeypatch.setattr(loop, "recorded", run_first)
    sequences = Sequences(TARGET, 1, 4, widest=8)
    decoders = [Decoder(AUTOREGRESSIVE(sequences, LAW), sequences) for _ in range(4)]
    assert decoders[3].decode(PROMPTS[:1], 3).tokens == decoders[0].decode(PROMPTS[:1], 3).tokens


def test_what_raw_says():
    raw = tiny.decoder_of(DRAFTING, TARGET, LAW, 3).decode(PROMPTS, 15, frozenset())
    steps = len(raw.rows)
    assert list(raw.phases) == list(PHASES)
    assert all(len(times) == steps and min(times) >= 0 for times in raw.phases.values())
    assert len(raw.accepted) == len(raw.drafted) == len(raw.evidence) == steps
    assert raw.rows == [4] * steps
    assert raw.drafted == [[3] * 3] * steps
    assert not raw.evidence.any()  # `match` has none
    assert len(raw.gaps) == steps and raw.gaps[0] == 0 and min(raw.gaps[1:]) > 0
    inside = sum(raw.gaps) + sum(sum(times) for times in raw.phases.values())
    assert 0.5 * raw.wall_ms < inside <= raw.wall_ms
    assert raw.prefill_ms > 0
    for i, tokens in enumerate(raw.tokens):
        assert 15 <= len(tokens) <= 15 + 3
        given = [a[i] + 1 for a in raw.accepted]
        contributing = next(n for n in range(1, steps + 1) if sum(given[:n]) >= 15)
        assert len(tokens) == sum(given[:contributing])
    assert max(next(n for n in range(1, steps + 1) if sum(a[i] + 1 for a in raw.accepted[:n]) >= 15)
               for i in range(3)) == steps  # the batch stops with its longest


def test_end_ids_count_wherever_they_fall():
    """A drafted end id and one of several stop a sequence; without end ids the text goes on."""
    free = texts(DRAFTING, PROMPTS, 24)
    for ends in ({0}, {1, 5}, set(range(8))):
        found = texts(DRAFTING, PROMPTS, 24, frozenset(ends))
        for whole, text in zip(free, found, strict=True):
            stop = next((i + 1 for i, token in enumerate(whole) if token in ends), 24)
            assert text == whole[:stop]


def test_the_context_may_be_filled_to_the_last_token():
    long = [Prompt([1] * 40, NoiseKey(0, 0))]
    make = partial(DraftModel, settings=DraftSettings(draft="-", k=23), drafter=TARGET)
    assert texts(make, long, 24) == texts(AUTOREGRESSIVE, long, 24)  # 40 + 24 = the context


def test_a_perfect_draft_overshoots_into_the_slack():
    """One token short of the limit, a step still keeps 24: tokens, noise and cache have room for them."""
    make = partial(DraftModel, settings=DraftSettings(draft="-", k=23), drafter=TARGET)
    raw = tiny.decoder_of(make, TARGET, LAW, 1).decode([Prompt([1] * 39, NoiseKey(0, 0))], 25, frozenset())
    assert raw.accepted == [[23], [23]]
    assert len(raw.tokens[0]) == 48


@pytest.mark.parametrize(("prompts", "limit", "ends", "message"), [
    ([Prompt([], NoiseKey(0, 0))], 5, frozenset(), "no tokens"),
    ([Prompt([1] * 60, NoiseKey(0, 0))], 5, frozenset(), "prompt of 60 tokens plus 5 new.*the context of 64"),
    ([Prompt([1], NoiseKey(0, 0))], 5, frozenset(range(MAX_END_IDS + 1)), "at most 8 end-of-text ids"),
])
def test_bad_requests_are_named(prompts, limit, ends, message):
    with pytest.raises(BenchError, match=message):
        tiny.decoder_of(AUTOREGRESSIVE, TARGET, LAW, 1).decode(prompts, limit, ends)


def test_an_exception_in_a_phase_ends_the_run():
    class Broken(Alternating):
        def observe(self, seen):
            raise ZeroDivisionError("the cause")

    with pytest.raises(ZeroDivisionError, match="the cause"):
        tiny.decoder_of(Broken, TARGET, LAW, 3).decode(PROMPTS, 5, frozenset())


def test_a_draft_of_impossible_settings_is_refused():
    for settings in ({"k": 0}, {"verify": "hope"}):
        with pytest.raises(BenchError, match=str(next(iter(settings.values())))):
            DraftSettings(draft="-", **settings)
