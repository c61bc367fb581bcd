"""Losses over the vocabulary, some thousand rows at a time: no more logits than that ever exist."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.model import Transformer
from bench.sampling import Law

CHUNK = 4096  # rows whose logits exist at the same time


@dataclass
class Goal:
    """The law to learn at some rows, over the ids that it may give."""

    ids: Tensor  # [R, k] int64
    chance: Tensor  # [R, k] float32, sums to 1


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


class Distil(torch.autograd.Function):
    """Loss and gradient in one pass: d KL(p || softmax(z / T)) / dz = (softmax(z / T) - p) / T."""

    @staticmethod
    def forward(ctx, hidden: Tensor, model: Transformer, goals: Goals, temperature: float) -> Tensor:
        """[R, H] -> [R] float32, in nats."""
        losses, gradients = [], []
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            goal = goals(rows)
            log_q = (model.score(hidden[rows]) / temperature).log_softmax(-1)
            losses.append((torch.xlogy(goal.chance, goal.chance) - goal.chance * log_q.gather(1, goal.ids)).sum(1))
            gradient = log_q.exp_().scatter_add_(1, goal.ids, -goal.chance).div_(temperature)
            gradients.append(gradient.to(hidden.dtype) @ model.head)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """To the hidden state alone: the head is frozen."""
        (saved,) = ctx.saved_tensors
        return (gradient[:, None] * saved).to(saved.dtype), None, None, None


def distil(hidden: Tensor, model: Transformer, goals: Goals, temperature: float = 1.0) -> Tensor:
    """How far the softmax of `model`'s frozen head is from the goal of each row, in nats: [R, H] -> [R] float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return Distil.apply(hidden.to(model.head.dtype), model, goals, temperature)  # type: ignore[no-untyped-call]
