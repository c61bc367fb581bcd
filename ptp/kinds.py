"""The two kinds of student, told apart by the indices of their slots."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Slot j of a group that hangs from the token at position p takes `u[p + 1 + j]`.

    One-hot (O-PTP, theorem 1): it sits at p + j and predicts token p + 1 + j itself, so slot 0 repeats what the target
    decides anyway. Categorical (C-PTP, theorem 2): it sits at p + 1 + j and predicts the law of token p + 2 + j.
    """

    name: str
    known: int  # leading slots that only repeat what the target decides; also how far slots sit before p + 1

    @property
    def ahead(self) -> int:
        """Slot j predicts the token at p + ahead + j."""
        return 2 - self.known


ONE_HOT = Kind("o", known=1)
CATEGORICAL = Kind("c", known=0)
KINDS = {kind.name: kind for kind in (ONE_HOT, CATEGORICAL)}
