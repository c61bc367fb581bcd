"""Planted defects: each must be caught, and the table says by what.

verdict  texts of `match` methods against the baseline's, judged as a run judges them
parity   the baseline's text against transformers' logits, our law and the position's own noise
oracle   steps that a drafter needs which knows the answer
z        how often rejection accepted, against what both laws say
law      the distribution of rejection's texts against the target's, by chi-square

No single one suffices. The verdict cannot see what baseline and method share (parity can), nor a drafter or a verifier
that only wastes good guesses (the oracle can). z sees how many drafts were accepted, not which, nor what follows a
refusal (the law does).
"""

import inspect
import sys
import textwrap
from dataclasses import dataclass
from functools import partial
from typing import Any

import judged
import pytest
import test_oracle
import tiny
import torch
from scipy.stats import chisquare

from baselines.draft_model import DraftModel, Settings
from baselines.prompt_lookup import PromptLookup
from baselines.references import twin
from bench import cache, loop, model, tree, verify
from bench.noise import Noise, NoiseKey
from bench.sampling import Law, pick
from bench.sequences import Prompt

TARGET = tiny.transformer(seed=4)
LAW = Law(1.0)
WORK = judged.work(8, 2, batch=4)
FAR = 1e-6  # of the chi-square test: a healthy engine fails once in a million seeds


@dataclass(frozen=True)
class Defect:
    """`old` in the source of `owner.name` becomes `new`; whoever imported the function gets the new one."""

    owner: object
    name: str
    old: str
    new: str

    def plant(self, patch):
        original = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.name} has changed: plant this defect anew"
        scope: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), vars(inspect.getmodule(original)), scope)
        patch.setattr(self.owner, self.name, scope[self.name])
        for module in list(sys.modules.values()):
            if module.__name__.startswith(("bench", "baselines")) and vars(module).get(self.name) is original:
                patch.setattr(module, self.name, scope[self.name])
        for name, verifier in verify.VERIFIERS.items():
            if verifier is original:
                patch.setitem(verify.VERIFIERS, name, scope[self.name])


# The alarms. Each says whether it rings.


def guessing(group):
    """A tree method: the text of the baseline as it is now, beside wrong siblings, and wrong itself at depth 3."""
    texts = judged.measure({}, TARGET, LAW, [group]).texts()
    known = torch.zeros(len(group.prompts), 64, dtype=torch.int64)
    for row, prompt in zip(known, group.prompts, strict=True):
        text = [*prompt.ids, *texts[prompt.noise.question_id]]
        row[: len(text)] = torch.tensor(text)
    return partial(test_oracle.Oracle, settings=test_oracle.Plan(4, wrong_at=3, siblings=1), drafter=known)


def verdict():
    """Prompt lookup, a draft model and a tree method against the baseline."""
    makes = {name: tiny.registered(name, TARGET) for name in ("prompt_lookup", "draft_model")}
    for group in WORK:
        makes["tree"] = guessing(group)
        found = judged.measure(makes, TARGET, LAW, [group]).verdicts()
        if "BROKEN" in {verdict.verdict for verdict in found.values()}:
            return True
    return False


def parity():
    """Every token of the baseline, drawn again from transformers' logits of the same weights."""
    other = twin(TARGET)
    case = judged.measure({}, TARGET, LAW, WORK)
    for record in case.records:
        prompt = case.prompts[record.question_id, 0]
        ids, start = torch.tensor([[*prompt, *record.tokens]]), len(prompt)
        noise = NoiseKey(record.settings["seed"], record.question_id).numbers("target", ids.shape[1])
        drawn = pick(torch.tensor(noise[start:]), LAW(other(ids).logits[0, start - 1 : -1].float()))
        if drawn.tolist() != record.tokens:
            return True
    return False


def oracle():
    """The oracle tests themselves."""
    for check in (partial(test_oracle.test_a_perfect_version_of_the_method, "draft_model", LAW),
                  partial(test_oracle.test_a_perfect_version_of_the_method, "prompt_lookup", LAW),
                  test_oracle.test_a_draft_model_that_is_its_target_is_an_oracle,
                  partial(test_oracle.test_the_right_chain_or_the_right_path_of_a_tree, 4, 2, 23)):
        try:
            check()
        except AssertionError:
            return True
    return False


TABLE = 1.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0))  # next-token logits of a world of 5 ids
MANY = 3000


def rejecting():
    """Texts of two tokens, all from the same prompt, by a draft model with another law, verified by rejection."""
    target, draft = tiny.bigram(TABLE), tiny.bigram(TABLE.roll(1, 0))
    make = partial(DraftModel, settings=Settings(draft="-", k=2, verify="reject"), drafter=draft)
    group = tiny.Group(tuple(Prompt([0], NoiseKey(9, i)) for i in range(MANY)))
    return list(judged.decoded("reject", make, target, LAW, [group], limit=2))


def z(records):
    """The verdict of a method verified by rejection."""
    return judged.Case(records, None, {}).verdicts()["reject"].verdict == "BROKEN"


def law(records):
    """Counts of the 25 texts of two tokens."""
    counts = torch.zeros(5, 5)
    for record in records:
        counts[tuple(record.tokens)] += 1
    p = TABLE.double().softmax(-1)
    expected = p[0, :, None] * p
    return chisquare(counts.flatten().numpy(), (expected * MANY / expected.sum()).flatten().numpy()).pvalue < FAR


def exact():
    """Alarms of exact decoding that ring."""
    return {rings.__name__ for rings in (verdict, parity, oracle) if rings()}


def rejection():
    """Alarms of rejection that ring."""
    records = rejecting()
    return {rings.__name__ for rings in (z, law) if rings(records)}


def test_nothing_rings_on_the_healthy_engine():
    assert exact() | rejection() == set()


# What is planted, by name: the alarms that must ring, all others being silent, and where.
MATCH_DEFECTS = {
    "mask: the token before the root is not seen": (
        {"verdict", "parity", "oracle"},
        Defect(model, "attend_tree", "(offset < 0)", "(offset < -1)")),
    "mask: a row of a chain does not see its parent": (
        {"verdict", "parity", "oracle"},
        Defect(tree, "chain", "(row <= row[:, None])", "(row <= row[:, None] - 2)")),
    "mask: a row of a step sees its ancestors' neighbours": (
        {"verdict", "parity", "oracle"},
        Defect(model, "attend_tree", "offset.clamp(0, rows - 1)", "(offset - 1).clamp(0, rows - 1)")),
    "tree: of a row's ancestors only its parent is found": (
        {"oracle"},
        Defect(tree.Structure, "of", "max(rows - 2, 0).bit_length()", "0")),
    "position: all rows of a step are one too late": (
        {"parity", "oracle"},
        Defect(tree.Structure, "positions", "+ self.depths", "+ self.depths + 1")),
    "position: draft rows are one too late": (
        {"verdict", "oracle"},
        Defect(tree.Structure, "positions", "+ self.depths", "+ self.depths + (self.depths > 0)")),
    "cache: kept rows stay where they were, stale ones take their place": (
        {"verdict", "oracle"},
        Defect(loop.Step, "commit", "if not self.tree.is_chain", "if False")),
    "cache: kept rows move one too far": (
        {"verdict", "oracle"},
        Defect(cache.Cache, "commit", "root[:, None] + torch", "root[:, None] + 1 + torch")),
    "noise: every position has the number of the one before": (
        {"parity", "oracle"},
        Defect(verify, "own_noise", "+ 1)", ")")),
    "noise: a row has the number of its index, not of its depth": (
        {"verdict", "oracle"},
        Defect(verify, "own_noise", "tree.resolve().depths[:, : tree", "torch.arange(64)[: tree")),
    "verifier: never more than one draft is kept": (
        {"oracle"},
        Defect(verify, "deepest", "kept = structure.live[:, :n]", "kept = (structure.depths[:, :n] < 2)")),
    "drafter: noise of the position before": (
        {"oracle"},
        Defect(DraftModel, "propose", "root[:, None] + i", "root[:, None] + i - 1")),
    "drafter: its own cache lacks the last draft of a step that kept all": (
        {"oracle"},
        Defect(DraftModel, "propose", "base = (root - 1).clamp(min=0)", "base = root")),
    "drafter: the continuation begins one token too late": (
        {"oracle"},
        Defect(PromptLookup, "propose", "end[:, None] + 1", "end[:, None] + 2")),
}
REJECT_DEFECTS = {
    "a wrong draft law: that of twice the temperature": (
        {"z", "law"},
        Defect(verify, "reject", "= tree.draft_mass,",
               "= (flat := tree.draft_mass.double() ** 0.5).div(flat.sum(-1, keepdim=True)).mul(2**32).long(),")),
    "a wrong draft law: one that happens to be accepted as often": (
        {"law"},
        Defect(verify, "reject", "= tree.draft_mass,", "= (tree.draft_mass + tree.draft_mass.roll(1, -1)) // 2,")),
    "one number for draft, test and residual": (
        {"z", "law"},
        Defect(Noise, "at", "[stream]", '["target"]')),
    "one number for draft and test": (
        {"z", "law"},
        Defect(Noise, "at", "[stream]", '[stream.replace("draft", "test")]')),
    "one number for test and residual": (
        {"law"},
        Defect(verify, "reject", '"residual"', '"test"')),
    "after a refusal the whole law is drawn from": (
        {"law"},
        Defect(verify, "residual", "(p.mass - q)", "p.mass")),
}


def planted(entry, monkeypatch):
    """Plant, and give back what must ring."""
    expected, *defects = entry
    for defect in defects:
        defect.plant(monkeypatch)
    return expected


@pytest.mark.parametrize("name", MATCH_DEFECTS)
def test_a_defect_of_exact_decoding(name, monkeypatch):
    expected = planted(MATCH_DEFECTS[name], monkeypatch)
    assert exact() == expected


@pytest.mark.parametrize("name", REJECT_DEFECTS)
def test_a_defect_of_rejection(name, monkeypatch):
    expected = planted(REJECT_DEFECTS[name], monkeypatch)
    assert rejection() == expected
