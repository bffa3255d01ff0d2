"""Run every check the project has: `python -m tests`. Arguments go to pytest.

`python -m tests -m slow` runs the tests that take minutes, `-n 8` spreads them over more processes
than two, and `-n 0` runs them in this one, for a debugger.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPES = ("types", "mypy")
CHECKS = (
    ("lint", "ruff", "check", "."),
    ("format", "ruff", "format", "--check", "."),
    ("tests", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
)
# Without bytecode each of the hundred processes that tests start would compile the project anew.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def main() -> int:
    """Run every check; return the first failure's exit code after all have run.

    mypy takes one core for half a minute: it begins first, beside the others, and is reported last.
    """
    name, module, *_ = TYPES
    with tempfile.TemporaryFile("w+") as said:
        types = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        codes = [_run(*check) for check in CHECKS]
        codes.append(types.wait())
        said.seek(0)
        _say(f"== {name}: {module}\n{said.read()}")
    return next((code for code in codes if code), 0)


def _run(name: str, module: str, *arguments: str) -> int:
    """Run a check, which writes to the terminal itself; returns its exit code."""
    command = [module, *arguments, *(sys.argv[1:] if module == "pytest" else [])]
    _say(f"== {name}: {' '.join(command)}\n")
    command = [sys.executable, "-m", *command]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False).returncode


def _say(text: str) -> None:
    """Write to the output at once, before what the next process writes."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
