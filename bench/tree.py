"""A step's tree of rows: root, draft rows and slot rows, all derived from `(tokens, parents)`."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tree:
    """What a method proposes for one step.

    A row's parent is the row that it would follow; parents come before children. A row that is its own parent starts
    a tree: row 0 is the root, any other is padding that sees only itself. Slot rows come after all token rows.
    """

    tokens: Tensor  # [B, n] int64: row 0 is the last committed token, the others are drafts
    parents: Tensor  # [B, n + m] int64
    depth: int  # no draft row is deeper
    slots: Tensor | None = None  # [B, m, hidden]: embedded noise of the slot rows
    slot_shift: int = 0  # slots sit this many positions before `root + depth` (one-hot students: 1)
    score_slots: bool = True  # False: the method wants the head's inputs of its slots, not their logits
    draft_mass: Tensor | None = None  # [B, n - 1, vocab] int64: the draft's law, for `reject`; 0 at padding
    is_chain: bool = False  # every draft follows the row before it: accepted rows already lie where they belong
    structure: "Structure | None" = None  # given by methods whose parents never change

    def resolve(self) -> "Structure":
        """The given structure, or the one derived from `parents`."""
        if self.structure is None:
            self.structure = Structure.of(self.parents)
        return self.structure


@dataclass
class Structure:
    """Everything that follows from `parents`."""

    ancestors: Tensor  # [B, rows, rows] bool: row sees column (its ancestors and itself)
    depths: Tensor  # [B, rows] int64: number of parents up to the start of the row's tree
    live: Tensor  # [B, rows] bool: hangs from the root, so it sees the committed prefix

    @staticmethod
    def of(parents: Tensor) -> "Structure":
        """Ancestors by pointer doubling: after i rounds every row knows its 2^i nearest ancestors."""
        rows = parents.shape[1]
        ancestors = torch.eye(rows, dtype=torch.bool, device=parents.device) | one_hot(parents, rows)
        jump = parents
        for _ in range(max(rows - 2, 0).bit_length()):
            ancestors = ancestors | ancestors.gather(1, jump[:, :, None].expand_as(ancestors))
            jump = jump.gather(1, jump)
        return Structure(ancestors, ancestors.sum(-1) - 1, ancestors[:, :, 0])

    def positions(self, tree: Tree, root: Tensor) -> Tensor:
        """Absolute position of every row. `root` [B] int64 -> [B, rows] int64."""
        positions = root[:, None] + self.depths
        if tree.slot_shift:
            n = tree.tokens.shape[1]
            positions = torch.cat([positions[:, :n], positions[:, n:] - tree.slot_shift], 1)
        return positions


def one_hot(index: Tensor, size: int) -> Tensor:
    """[..] int64 -> [.., size] bool."""
    return index[..., None] == torch.arange(size, device=index.device)


def chain_parents(rows: int, batch: int, device: torch.device | str) -> Tensor:
    """Parents of root, first draft, second draft, ... -> [B, rows] int64."""
    return (torch.arange(rows, device=device) - 1).clamp(min=0).repeat(batch, 1)


def chain(rows: int, batch: int, device: torch.device | str, drafts: Tensor | None = None) -> Structure:
    """The structure of a root followed by `rows - 1` drafts in a line; rows past `drafts` [B] of them are padding."""
    row = torch.arange(rows, device=device)
    live = torch.ones(batch, rows, dtype=torch.bool, device=device) if drafts is None else row <= drafts[:, None]
    before = (row <= row[:, None]) & live[:, :, None]
    return Structure(before | (row == row[:, None]), torch.where(live, row, 0), live)
