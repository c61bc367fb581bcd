"""From the slots' logits to a draft, and how sure the student is of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.blur import hold
from bench.sampling import NOISE_BITS, Law, land
from bench.shortlist import Head

CHOICE = ("argmax", "pick", "blurred")
DRAWS = (*CHOICE, "greedy")  # greedy: the arg max of a student that was given no noise, for temperature 0
EDGE = 1e-6  # chances are kept so far from 0 and 1 when their log-odds are taken


@dataclass
class Draft:
    """Guessed tokens. The score grows with the chance of being right; `Confidence` turns it into that chance."""

    tokens: Tensor  # [.., k] int64
    score: Tensor  # [.., k] float32

    def named(self, head: Head) -> "Draft":
        """The ids that rows of a drafter's head stand for."""
        return Draft(head.named(self.tokens), self.score)

    @staticmethod
    def joined(drafts: Sequence["Draft"], dim: int) -> "Draft":
        """Several side by side."""
        return Draft(torch.cat([one.tokens for one in drafts], dim), torch.cat([one.score for one in drafts], dim))


def draw(way: str, logits: Tensor, noise: Tensor, law: Law, blur: float = 0.0) -> Draft:
    """Draft tokens from logits [.., k, vocab]; `noise` [.., k]: the tokens' own `u`, which an arg max does not read.

    `blur`: the width of a blurred pick.
    """
    if way == "blurred":
        return by_blurred_pick(logits, noise, law, blur)
    return by_pick(logits, noise, law) if way == "pick" else by_arg_max(logits)


def drafted(way: str, hidden: Tensor, head: Head, noise: Tensor, law: Law, blur: float) -> Draft:
    """As `draw`, from head inputs [.., k, hidden]; an arg max of few rows is found by the kernel that scores them."""
    if way not in ("pick", "blurred") and (kernels := kernels_for(hidden, head.weight)):
        return Draft(*kernels.likeliest(hidden, head))
    return draw(way, head.score(hidden), noise, law, blur).named(head)


def kernels_for(hidden: Tensor, weight: Tensor) -> Any:
    """The module of kernels for head inputs and the weight they meet first, or None where they do not serve these."""
    if not hidden.is_cuda or hidden.requires_grad or weight.requires_grad:
        return None
    from ptp import readout_kernels  # Triton exists on CUDA machines only

    return readout_kernels if readout_kernels.serves(hidden, weight) else None


def by_arg_max(logits: Tensor) -> Draft:
    """The likeliest token; its score is the log-odds of its probability."""
    best = logits.max(-1)
    return Draft(best.indices, (best.values - logits.logsumexp(-1)).exp().logit(eps=EDGE))


def by_pick(logits: Tensor, noise: Tensor, law: Law) -> Draft:
    """`Pick` of the student's law; its score is the log of the distance between `u` and the edges of the token's bin.

    The student has learned the truncated law. Top-k changes nothing the second time; top-p would cut again.
    """
    landing = land(noise, logits, replace(law, top_p=1.0))
    return Draft(landing.ids, landing.margin.clamp(min=2.0**-NOISE_BITS).log().float())


def by_blurred_pick(logits: Tensor, noise: Tensor, law: Law, width: float) -> Draft:
    """The token whose bin holds most of a bump around `u`; its score is the log-odds of its share of it."""
    held = hold(noise, logits, replace(law, top_p=1.0), width)
    return Draft(held.ids, held.share.logit(eps=EDGE).float())
