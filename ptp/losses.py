"""What students are trained on (arXiv 2512.21323): distillation, one-hot and categorical, and no teacher at all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.model import Transformer
from bench.sampling import Law
from ptp.bins import Bins, Drawn, fractions
from ptp.completions import CHUNK, Completions, Context, at, following, growing
from ptp.noise_embedding import NoiseEmbedding


def average(losses: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid slots; 0 without any. Shapes stay fixed: nothing waits for the device."""
    return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)


def by_chunks(loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """`loss` of all rows, some thousand at a time: logits are made again for the gradient, never kept."""
    parts = zip(*(r.split(CHUNK) for r in rows), strict=True)
    return torch.cat([checkpoint(loss, *part, use_reentrant=False) for part in parts])


class FrozenHead(torch.autograd.Function):
    """`Transformer.score` with a gradient: PyTorch has none for half-precision products with float32 results."""

    @staticmethod
    def forward(ctx, hidden: Tensor, model: Transformer) -> Tensor:
        """[R, hidden] -> logits [R, vocab] float32."""
        ctx.save_for_backward(model.head)
        return model.score(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """To the hidden state alone."""
        (head,) = ctx.saved_tensors
        return gradient.to(head.dtype) @ head, None


def score(model: Transformer, hidden: Tensor) -> Tensor:
    """Logits that can be trained through: [R, hidden] -> [R, vocab] float32."""
    if model.head.requires_grad:
        return model.score(hidden)
    return FrozenHead.apply(hidden, model)  # type: ignore[no-untyped-call]


def one_hot(model: Transformer, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of `tokens` [..], in nats -> [..]. `hidden` [.., H] are inputs of the head.

    O-PTP: of the token whose own `u` is the slot's input. Without a teacher: of the data, given `u` before the token.
    """

    def loss(hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(score(model, hidden) / (temperature or 1), tokens, reduction="none")

    return by_chunks(loss, hidden.flatten(0, -2), tokens.flatten()).view(tokens.shape)


@dataclass
class Lesson:
    """The teacher's law at every slot's label."""

    model: Transformer
    hidden: Tensor  # [.., H]: input of the teacher's head
    law: Law

    @staticmethod
    def of(model: Transformer, context: Context, completions: Completions, law: Law) -> "Lesson":
        """`context` is the teacher's own."""
        index = (completions.labels - 1).flatten(1)[..., None].expand(-1, -1, context.hidden.shape[2])
        return Lesson(model, context.hidden.gather(1, index).view(*completions.labels.shape, -1), law)


def categorical(model: Transformer, hidden: Tensor, lesson: Lesson, reverse: bool = False) -> Tensor:
    """C-PTP: KL(teacher || student) or the reverse, in nats. `hidden` [.., H] -> [..].

    The student's softmax, at the law's temperature, learns the truncated law. In the reverse, which would be infinite,
    an excluded id weighs one unit of fixed point.
    """
    law, temperature = lesson.law, lesson.law.temperature or 1.0

    def loss(hidden: Tensor, teacher: Tensor) -> Tensor:
        log_q = (score(model, hidden) / temperature).log_softmax(-1)
        with torch.no_grad():
            choices = law(lesson.model.score(teacher))
            mass = choices.dense(log_q.shape[-1]).clamp(min=1) if reverse else choices.mass
            p = (mass.double() / mass.sum(-1, keepdim=True)).to(log_q.dtype)
        if reverse:
            return (log_q.exp() * (log_q - p.log())).sum(-1)
        return (torch.xlogy(p, p) - p * log_q.gather(-1, choices.ids)).sum(-1)

    return by_chunks(loss, hidden.flatten(0, -2), lesson.hidden.flatten(0, -2)).view(hidden.shape[:-1])


@torch.no_grad()
def own_noise(model: Transformer, embedding: NoiseEmbedding, context: Context, starts: Tensor, slots: int) -> Drawn:
    """Inverse autoregressive: noise read off the model's *own* law, position by position -> [B, N, slots] each.

    `u` of the first token lies in its bin under the law that the token rows give, every later one in its bin under the
    law of the C-PTP slot before it. Each slot runs once: its keys and values are kept for the slots that follow.
    """
    pack, law = context.pack, Law(temperature=1.0)
    model.extend_rope(pack.tokens.shape[1] + slots + 1)
    attend, positions = growing(context, starts), at(pack.positions(), starts)
    hidden = context.hidden.gather(1, starts[..., None].expand(-1, -1, context.hidden.shape[2]))
    drawn = []
    for slot, tokens in enumerate(at(pack.tokens, following(starts, slots)).unbind(2)):
        drawn.append(Bins.of(tokens, law(model.score(hidden))).draw(fractions(tokens)))
        hidden = model(embedding(drawn[-1].noise), positions + 1 + slot, attend).last
    return Drawn(torch.stack([d.noise for d in drawn], 2), torch.stack([d.explained for d in drawn], 2))
