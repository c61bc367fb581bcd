"""The control that PTP must beat: the same student, slots and budget, but the slots are given no noise."""

from dataclasses import dataclass

from bench.errors import BenchError
from ptp import decoding


@dataclass(frozen=True)
class Settings(decoding.Settings):
    """`draw`: drafts are the arg max of each slot, or `pick` with the true `u`; whichever accepts more."""

    draw: str = "argmax"

    def __post_init__(self):
        super().__post_init__()
        if self.draw not in ("argmax", "pick"):
            raise BenchError(f"independent: draw must be argmax or pick, got {self.draw!r}")


class Independent(decoding.PTP):
    """Predicts every token from the prefix alone, so its drafts cannot agree with one another."""

    Settings = Settings
    name = "independent"

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings, drafter)
        if drafter.design.informed:
            raise BenchError("independent: this student was trained with noise; it belongs to ptp")

    @property
    def way(self) -> str:
        """How drafts are drawn from the student's law."""
        return "greedy" if self.law.temperature == 0 else self.settings.draw
