"""How the networks of a restoration run: eager, replayed, compiled, in bfloat16, and where."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import UsageError
from models import compilation
from pipelines.restore.config import Execution, RestoreRule
from pipelines.restore.job import COMPILED_FROM, Restoration, execution
from pipelines.restore.networks import FaceRestorer, RestoredFace, pass_size
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.restore_jobs import job
from tests.support.tiny_bundle import SIDE, write_faces, write_tiny_bundle

FACES = [np.asarray(picture(number, SIDE, SIDE)) for number in range(5)]
NAMES = [f"face-{number}" for number in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny model."""
    return write_tiny_bundle(tmp_path_factory.mktemp("model"), alignment="any")


def restorer(model: Path, **rule: Any) -> FaceRestorer:
    """Load the model on the CPU."""
    return FaceRestorer(RestoreRule(model=str(model), device="cpu", **rule))


def levels_apart(ours: list[RestoredFace], theirs: list[RestoredFace]) -> int:
    """Return the largest difference of two restorations of the same faces, in levels."""
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(a.restored.astype(int) - b.restored).max()) for a, b in pairs)


@pytest.mark.parametrize(
    ("way", "sizes"),
    [
        ("eager", [1, 2, 3, 5, 6]),
        ("graph", [1, 2, 4, 6, 6]),  # powers of two, and the batch
        ("compiled", [6, 6, 6, 6, 6]),
    ],
)
def test_a_pass_has_few_sizes_where_each_costs(way: Execution, sizes: list[int]) -> None:
    """Of one to six faces at --batch 6."""
    assert [pass_size(faces, 6, way) for faces in (1, 2, 3, 5, 6)] == sizes


@pytest.mark.parametrize("way", ["graph", "compiled"])
def test_what_fills_a_pass_is_in_no_result(model: Path, way: Execution) -> None:
    """Five faces in passes of four: as without, but for the order of a kernel's sums."""
    plain, filled = restorer(model, samples=2), restorer(model, samples=2)
    filled.batch, filled.execution = 4, way  # what a GPU would have; the networks stay eager
    seen = []
    filled.velocity.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    found = filled(FACES, NAMES)

    assert len(found) == len(FACES)
    assert levels_apart(found, plain(FACES, NAMES)) <= 1
    assert set(seen) == ({4, 1} if way == "graph" else {4})
    assert all(len(face.samples) == 1 and face.posterior_mean is not None for face in found)


def test_in_bfloat16_no_weight_of_a_layer_is_left_to_cast(model: Path) -> None:
    """The pictures are near those of float32, and the model that is named is the same."""
    half, exact = restorer(model, precision="bfloat16"), restorer(model)
    (ours,), (theirs,) = (one(FACES[:1], NAMES[:1]) for one in (half, exact))
    weights = half.velocity.get_parameter("proj_in.proj.weight")

    assert weights.dtype == torch.bfloat16
    assert half.settings["model"] == exact.settings["model"]
    assert 0 < np.abs(ours.restored.astype(int) - theirs.restored).mean() < 8


@pytest.mark.slow
def test_compiled_blocks_restore_the_same_and_are_captured_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is captured for the second pass and the last, smaller one; the model is the same."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compilation, "BACKEND", "eager")
    plain, compiled = restorer(model), restorer(model)
    compiled.batch, compiled.execution = 2, "compiled"
    for network in (compiled.velocity, compiled._restorer.vae, compiled._restorer.predictor):
        assert network is not None
        compilation.compile_blocks(network)
    counters.clear()
    assert compiled.compile() > 0
    captured = counters["stats"]["unique_graphs"]
    found = compiled(FACES, NAMES)

    assert counters["stats"]["unique_graphs"] == captured > 0
    assert levels_apart(found, plain(FACES, NAMES)) <= 1
    assert compiled.settings == plain.settings


@pytest.mark.parametrize(
    ("pictures", "whole", "given", "chosen"),
    [
        (COMPILED_FROM - 1, False, None, "graph"),
        (COMPILED_FROM, False, None, "compiled"),
        (COMPILED_FROM, True, None, "graph"),
        (COMPILED_FROM, False, "eager", "eager"),
        (1, True, "compiled", "compiled"),
    ],
)
def test_few_pictures_are_not_worth_compiling(
    pictures: int, whole: bool, given: Execution | None, chosen: Execution
) -> None:
    """Photographs, whose faces seldom fill a pass, neither; what is given is taken."""
    rule = RestoreRule(execution=given)

    assert execution(rule, pictures, whole=whole) == chosen


@pytest.mark.parametrize("way", ["graph", "compiled"])
def test_a_cpu_runs_networks_eagerly(model: Path, tmp_path: Path, way: Execution) -> None:
    """What a GPU alone can do is refused: by the command line, or where no GPU is found."""
    with pytest.raises(ValueError, match=f"execution '{way}'.*on a CPU leave it out"):
        RestoreRule(execution=way, device="cpu")
    config = job(write_faces(tmp_path / "in", 1), tmp_path / "out", model)
    open_device = replace(config, rule=replace(config.rule, device=None, execution=way))
    with pytest.raises(UsageError, match=f"execution '{way}'"):
        Restoration(open_device).run(InProcess())
    assert restorer(model).execution == "eager"
