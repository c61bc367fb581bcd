"""The control that PTP must beat: the same student, slots and budget, but the slots are given no noise."""

from bench.errors import BenchError
from ptp import decoding


class Independent(decoding.PTP):
    """Predicts every token from the prefix alone, so its drafts cannot agree with one another."""

    name = "independent"

    def require_fit(self) -> None:
        """BenchError when the student cannot do what the settings ask for, or has learned to listen."""
        super().require_fit()
        if self.drafter.design.informed:
            raise BenchError("independent: this student was trained with noise; it belongs to ptp")
