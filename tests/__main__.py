"""Run every check the project has: `python -m tests`. Arguments go to pytest.

`python -m tests -m slow` runs the tests that take minutes, `-n 8` spreads them over more processes
than two, and `-n 0` runs them in this one, for a debugger.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    ("lint", "ruff", "check", "."),
    ("format", "ruff", "format", "--check", "."),
    ("types", "mypy"),
    ("tests", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
)


def main() -> int:
    """Run every check in turn; return the first failure's exit code after all have run."""
    codes = []
    for name, module, *arguments in CHECKS:
        extra = sys.argv[1:] if module == "pytest" else []
        sys.stdout.write(f"== {name}: {module} {' '.join([*arguments, *extra])}\n")
        sys.stdout.flush()
        codes.append(
            subprocess.run(
                [sys.executable, "-m", module, *arguments, *extra], cwd=ROOT, check=False
            ).returncode
        )
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
