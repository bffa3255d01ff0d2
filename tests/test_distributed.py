"""Ranks come from the launcher's environment."""

import pytest

from infra.distributed import rank, world_size
from infra.errors import UsageError


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_process_nobody_launched_is_the_only_one() -> None:
    """Without a launcher there is rank 0 of 1."""
    assert (rank(), world_size()) == (0, 1)


def test_the_launcher_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank and world size are what torchrun and deepspeed set."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")

    assert (rank(), world_size()) == (3, 8)


@pytest.mark.parametrize(
    ("number", "total"), [("3", "2"), ("1", ""), ("-1", "2"), ("0", "0"), ("one", "2")]
)
def test_a_contradiction_is_refused(
    monkeypatch: pytest.MonkeyPatch, number: str, total: str
) -> None:
    """Two rank-0 processes would be worse than an error."""
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("WORLD_SIZE", total)

    with pytest.raises(UsageError, match=r"RANK|WORLD_SIZE"):
        rank()
