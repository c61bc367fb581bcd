"""Plain autoregressive decoding: the same loop with a tree of one row. The denominator of every speedup."""

from bench.loop import Method
from bench.tree import Tree, chain, chain_parents


class Autoregressive(Method):
    """One row, one token."""

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings, drafter)
        self.structure = chain(1, sequences.batch, sequences.device)
        self.parents = chain_parents(1, sequences.batch, sequences.device)

    def propose(self, kind: int) -> Tree:
        """The last committed token, no drafts."""
        return Tree(self.sequences.root_tokens(), self.parents, depth=0, is_chain=True, structure=self.structure)
