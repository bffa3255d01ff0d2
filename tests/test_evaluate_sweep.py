"""The perception-distortion plane: the points are what restoring and evaluating each way gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import BudgetExceeded, UsageError
from pipelines.evaluate.__main__ import main
from pipelines.evaluate.config import SweepConfig
from pipelines.evaluate.planes import Point, build, series
from pipelines.evaluate.summary import Fingerprint, Value, read_summary
from pipelines.evaluate.sweeping import EVALUATIONS, evaluations, sweep
from pipelines.restore.config import RestoreRule
from pipelines.restore.networks import FaceRestorer
from tests.support.curation_jobs import InProcess
from tests.support.evaluate_models import VAL, parts, write_set
from tests.support.restore_jobs import pictures, restore
from tests.support.tiny_bundle import write_faces, write_tiny_bundle

MEAN, VAE = "posterior-mean", "vae-reconstruction"
METRICS = ("psnr", "brisque", "indrmse")


def job(output: object, model: object, given: object, **fields: Any) -> SweepConfig:
    """Return a small sweep on CPUs that is not tracked."""
    options = {
        name: fields.pop(name)
        for name in ("steps", "solver", "sigma_s", "strength", "seed")
        if name in fields
    }
    found = parts(fields, input=given, metrics=METRICS)
    del found["rule"]
    return SweepConfig(output=str(output), model=str(model), **options, **found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep over two numbers of steps and both solvers."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model", alignment="any")
    write_set(folder / "set")
    sweep(
        job(folder / "out", folder / "model", folder / "set", steps=(1, 2), solver=("heun",)),
        InProcess(),
    )
    return folder


def points(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the points of a sweep by name."""
    found = json.loads((folder / "sweep.json").read_text())["points"]
    return {point["name"]: point for point in found}


def test_every_way_is_a_point_between_the_ends(world: Path) -> None:
    """With its options, what it costs, and the values of the evaluation."""
    found, summary = points(world / "out"), read_summary(world / "out")

    assert [*found] == ["heun-1", "heun-2", MEAN, VAE]
    assert [point["evaluations"] for point in found.values()] == [2, 4, 0, 0]
    assert (found["heun-2"]["solver"], found["heun-2"]["steps"]) == ("heun", 2)
    assert (found["heun-2"]["sigma_s"], found["heun-2"]["strength"]) == (0.1, 1.0)
    for name, point in found.items():
        for metric, value in summary.methods[name].values.items():
            assert point["values"][metric]["value"] == value.value


@pytest.mark.parametrize(
    ("name", "given", "fields"),
    [
        ("heun-1", "lq", {"steps": 1, "solver": "heun"}),
        (MEAN, "lq", {"method": MEAN}),
        (VAE, "hq", {"method": VAE}),
    ],
)
def test_the_pictures_are_those_of_restore(
    world: Path, tmp_path: Path, name: str, given: str, fields: dict[str, Any]
) -> None:
    """Of a point from LQ; of the ends the predictor's output, and D(E(HQ))."""
    restore(world / "out" / "inputs" / given, tmp_path, world / "model", **fields)

    mine, other = pictures(world / "out" / "restored" / name), pictures(tmp_path)
    assert {*mine} == {*other} == {f"{key}.{end}" for key in VAL for end in ("png", "json")}
    for key in VAL:
        assert pixels_of(mine[f"{key}.png"]) == pixels_of(other[f"{key}.png"])


def pixels_of(png: bytes) -> bytes:
    """Return what a PNG holds from its pixels on."""
    return png[png.index(b"IDAT") :]


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (3, 1.0), (3, 0.5), (2, 0.25)])
@pytest.mark.parametrize("solver", EVALUATIONS)
def test_evaluations_are_counted_as_the_network_is_called(
    world: Path, steps: int, strength: float, solver: Any
) -> None:
    """For each solver, number of steps and strength."""
    rule = RestoreRule(
        model=str(world / "model"), device="cpu", steps=steps, strength=strength, solver=solver
    )
    restorer, calls = FaceRestorer(rule), list[int]()
    restorer.velocity.register_forward_hook(lambda *_: calls.append(1))
    face = torch.zeros(restorer.size, restorer.size, 3, dtype=torch.uint8).numpy()
    restorer([face], ["a"])

    assert len(calls) == evaluations(solver, steps, strength)


def test_a_sweep_goes_on_with_what_is_new(world: Path) -> None:
    """Run again it restores nothing; with another value of an option, that alone; and back."""
    before = (world / "out" / "sweep.json").read_bytes()
    again = InProcess()
    fields: dict[str, Any] = {"steps": (1, 2), "solver": ("heun",)}
    sweep(job(world / "out", world / "model", world / "set", **fields), again)
    assert again.count("restore") == again.count("measure") == 0
    assert (world / "out" / "sweep.json").read_bytes() == before

    more = InProcess()
    others: dict[str, Any] = {"steps": (2,), "strength": (0.5, 1.0), "sigma_s": (0.1,)}
    sweep(job(world / "out", world / "model", world / "set", **{**fields, **others}), more)
    names = ["heun-2-sigma-0.1-strength-0.5", "heun-2-sigma-0.1", MEAN, VAE]
    assert [*points(world / "out")] == names
    assert more.count("restore") == 2 * len(VAL)

    sweep(job(world / "out", world / "model", world / "set", **fields), InProcess())
    assert (world / "out" / "sweep.json").read_bytes() == before


def test_without_hq_pictures_the_distortion_is_indrmse(tmp_path: Path) -> None:
    """Of a model in pixels, which has no bound; a metric that is missing is named at the end."""
    write_tiny_bundle(tmp_path / "model", "pixel", alignment="any")
    lq = write_faces(tmp_path / "lq", 2)
    fields: dict[str, Any] = {"steps": (1,), "strength": (0.5,), "protocol": "lfw"}
    with pytest.raises(BudgetExceeded, match="without psnr"):
        sweep(job(tmp_path / "out", tmp_path / "model", lq, **fields), InProcess())

    page = (tmp_path / "out" / "sweep.html").read_text()
    assert [*points(tmp_path / "out")] == ["euler-1-strength-0.5", MEAN]
    assert "brisque, less is better against indrmse, less is better" in page


def point(name: str, kind: Any = "flow", value: float | None = 1.0, **fields: Any) -> Point:
    """Make a point with equal values of some metrics."""
    fingerprint = Fingerprint(
        **dict.fromkeys(("metric", "variant", "implementation", "weights", "resize"), ""),
        **dict.fromkeys(("reference", "dtype", "device"), ""),
        n=7,
    )
    values = {
        metric: Value(value=value, low=value, high=value, fingerprint=fingerprint)
        for metric in ("psnr", "lpips")
    }
    return Point(name=name, kind=kind, values=values, **fields)


@pytest.mark.parametrize(
    ("varied", "names", "labels"),
    [
        ({"steps": (8, 1)}, ["euler by steps"], [["1", "8"]]),
        ({"strength": (1.0, 0.5)}, ["euler by strength"], [["0.5", "1"]]),
        (
            {"steps": (1, 2), "solver": ("euler", "heun")},
            ["euler by steps", "heun by steps"],
            [["1", "2"]] * 2,
        ),
        (
            {"steps": (1, 2), "sigma_s": (0.1, 0.2)},
            ["euler by steps, sigma_s 0.1", "euler by steps, sigma_s 0.2"],
            [["1", "2"]] * 2,
        ),
    ],
)
def test_points_that_differ_in_one_option_are_joined(
    varied: dict[str, Any], names: list[str], labels: list[list[str]]
) -> None:
    """In its order, which the labels say; what else differs makes another line."""
    options = {"solver": ("euler",), "steps": (4,), "sigma_s": (0.1,), "strength": (1.0,)} | varied
    ways: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        ways = [{**way, name: value} for way in ways for value in values]
    found = series([*(point("x", **way) for way in ways), point("gan", "other")], "psnr", "lpips")

    assert [one.name for one in found] == [*names, "gan"]
    assert [one.labels for one in found] == [*labels, None]


def test_the_page_holds_all_it_needs() -> None:
    """Nothing is fetched, names are escaped, and a value that is missing is a dash."""
    flow = {"solver": "euler", "sigma_s": 0.1, "strength": 1.0}
    page = build(
        [
            *(point(f"euler-{steps}", steps=steps, evaluations=steps, **flow) for steps in (1, 2)),
            point('<b>&"', "other", value=None),
            point(VAE, "bound", evaluations=0),
        ]
    )

    assert '<b>&"' not in page
    assert "&lt;b&gt;&amp;&quot;" in page
    assert "http" not in page
    assert page.count('<svg viewBox="0 0 450') == 2
    assert "<td>-</td>" in page


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": ()}, "steps is empty"),
        ({"solver": ()}, "solver is empty"),
        ({"strength": (0.0,)}, "strength"),
        ({"steps": (0,)}, "steps"),
        ({"sigma_s": (-0.1,)}, "sigma_s"),
    ],
)
def test_options_that_give_no_point_are_refused(fields: dict[str, Any], said: str) -> None:
    """An empty list, or a value outside of what a flow can have."""
    with pytest.raises(ValueError, match=said):
        job("out", "model", "set", **fields)


def test_the_command_says_what_is_missing() -> None:
    """The model, in the words of its options."""
    with pytest.raises(UsageError, match="no --model"):
        main(["sweep", "-o", "out", "-i", "lq", "--steps", "1", "2", "--solver", "euler", "heun"])
