"""Training without a teacher (arXiv 2512.21323): the noise of a text is read off the student's own laws."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.model import Adapter, Transformer
from bench.reading import Reading
from bench.sampling import Law
from ptp.bins import Drawn
from ptp.completions import at, following, growing, inside_bins, rows_at
from ptp.noise_embedding import NONE


@dataclass
class Voice:
    """Who predicts."""

    model: Transformer
    embed: Callable[[Tensor], Tensor]  # noise [..] int64 -> the input of a slot [.., hidden]
    adapter: Adapter | None = None
    corrected: Callable[[Transformer, Tensor, Tensor], Tensor] | None = None  # see `Student.corrected`


@torch.no_grad()
def own_noise(voice: Voice, reading: Reading, starts: Tensor, slots: int, law: Law) -> Drawn:
    """Inverse autoregressive: noise read off the model's *own* law, position by position -> [B, N, slots] each.

    `u` of the first token lies in its bin under `law` of what the token rows give, every later one in its bin under
    the law of the C-PTP slot before it: not truncated, because what learns a truncated law leaves nothing outside,
    and until it has learned it, no token may be excluded. Each slot runs once: its keys and values are kept for the
    slots that follow. At temperature 0 the noise is NONE and explains everything.
    """
    batch, model = reading.batch, voice.model
    model.extend_rope(batch.tokens.shape[1] + slots + 1)
    attend, positions = growing(reading, starts), at(batch.positions(), starts)
    hidden, silent = rows_at(reading.hidden, starts), at(batch.silent(law), following(starts, slots))
    found = []
    for slot, tokens in enumerate(at(batch.tokens, following(starts, slots)).unbind(2)):
        drawn = inside_bins(model, hidden, tokens, law)
        found.append(Drawn(torch.where(silent[..., slot], NONE, drawn.noise), drawn.explained | silent[..., slot]))
        inputs = voice.embed(found[-1].noise).to(hidden.dtype)
        hidden = model(inputs, positions + 1 + slot, attend, voice.adapter, inputs.shape[1]).last
        hidden = voice.corrected(model, hidden, tokens) if voice.corrected else hidden
        law = replace(law, top_k=0, top_p=1.0)
    return Drawn(torch.stack([d.noise for d in found], 2), torch.stack([d.explained for d in found], 2))
