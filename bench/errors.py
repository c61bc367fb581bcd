"""The one error that a user can cause and mend."""


class BenchError(Exception):
    """Bad input or an impossible request: one line that says what was wrong and what to do (exit status 2)."""
