"""Partial quadratic decoding (arXiv 2512.21323): which hypotheses get how many slots."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bench.tree import Structure


def hypotheses(confidence: Tensor, drafts: Tensor) -> Tensor:
    """P(d): exactly the first d draft rows are accepted. `confidence` [B, k], `drafts` [B] rows in use -> [B, k + 1].

    confidence[:, d] is the chance of draft row d + 1, given that the rows before it are right.
    """
    k = confidence.shape[1]
    in_use = torch.arange(k, device=drafts.device) < drafts[:, None]
    chance = torch.where(in_use, confidence, 0)
    ones = chance.new_ones(len(chance), 1)
    reached = torch.cat([ones, chance], 1).cumprod(1)
    return reached * (1 - torch.cat([chance, 0 * ones], 1))


def majorant(runs: list[float]) -> list[float]:
    """The least concave function above H: `runs[j]` is H(j), the draft run expected from j slots -> the same length."""
    hull: list[int] = []
    for j in range(len(runs)):
        while len(hull) > 1 and slope(runs, hull[-2], hull[-1]) <= slope(runs, hull[-1], j):
            hull.pop()
        hull.append(j)
    best = list(runs)
    for left, right in pairwise(hull):
        for j in range(left + 1, right):
            best[j] = runs[left] + (j - left) * slope(runs, left, right)
    return best


def slope(values: list[float], left: int, right: int) -> float:
    """Rise per step between two places."""
    return (values[right] - values[left]) / (right - left)


def gains(runs: list[float]) -> list[float]:
    """What each further slot adds to a group, by the majorant of H: never more than the slot before it added."""
    best = majorant(runs)
    return [after - before for before, after in pairwise(best)]


def allot(chance: Tensor, gain: Tensor, slots: int) -> Tensor:
    """Slots of every hypothesis: the `slots` largest of P(d) gain(j). [B, k + 1], [J] -> [B, k + 1] int64.

    Of equals the first; gains fall with j, so a group's chosen slots are its first ones and counting them is enough.
    Ranks by comparing all pairs: a compiler makes one kernel of it, where `topk` is several.
    """
    worth = (chance[:, :, None] * gain).flatten(1)  # [B, N]
    index = torch.arange(worth.shape[1], device=worth.device)
    first = (worth[:, None] > worth[:, :, None]) | ((worth[:, None] == worth[:, :, None]) & (index < index[:, None]))
    return (first.sum(2) < slots).unflatten(1, (-1, len(gain))).sum(2)


@dataclass
class Groups:
    """Where every slot belongs; groups lie one after another in the order of their rows."""

    row: Tensor  # [B, m] int64: the token row that the slot's group hangs from
    place: Tensor  # [B, m] int64: index inside the group
    first: Tensor  # [B, rows] int64: index of each row's first slot
    count: Tensor  # [B, rows] int64: slots under each row, `slots` together

    @staticmethod
    def of(count: Tensor, slots: int) -> "Groups":
        """Lay out `count` [B, rows] slots per row."""
        end = count.cumsum(1)
        slot = torch.arange(slots, device=count.device).expand(len(count), -1)
        row = (end[:, None] <= slot[..., None]).sum(-1)
        first = end - count
        return Groups(row, slot - first.gather(1, row), first, count)

    def parents(self) -> Tensor:
        """Rows that the slots follow, [B, m]: the group's token row, then the slot before."""
        tokens, slots = self.count.shape[1], self.row.shape[1]
        before = tokens - 1 + torch.arange(slots, device=self.row.device)
        return torch.where(self.place == 0, self.row, before)

    def structure(self, drafts: Tensor) -> Structure:
        """Of a root, drafts in a line, those past `drafts` [B] of them being padding, and these groups under them."""
        tokens = self.count.shape[1]
        index = torch.arange(tokens + self.row.shape[1], device=self.row.device)
        hangs = torch.cat([index[:tokens].expand_as(self.count), self.row], 1)  # [B, rows]: from which token row
        deeper = torch.cat([torch.zeros_like(self.count), self.place + 1], 1)
        live = hangs <= drafts[:, None]
        line = (index <= hangs[..., None]) & live[..., None] | (index == hangs[..., None])  # [B, rows, token rows]
        group = (hangs[:, None] == hangs[..., None]) & (index <= index[:, None])  # [B, rows, slots]
        return Structure(torch.where(index < tokens, line, group), torch.where(live, hangs, 0) + deeper, live)

    def under(self, row: Tensor, longest: int) -> Tensor:
        """Indices of the `longest` first slots under `row` [B] -> [B, longest]; those past its count are others'."""
        index = self.first.gather(1, row[:, None]) + torch.arange(longest, device=row.device)
        return index.clamp(max=self.row.shape[1] - 1)
