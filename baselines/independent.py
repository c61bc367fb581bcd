"""The control that PTP must beat: the same student, slots and budget, but the slots are given no noise."""

from dataclasses import dataclass, replace
from typing import Any

from bench.errors import BenchError
from ptp import decoding


@dataclass(frozen=True)
class Settings(decoding.Settings):
    """`draw`: drafts are the arg max of each slot, or `pick` with the true `u`; by default what accepted more."""

    draw: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.draw not in ("", "argmax", "pick"):
            raise BenchError(f"independent: draw must be argmax or pick, got {self.draw!r}")


class Independent(decoding.PTP):
    """Predicts every token from the prefix alone, so its drafts cannot agree with one another."""

    Settings = Settings
    name = "independent"

    def require_fit(self) -> None:
        """BenchError when the student cannot do what the settings ask for, or has learned to listen."""
        super().require_fit()
        if self.drafter.design.informed:
            raise BenchError("independent: this student was trained with noise; it belongs to ptp")

    def settled(self) -> Any:
        """The settings with the student's own in place of what was left out."""
        settled = super().settled()
        return replace(settled, draw=self.way) if self.law.temperature else settled

    def best_way(self) -> str:
        """How drafts are drawn from the student's law; temperature 0 leaves no choice."""
        return "greedy" if self.law.temperature == 0 else self.settings.draw or super().best_way()
