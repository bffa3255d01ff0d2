"""Where libraries write: not in the home directory; or it is said which, and what moves it."""

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from infra.errors import UserError
from models.checkpoint import CheckpointError
from models.qalign.files import BadCheckpoint, locate
from models.vae.public import load_public_vae
from pipelines.jobs.ray_files import take_own_token
from pipelines.jobs.stage import RayEngine


def test_ray_is_named_where_it_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a path that the user never gave, but who wants it and which variable moves it."""
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/x")
    with pytest.raises(UserError, match=r"Ray, .* cannot write /dev/null/x.*set RAY_TMPDIR to a"):
        RayEngine(1).__enter__()


def test_a_token_of_the_users_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One is made only where the user gives none."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    take_own_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "theirs"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    take_own_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    take_own_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("load", [lambda: load_public_vae("sd15-f8c4"), lambda: locate("a/b")])
def test_the_hub_is_named_where_it_cannot_write(
    load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache is in a home directory that may not be there; HF_HOME moves it."""

    def unwritable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/x/.cache/huggingface/token")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, unwritable)
    refused = (CheckpointError, BadCheckpoint)
    with pytest.raises(refused, match=r"/home/x/.*: set HF_HOME to a folder of yours\)"):
        load()
