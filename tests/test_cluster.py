"""The story of `python -m tests.cluster`, as a test."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import why_not
from tests.conftest import ROOT


@pytest.mark.slow
def test_hosts_that_share_nothing_but_a_bucket_make_the_same(tmp_path: Path) -> None:
    """Curated, encoded and trained, with a host killed in the midst of each: as on one machine.

    No file and no output of any program holds the secret key.
    """
    if reason := why_not():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.cluster", str(tmp_path / "cluster")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
