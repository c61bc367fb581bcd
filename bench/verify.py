"""Verifiers: which draft rows are kept, and the token that the target adds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.noise import Noise
from bench.sampling import MASS_BITS, NOISE_BITS, Choices, Law, draw, pick
from bench.tree import Structure, Tree

TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3


@dataclass
class Evidence:
    """How often `reject` accepted beyond what its two laws allow, per sequence: float64 [B] each."""

    excess: Tensor  # sum over tested rows of (accepted - sum_x min(p, q))
    variance: Tensor  # its variance: sum of a (1 - a) with a = sum_x min(p, q)
    tested: Tensor


@dataclass
class Outcome:
    """What one step decided."""

    last: Tensor  # [B] int64: the deepest accepted row
    accepted: Tensor  # [B] int64: accepted draft tokens, its depth
    drafted: Tensor  # [B] int64: depth of the deepest draft offered
    path: Tensor  # [B, depth + 1] int64: the kept row at each depth, any row past `accepted`
    tokens: Tensor  # [B, depth + 1] int64: accepted drafts, then the target's own; any id past `accepted`
    evidence: Evidence | None = None


@dataclass
class Trial:
    """One step, ready to be verified."""

    tree: Tree
    logits: Tensor  # [B, n, vocab] float32: the target's, after every token row
    root: Tensor  # [B] int64: absolute position of the root
    law: Law
    noise: Noise


Verifier = Callable[[Trial], Outcome]


def match(trial: Trial) -> Outcome:
    """Keep the drafts that equal what the target draws itself with the position's own noise: exact at any law."""
    picks = draw(own_noise(trial), trial.logits, trial.law)
    return with_drafts(trial.tree, picks) if trial.tree.depth else without_drafts(trial.tree, picks)


def own_noise(trial: Trial) -> Tensor:
    """What the token after each token row is drawn with -> [B, n] int64."""
    tree = trial.tree
    if trial.law.temperature == 0:
        return tree.tokens  # any numbers will do, so none are looked up
    return trial.noise.at("target", trial.root[:, None] + tree.resolve().depths[:, : tree.tokens.shape[1]] + 1)


def with_drafts(tree: Tree, picks: Tensor) -> Outcome:
    """`match`, given what the target draws after each token row: [B, n] int64."""
    structure = tree.resolve()
    last = deepest(structure, tree.tokens == picks.gather(1, tree.parents[:, : tree.tokens.shape[1]]))
    return settle(tree, structure, last, picks.gather(1, last[:, None]))


def without_drafts(tree: Tree, picks: Tensor) -> Outcome:
    """The same where all rows but the root are padding, without a kernel."""
    path = tree.parents[:, :1]  # row 0: the root is its own parent, and as deep
    zero = path.squeeze(1)
    return Outcome(last=zero, accepted=zero, drafted=zero, path=path, tokens=picks[:, :1])


def reject(trial: Trial) -> Outcome:
    """The ratio test of Leviathan et al. (2023, algorithm 1) and Chen et al. (2023, algorithm 2), on chains.

    Keeps the distribution, not the text. Drafting, test and residual each have a noise stream of their own.
    """
    tree, n = trial.tree, trial.tree.tokens.shape[1]
    structure, root = tree.resolve(), trial.root[:, None]
    p = trial.law(trial.logits)
    before = Choices(p.ids[:, :-1], p.mass[:, :-1])  # [B, n - 1, k]: what each draft is tested under
    q, drafts = tree.draft_mass, tree.tokens[:, 1:]
    assert q is not None, "reject needs the draft's law"
    test = trial.noise.at("test", root + structure.depths[:, 1:n])
    ratio = before.of(drafts).double() / q.gather(2, drafts[..., None]).squeeze(2).double()
    right = test < ratio * 2.0**NOISE_BITS
    last = deepest(structure, F.pad(right, (1, 0)))
    q = q.gather(2, before.ids)  # ids that the target excludes are in no overlap and in no residual
    own = pick(trial.noise.at("residual", root + last[:, None] + 1), residual(p, q, last))
    outcome = settle(tree, structure, last, own)
    outcome.evidence = tally(before.mass, q, right, outcome)
    return outcome


def typical(trial: Trial) -> Outcome:
    """Keep the drafts that are likely enough for the target: lossy.

    Medusa (Cai et al., 2024, section 2.3.1): p(x) > min(epsilon, delta exp(-H(p))) under the law; the values of
    epsilon and delta are those of the authors' code. The target's own token is drawn as ever.
    """
    tree, n = trial.tree, trial.tree.tokens.shape[1]
    structure = tree.resolve()
    laws, parents = trial.law(trial.logits), tree.parents[:, :n]
    total = laws.mass.sum(-1).double()  # [B, n]
    p = laws.mass / total[..., None]
    bar = (TYPICAL_DELTA * torch.xlogy(p, p).sum(-1).exp()).clamp(max=TYPICAL_EPSILON)
    chance = laws.after(parents).of(tree.tokens) / total.gather(1, parents)
    last = deepest(structure, chance > bar.gather(1, parents))
    noise = trial.noise.at("target", trial.root[:, None] + structure.depths.gather(1, last[:, None]) + 1)
    return settle(tree, structure, last, pick(noise, laws.after(last[:, None])))


def residual(p: Choices, q: Tensor, last: Tensor) -> Choices:
    """What is left of the target's law p [B, n, k] after the last accepted row -> [B, 1, k].

    `q` [B, n - 1, k]: the draft's mass of the ids of p. After a refusal max(p - q, 0); p itself after the last draft,
    or where rounding leaves nothing.
    """
    q = torch.cat([q, torch.zeros_like(q[:, :1])], 1).gather(1, last[:, None, None].expand_as(p.ids[:, :1]))
    p = p.after(last[:, None])
    left = (p.mass - q).clamp(min=0)
    return Choices(p.ids, torch.where(left.sum(-1, keepdim=True) > 0, left, p.mass))


def tally(p: Tensor, q: Tensor, right: Tensor, outcome: Outcome) -> Evidence:
    """Evidence over the tested rows: all accepted ones and the first refused one. p, q: masses of the same ids."""
    overlap = torch.minimum(p, q).sum(-1).double() / 2.0**MASS_BITS
    tested = torch.arange(right.shape[1], device=right.device) < (outcome.accepted + 1)[:, None]
    tested = tested & (torch.arange(right.shape[1], device=right.device) < outcome.drafted[:, None])
    excess = torch.where(tested, right.double() - overlap, 0).sum(1)
    return Evidence(excess, torch.where(tested, overlap * (1 - overlap), 0).sum(1), tested.sum(1))


def deepest(structure: Structure, right: Tensor) -> Tensor:
    """The deepest row whose whole path is right; the first of several. right [B, n] bool -> [B] int64.

    What it says of the root, which is not a guess, is not read.
    """
    n = right.shape[1]
    wrong = ~right & (torch.arange(n, device=right.device) > 0)
    refused = (structure.ancestors[:, :n, :n] & wrong[:, None]).any(-1)
    kept = structure.live[:, :n] & ~refused
    return torch.where(kept, structure.depths[:, :n], -1).argmax(1)


def settle(tree: Tree, structure: Structure, last: Tensor, own: Tensor) -> Outcome:
    """The outcome of keeping the path to row `last` [B] and adding the target's own token [B, 1]."""
    n, device = tree.tokens.shape[1], last.device
    depths, every = structure.depths[:, :n], torch.arange(tree.depth + 1, device=device)
    accepted = depths.gather(1, last[:, None])
    on_path = structure.ancestors[torch.arange(len(last), device=device), last, :n]
    at = on_path[:, None] & (depths[:, None] == every[:, None])  # [B, depth + 1, n]
    path = torch.where(at, torch.arange(n, device=device), 0).sum(-1)  # no scatter: that is a kernel of its own
    tokens = torch.where(every == accepted, own, tree.tokens.gather(1, path.roll(-1, 1)))
    drafted = torch.where(structure.live[:, :n], depths, 0).amax(1)
    return Outcome(last, accepted.squeeze(1), drafted, path, tokens)


VERIFIERS: dict[str, Verifier] = {"match": match, "reject": reject, "typical": typical}
