"""The one error that a user can cause and mend."""

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT, as shells have it


class BenchError(Exception):
    """Bad input or an impossible request: one line that says what was wrong and what to do (exit status 2)."""
