"""Who ran what from which commit: the facts that let a result be traced back."""

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def git_commit() -> tuple[str, bool] | None:
    """Return this checkout's commit and whether files differ from it; None outside one."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip(), bool(changed.strip())


def tags() -> dict[str, str]:
    """Describe this process in the tags that MLflow's pages show."""
    found = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name,  # of a whole command the pages show the end
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "mlflow.user": _user(),
        "host": platform.node(),
    }
    commit = git_commit()
    if commit:
        found["mlflow.source.git.commit"] = commit[0]
        found["git.changed"] = str(commit[1]).lower()
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True, timeout=5
    ).stdout


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
