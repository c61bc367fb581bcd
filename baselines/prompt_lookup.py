"""Prompt lookup (Saxena, 2023): the continuation of the last earlier occurrence of the current n-gram is the draft."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import BenchError
from bench.loop import Method
from bench.tree import Tree, chain, chain_parents


@dataclass(frozen=True)
class Settings:
    """`k` drafted tokens at most, found by an n-gram of at most `ngram` tokens."""

    k: int = 10
    ngram: int = 3

    def __post_init__(self):
        if self.k < 1 or self.ngram < 1:
            raise BenchError(f"prompt_lookup needs k >= 1 and ngram >= 1, got k={self.k}, ngram={self.ngram}")


class PromptLookup(Method):
    """Nothing to train, nothing to learn."""

    Settings = Settings

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings or Settings(), drafter)
        self.rows = (self.settings.k + 1,)
        self.parents = chain_parents(self.rows[0], sequences.batch, sequences.device)

    def propose(self, kind: int) -> Tree:
        """The best match's continuation, cut at the root."""
        s, k = self.sequences, self.settings.k
        end, length = longest_match(s.tokens, s.lengths, self.settings.ngram)
        drafts = torch.where(length > 0, (s.root - end).clamp(max=k), 0)
        ahead = end[:, None] + 1 + torch.arange(k, device=s.device)
        tokens = torch.cat([s.root_tokens(), s.tokens.gather(1, ahead)], 1)
        structure = chain(k + 1, s.batch, s.device, drafts)
        return Tree(tokens, self.parents, depth=k, is_chain=True, structure=structure)


def longest_match(tokens: Tensor, lengths: Tensor, ngram: int) -> tuple[Tensor, Tensor]:
    """Where the longest suffix of at most `ngram` tokens occurred before; the latest of equals.

    tokens [B, capacity], lengths [B] -> (index of the match's last token [B], its length [B], 0: none).
    """
    index = torch.arange(tokens.shape[1], device=tokens.device)
    windows = F.pad(tokens, (ngram - 1, 0), value=-1).unfold(1, ngram, 1)  # [B, capacity, ngram], ending at each index
    suffix = windows.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, ngram))
    same = (windows == suffix) & (windows >= 0)
    run = same.flip(-1).cumprod(-1).sum(-1)  # [B, capacity]
    run = torch.where(index < (lengths - 1)[:, None], run, 0)
    end = torch.where(run > 0, run * len(index) + index, 0).argmax(1)
    return end, run.gather(1, end[:, None]).squeeze(1)
