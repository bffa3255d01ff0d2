"""Run a program that is killed just before it does something to a file: a kill aimed, not timed.

python -m tests.support.killed "os.rename *step-00000008/.manifest*" MODULE [ARGUMENTS]

The interpreter's own audit events tell what is opened, renamed, made and removed; nothing of the
program is patched, and the signal is SIGKILL.
"""

import fnmatch
import os
import runpy
import signal
import sys
from typing import Any

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def main() -> None:
    """Watch, and run the module as ``python -m`` does."""
    pattern = sys.argv[1]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and fnmatch.fnmatchcase(f"{event} {arguments[0]}", pattern):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
