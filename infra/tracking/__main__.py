"""``python -m infra.tracking FOLDER`` sends what a run's folder holds and MLflow has not got."""

from collections.abc import Sequence
from pathlib import Path

from infra.cli import run
from infra.errors import UsageError
from infra.tracking.uploader import send_waiting


def main(arguments: Sequence[str]) -> int:
    """Send; returns 1 while something is left."""
    if len(arguments) != 1:
        raise UsageError("usage: python -m infra.tracking FOLDER, the one that the warning named")
    return 1 if send_waiting(Path(arguments[0])) else 0


if __name__ == "__main__":
    run(main)
