"""How the published weights of metrics are looked for: in one way, and missed in one form."""

import re
from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointNotFoundError
from models.metrics.catalog import METRICS
from models.metrics.published import PublishedFile

OF_FILES = (
    *("lpips", "lpips_vgg", "dists", "deg", "deg_vqfr", "lmd", "lmd_vqfr", "musiq", "clipiqa"),
    *("niqe", "fid", "fid_legacy", "fid_dinov2", "mmd_dinov2", "mmd_dinov2_unbiased"),
)
FILE = PublishedFile("a.pth", "1 MB", "https://a.org/a.pth", ("b.pth",), "b.pth of the package b")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make torch.hub's cache and pyiqa's, which lie side by side."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    found = [tmp_path / "checkpoints", tmp_path / "pyiqa"]
    for cache in found:
        cache.mkdir()
    return found


@pytest.mark.parametrize("name", OF_FILES)
def test_every_missing_file_is_told_in_one_form(
    name: str, caches: list[Path], tmp_path: Path
) -> None:
    """By its path, address and size: in the folder given, or else in both caches."""
    for folder, places in ((tmp_path / "mine", [tmp_path / "mine"]), (None, caches)):
        with pytest.raises(CheckpointNotFoundError) as caught:
            METRICS[name].digest(folder)
        where = r"get .+ \(\d.* [kMG]B\) and put it there(?: or as (.+?))?(?:, or .+)?"
        said = re.fullmatch(rf"(.+): no such file; {where}", str(caught.value))

        assert said is not None, caught.value
        assert [Path(path).parent for path in said.groups()[:2] if path] == places
        assert len({Path(path).name for path in said.groups()[:2] if path}) == 1


def test_a_file_is_taken_by_each_of_its_names(caches: list[Path], tmp_path: Path) -> None:
    """The first cache before the second, its own name before another, and other files last."""
    last = tmp_path / "last.pth"
    for place in (last, caches[1] / "b.pth", caches[1] / "a.pth", caches[0] / "b.pth"):
        place.touch()

        assert FILE.find(None, last) == place


def test_a_folder_that_is_given_is_the_only_one(caches: list[Path], tmp_path: Path) -> None:
    """Weights in a cache do not stand in for those that the user named."""
    (caches[0] / "a.pth").touch()

    with pytest.raises(CheckpointNotFoundError, match=r"b\.pth of the package b$"):
        FILE.find(tmp_path / "mine")
