"""Curate, encode and train on hosts that share nothing but a bucket: `python -m tests.cluster`.

The hosts are namespaces of this machine (tests/cluster/hosts.py). One is killed in the midst of
each stage, and the same command finishes it. Everything that is made is compared with what a single
machine makes on its disk, and everything that is written is searched for the secret key. It takes
a quarter of an hour of two cores. With a folder as argument, all disks and outputs are kept there.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import ROOT, inside, why_not


def main(arguments: Sequence[str]) -> int:
    """Run the story in namespaces of its own, so that nothing outlives it; returns its code."""
    reason = why_not()
    if reason:
        sys.stderr.write(f"error: no cluster of namespaces: {reason}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="cluster-") as temporary:
        folder = Path(arguments[0] if arguments else temporary).absolute()
        if folder.exists() and any(folder.iterdir()):
            sys.stderr.write(f"error: {folder} is not empty; give a new folder\n")
            return 1
        command = [*inside(), sys.executable, "-m", "tests.cluster.story", str(folder)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
