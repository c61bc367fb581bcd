"""Every method verified by `match` emits, id for id, the text of autoregressive decoding: that of a slow, obvious loop.

float64, no tolerance, greedy and sampled, alone and in ragged batches. A case counts only when drafts were both
accepted and refused in it: a drafter that is never right, or always, shows nothing about the verifier.
"""

from functools import partial

import pytest
import tiny
import torch

from baselines.draft_model import DraftModel, Settings
from bench import loop
from bench.graphs import nothing
from bench.methods import METHODS
from bench.sampling import Law, pick
from ptp.decoding import PTP
from ptp.decoding import Settings as PTPSettings

LIMIT = 24
TARGET = tiny.transformer(seed=1)
WORK = {name: (tiny.groups(seed, 8, 1), tiny.groups(100 + seed, 15, 4)) for seed, name in enumerate(tiny.LAWS)}


def slow_loop(prompt, law, end_ids=frozenset()):
    """One whole forward per token: no cache, no batch, no loop of ours."""
    ids, noise = list(prompt.ids), prompt.noise.numbers("target", len(prompt.ids) + LIMIT)
    while len(ids) < len(noise) and not set(ids[len(prompt.ids):]) & end_ids:
        choices = law(TARGET.logits(torch.tensor([ids]))[0, -1])
        ids.append(int(pick(torch.tensor(noise[len(ids)]), choices)))
    return ids[len(prompt.ids):]


def cases(law):
    """All prompts of a law, in the order in which `texts_of` returns their texts."""
    return [(prompt, group.end_ids) for work in WORK[law] for group in work for prompt in group.prompts]


def texts_of(make, law):
    """A method's texts, alone and in ragged batches."""
    return [text for work in WORK[law] for text in tiny.decode(make, TARGET, tiny.LAWS[law], work, LIMIT)]


@pytest.fixture(scope="module")
def baseline():
    """What autoregressive decoding says, by law."""
    make = tiny.registered("autoregressive", TARGET)
    return {law: texts_of(make, law) for law in tiny.LAWS}


@pytest.fixture(scope="module")
def truth(baseline):
    """Its ids."""
    return {law: [text.tokens for text in texts] for law, texts in baseline.items()}


def test_the_cases_are_what_they_should_be(truth):
    prompts = [prompt for law in tiny.LAWS for prompt, _ in cases(law)]
    assert sum(len(prompt.ids) == 1 for prompt in prompts) >= 60
    assert all(len({len(p.ids) for p in group.prompts}) > 1 for _, ragged in WORK.values() for group in ragged)
    assert 20 <= sum(len(text) < LIMIT for texts in truth.values() for text in texts) <= 80  # stopped by an end id
    assert TARGET.logits(torch.randint(12, (8, 40))).std() >= 1


@pytest.mark.parametrize("law", tiny.LAWS)
def test_autoregressive_is_the_slow_loop(law, baseline):
    for (prompt, end_ids), text in list(zip(cases(law), baseline[law], strict=True))[:16]:
        assert text.tokens == slow_loop(prompt, tiny.LAWS[law], end_ids)
        assert not any(text.drafted)
        assert text.steps == len(text.tokens)


@pytest.mark.parametrize("name", [name for name in tiny.matching() if name != "autoregressive"])
def test_the_text_is_that_of_autoregressive_decoding(name, truth):
    make, telling = tiny.registered(name, TARGET), 0
    for law in tiny.LAWS:
        texts = texts_of(make, law)
        assert [text.tokens for text in texts] == truth[law]
        telling += sum(text.tells for text in texts)
    assert telling >= 200


def test_the_registry_was_searched():
    assert {"autoregressive", "prompt_lookup", "draft_model"} <= set(tiny.matching()) <= set(METHODS)


@pytest.mark.parametrize(("k", "amount", "blur"), [(1, 0.15, 0), (2, 0.0, 0), (5, 2.0, 0), (3, 0.15, 0.2)])
def test_other_lengths_and_qualities_of_drafts(k, amount, blur, truth):
    drafter = tiny.perturbed(TARGET, amount)
    make = partial(DraftModel, settings=Settings(draft="-", k=k, blur=blur), drafter=drafter)
    texts = tiny.decode(make, TARGET, tiny.LAWS["top-k"], WORK["top-k"][1][:4], LIMIT)
    assert [text.tokens for text in texts] == truth["top-k"][8:24]


def test_greedy_rejection_leaves_no_choice(truth):
    settings = Settings(draft="-", k=3, verify="reject")
    make = partial(DraftModel, settings=settings, drafter=tiny.perturbed(TARGET, 0.15))
    texts = tiny.decode(make, TARGET, Law(), WORK["greedy"][1][:4], LIMIT)
    assert [text.tokens for text in texts] == truth["greedy"][8:24]
    assert any(text.tells for text in texts)


TRACED = {name: tiny.registered(name, TARGET) for name in ("prompt_lookup", "medusa", "ptp", "independent")} | {
    "sequential ptp": partial(PTP, settings=PTPSettings(k=5, slots=18),
                              drafter=tiny.random_student(TARGET, sequential=True)),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_a_method_does_in_a_step_is_one_device_program(name, truth, monkeypatch):
    """On CUDA phases are compiled and captured: whatever asks the host for a number cannot be, and fails here."""
    def traced(phases, device):
        whole = {0, len(phases) - 1} if phases[-1] is not nothing else {0}  # propose, observe
        return [torch.compile(phase, backend="eager", fullgraph=True, dynamic=False) if i in whole else phase
                for i, phase in enumerate(phases)]

    torch.compiler.reset()
    monkeypatch.setattr(loop, "prepared", traced)
    for law in ("greedy", "top-k"):
        texts = tiny.decode(TRACED[name], TARGET, tiny.LAWS[law], WORK[law][1][:2], LIMIT)
        assert [text.tokens for text in texts] == truth[law][8:16]


def test_one_wrong_number_would_show():
    """The comparison can fail: other noise gives another text."""
    prompt, _ = cases("plain")[0]
    law = tiny.LAWS["plain"]
    other = type(prompt)(prompt.ids, type(prompt.noise)(prompt.noise.seed + 1, prompt.noise.question_id))
    assert slow_loop(prompt, law) != slow_loop(other, law)
