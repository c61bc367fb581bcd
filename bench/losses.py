"""The loss of all drafters: how far a softmax over the vocabulary is from a goal, some thousand rows at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.model import Transformer
from bench.programs import fused
from bench.sampling import MASS_BITS, Law

CHUNK = 4096  # rows whose logits exist at the same time
FLOOR = 2.0**-MASS_BITS  # chance of an excluded id in the reverse divergence, which would be infinite


@dataclass
class Goal:
    """The law to learn at some rows, over the ids that it may give."""

    ids: Tensor  # [R, k] int64
    chance: Tensor  # [R, k] float32, sums to 1; an id may stand twice where all but one of its chances are 0


Goals = Callable[[slice], Goal]  # of some of the rows


def of_tokens(tokens: Tensor) -> Goals:
    """The tokens [R] themselves: the loss is their cross-entropy."""
    return lambda rows: Goal(tokens[rows, None], torch.ones_like(tokens[rows, None], dtype=torch.float32))


def of_law(model: Transformer, hidden: Tensor, law: Law) -> Goals:
    """What `law` makes of a teacher's logits; `hidden` [R, H]: its head's input. The loss is the KL divergence."""

    def goal(rows: slice) -> Goal:
        choices = law(model.score(hidden[rows].to(model.head.dtype)))
        return Goal(choices.ids, (choices.mass.double() / choices.mass.sum(-1, keepdim=True)).float())

    return goal


def either(first: Goals, second: Goals, where: Tensor) -> Goals:
    """The first goals at the rows where `where` [R] holds, the second ones at all others."""

    def goal(rows: slice) -> Goal:
        a, b, here = first(rows), second(rows), where[rows, None]
        return Goal(torch.cat([a.ids, b.ids], 1), torch.cat([torch.where(here, a.chance, 0),
                                                             torch.where(here, 0, b.chance)], 1))

    return goal


class Part(NamedTuple):
    """Of some rows."""

    loss: Tensor  # scalar, nats
    gradient: Tensor  # [R, vocab]: to the logits


@fused
def forward_kl(logits: Tensor, goal: Goal, weight: Tensor, temperature: float, dtype: torch.dtype) -> Part:
    """Weighted sum of KL(p || q), q = softmax(z / T), with d/dz = (q - p) / T. logits [R, vocab], weight [R] float32.

    The product that follows wants the gradient in `dtype`.
    """
    log_q = (logits / temperature).log_softmax(-1)
    losses = (torch.xlogy(goal.chance, goal.chance) - goal.chance * log_q.gather(1, goal.ids)).sum(1)
    gradient = less(log_q.exp(), goal) * (weight / temperature)[:, None]
    return Part(torch.where(weight > 0, losses * weight, 0).sum(), gradient.to(dtype))


def less(q: Tensor, goal: Goal) -> Tensor:
    """q - p. Of a single id a compiler makes one pass together with what is around it; scattering is one of its own."""
    if goal.ids.shape[1] > 1:
        return q.scatter_add(1, goal.ids, -goal.chance)
    return q - torch.where(torch.arange(q.shape[1], device=q.device) == goal.ids, goal.chance, 0)


@fused
def reverse_kl(logits: Tensor, goal: Goal, weight: Tensor, temperature: float, dtype: torch.dtype) -> Part:
    """The same of KL(q || p): d/dz = q (log q - log p - KL) / T."""
    log_q = (logits / temperature).log_softmax(-1)
    q = log_q.exp()
    above = -(goal.chance.clamp(min=FLOOR) / FLOOR).log()
    gap = (log_q - math.log(FLOOR)).scatter_add(1, goal.ids, above)
    losses = (q * gap).sum(1)
    gradient = q * (gap - losses[:, None]) * (weight / temperature)[:, None]
    return Part(torch.where(weight > 0, losses * weight, 0).sum(), gradient.to(dtype))


class Distil(torch.autograd.Function):
    """Loss and gradients in one pass: the logits of a chunk are gone when the next one's are made."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, part: Callable[[slice], Part], trained: bool) -> Tensor:
        """[R, H], [vocab, H] -> scalar float32."""
        total, to_head = hidden.new_zeros((), dtype=torch.float32), torch.zeros_like(head) if trained else None
        to_hidden = torch.empty_like(hidden)
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            loss, gradient = part(rows)
            total += loss
            torch.mm(gradient, head, out=to_hidden[rows])
            if to_head is not None:
                to_head.addmm_(gradient.T, hidden[rows])
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """To the hidden states, and to the head where it is trained."""
        return *(None if saved is None else gradient.to(saved.dtype) * saved for saved in ctx.saved_tensors), None, None


@dataclass(frozen=True)
class Divergence:
    """How far is measured."""

    temperature: float = 1.0  # of the softmax
    reverse: bool = False


def distil(hidden: Tensor, model: Transformer, goals: Goals, valid: Tensor,
           divergence: Divergence = Divergence()) -> Tensor:
    """How far the softmax of `model`'s head is from the goals: the mean over `valid` rows in nats; 0 without any.

    hidden [R, H], valid [R] bool -> scalar float32, with a gradient to the hidden states and, unless frozen, to the
    head. Shapes stay fixed: nothing waits for the device.
    """
    hidden = hidden.to(model.head.dtype)
    weight = valid.float() / valid.sum().clamp(min=1)
    kl = reverse_kl if divergence.reverse else forward_kl

    def part(rows: slice) -> Part:
        return kl(model.score(hidden[rows]), goals(rows), weight[rows], divergence.temperature, hidden.dtype)

    with torch.autocast(hidden.device.type, enabled=False):
        return Distil.apply(hidden, model.head, part, model.head.requires_grad)  # type: ignore[no-untyped-call]
