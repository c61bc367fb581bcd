"""The sequential readout: drafts are drawn one after the other, and each hears of the token drafted before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequentialReadout(nn.Module):
    """Corrects a slot's head input by the embedding of the token before the one that the slot predicts.

    In the manner of Hydra heads (Ankner et al., 2024, arXiv 2402.05109). The last matrix starts at zero: an untrained
    readout changes nothing.
    """

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.narrow = nn.Parameter(torch.randn(width, 2 * hidden) / (2 * hidden) ** 0.5)
        self.widen = nn.Parameter(torch.zeros(hidden, width))

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Head inputs and embeddings of the tokens before, [.., hidden] each -> head inputs, in the dtype of `hidden`.

        Both are normed: a target's embeddings are often far smaller than its head's inputs.
        """
        x = torch.cat([F.rms_norm(part, part.shape[-1:]) for part in (hidden, before)], -1)
        return hidden + F.linear(F.silu(F.linear(x, self.narrow.to(x.dtype))), self.widen.to(x.dtype))
