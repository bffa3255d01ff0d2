"""Run a program that is sent a signal just before it does something to a file.

python -m tests.support.signalled SIGKILL 1 "os.rename *step-00000008/.manifest*" MODULE [ARGUMENTS]

The signal is aimed, not timed, so it strikes at the same place on a fast machine and on a busy one:
before the first, second, ... event that matches the pattern. The interpreter's own audit events
tell what is opened, renamed, made and removed. It has none for ``os.write``, which is wrapped: such
an event names the file and how the data begin, as in ``os.write */log.jsonl {"step": 7,*``.
"""

import fnmatch
import itertools
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.write")
HEAD = 60  # characters of the data written


def main() -> None:
    """Watch, and run the module as ``python -m`` does."""
    name, number, pattern, *sys.argv = sys.argv[1:]
    matches = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_match = event in EVENTS and fnmatch.fnmatchcase(f"{event} {arguments[0]}", pattern)
        if is_match and next(matches) == int(number):
            os.kill(os.getpid(), signal.Signals[name])

    write = os.write

    def written(descriptor: int, data: bytes | memoryview) -> int:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        watch("os.write", (f"{path} {bytes(data[:HEAD]).decode(errors='replace')}",))
        return write(descriptor, data)

    os.write = written
    sys.addaudithook(watch)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
