"""What a run says to the person at its terminal, by one of its ranks."""

import os
import sys

from infra.distributed import rank


def say(text: str) -> None:
    """Write to the terminal, on rank 0 only."""
    if rank() == 0:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:  # the terminal or pipe ended first; what matters is in the log
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Warn on the terminal, on rank 0 only."""
    if rank() == 0:
        sys.stderr.write(f"WARNING: {text}\n")
