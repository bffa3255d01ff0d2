"""Other people's restorers: what is said where spandrel does not load, and what runs where it does.

spandrel needs torchvision, which loads beside a CUDA build of PyTorch only; in an environment
without them the tests of the models themselves are skipped.
"""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import UsageError
from pipelines.restore.comparators import import_spandrel, load_comparator
from pipelines.restore.config import RestoreRule
from pipelines.restore.networks import FaceRestorer


def loads() -> bool:
    """Tell whether spandrel can be used here."""
    try:
        return bool(import_spandrel())
    except UsageError:
        return False


needs_spandrel = pytest.mark.skipif(not loads(), reason="spandrel does not load here")


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is not None, reason="spandrel is here")
def test_without_spandrel_the_extra_is_named() -> None:
    """By the command that installs it."""
    with pytest.raises(UsageError, match=r"the package spandrel, .*'\.\[comparators\]'"):
        FaceRestorer(RestoreRule(model="GFPGANv1.4.pth", method="spandrel", device="cpu"))


def test_a_torchvision_that_does_not_load_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed, of which build PyTorch is, and what to do.

    The file raises what torchvision 0.28 raises beside a CPU build of PyTorch 2.13.
    """
    raised = "operator torchvision::nms does not exist"
    (tmp_path / "spandrel.py").write_text(f"raise RuntimeError({raised!r})\n")
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as refused:
        import_spandrel()
    said = str(refused.value)

    assert said.startswith("--method spandrel: spandrel does not load")
    assert raised in said
    assert f"here PyTorch is {torch.__version__}. Install both from one place" in said


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 5, "sigma_s": 0.1}, "steps, sigma_s"),
        ({"solver": "heun"}, "solver"),
        ({"strength": 0.5}, "strength"),
    ],
)
def test_settings_of_a_flow_are_refused(fields: dict[str, Any], named: str) -> None:
    """They would have no meaning, so that a comparison would be of something else."""
    with pytest.raises(ValueError, match=f"has no {named}: a restorer of others is no flow"):
        RestoreRule(method="spandrel", **fields)


def write_dncnn(folder: Path, channels: int = 3) -> Path:
    """Write a small denoiser that spandrel recognises, of 17 layers, with weights of its own."""
    generator = torch.Generator().manual_seed(0)
    widths = [channels, *[64] * 16, channels]
    state = {}
    for layer, (given, made) in enumerate(pairwise(widths)):
        weight = torch.randn(made, given, 3, 3, generator=generator) * 0.05
        state |= {f"model.{2 * layer}.weight": weight, f"model.{2 * layer}.bias": torch.zeros(made)}
    torch.save(state, folder / "dncnn.pth")
    return folder / "dncnn.pth"


@needs_spandrel
def test_a_model_restores_as_spandrel_runs_it(tmp_path: Path) -> None:
    """To a level, alone and among others; its digest is that of the file."""
    spandrel, file = import_spandrel(), write_dncnn(tmp_path)
    faces = list(np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), np.uint8))
    restorer = FaceRestorer(RestoreRule(model=str(file), method="spandrel", device="cpu"))
    found = restorer(faces, ["a", "b"])
    image = torch.from_numpy(faces[1]).permute(2, 0, 1)[None].float() / 255
    theirs = spandrel.ModelLoader().load_from_file(file)(image)[0].permute(1, 2, 0).numpy()

    assert np.abs(found[1].restored - theirs * 255).max() < 0.51
    assert (restorer(faces[1:], ["b"])[0].restored == found[1].restored).all()
    assert restorer.settings["method"] == "spandrel"
    assert found[0].posterior_mean is None


@needs_spandrel
def test_a_file_that_is_no_restorer_of_faces_is_refused(tmp_path: Path) -> None:
    """Grey models, other networks, other files."""
    with pytest.raises(UsageError, match="1 channels in and 1 out"):
        load_comparator(str(write_dncnn(tmp_path, channels=1)))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="recognises no model"):
        load_comparator(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UsageError, match="not a file of a model"):
        load_comparator(str(tmp_path / "text.pth"))
    with pytest.raises(UsageError, match=r"not a file of a model \(FileNotFoundError"):
        load_comparator(str(tmp_path / "missing.pth"))
