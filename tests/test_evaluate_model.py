"""A model that is evaluated in one command: the numbers of restoring first and measuring then."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.degradation.parameters import PRESETS, DegradationParameters
from datasets.degradation.reference import degrade, draw_parameters
from infra.config import to_dict
from infra.errors import UsageError, UserError
from infra.paths import path_of
from models.bundle import load_bundle
from models.bundle_facts import TrainingFacts
from pipelines.evaluate.__main__ import main
from pipelines.evaluate.summary import Summary, read_summary
from tests.conftest import picture
from tests.support import evaluate_jobs
from tests.support.encoding_jobs import Stopping
from tests.support.evaluate_models import VAL, evaluate, job, write_set
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import uploaded
from tests.support.published_sets import SMALL, sample, write_images, write_latents
from tests.support.restore_jobs import made, restore
from tests.support.tiny_bundle import SIDE, write_tiny_bundle

LATENT, MEAN = "latent-pmrf", "posterior-mean"
FACE = np.asarray(picture(0, SIDE, SIDE))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and an image set, and evaluate the model on it once in peace."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model", alignment="any")
    write_set(folder / "set")
    evaluate(folder / "whole", folder / "model", folder / "set")
    return folder


def degradation(key: str, seed: int = 0) -> DegradationParameters:
    """Draw what the jobs of this file degrade a key by."""
    return draw_parameters(PRESETS["pmrf-128"], seed=seed, key=key)


def levels(path: Path) -> np.ndarray:
    """Read a picture."""
    with Image.open(path) as image:
        return np.asarray(image)


def by_hand(folder: Path) -> Path:
    """Degrade the validation split without the job."""
    for number, key in enumerate(VAL):
        pair = degrade(np.asarray(picture(number, SIDE, SIDE)), degradation(key))
        for name, image in (("lq", pair.lq), ("hq", pair.hq)):
            path = folder / name / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(path)
    return folder


def without_places(summary: Summary) -> Any:
    """Return the numbers of a summary with their fingerprints, by method."""
    return {name: (one.pixels, one.values) for name, one in summary.methods.items()}


def test_the_numbers_are_those_of_restoring_and_evaluating_by_hand(
    world: Path, tmp_path: Path
) -> None:
    """Values, intervals, fingerprints and the digests of the pictures, of both methods."""
    hand = by_hand(tmp_path)
    restore(hand / "lq", hand / "ours", world / "model")
    restore(hand / "lq", hand / "mean", world / "model", method=MEAN)
    summary = evaluate_jobs.evaluate(
        hand / "out",
        {LATENT: hand / "ours", MEAN: hand / "mean"},
        metrics=("psnr", "ssim", "colour", "indrmse"),
        reference=hand / "hq",
        posterior_mean=hand / "mean",
    )

    assert without_places(read_summary(world / "whole")) == without_places(summary)


def test_pictures_are_degraded_as_their_keys_say(world: Path, tmp_path: Path) -> None:
    """HQ and LQ to the level, and the table of what was drawn."""
    hand, inputs = by_hand(tmp_path), world / "whole" / "inputs"
    table = pq.read_table(inputs / "degradations.parquet").to_pylist()

    for key in VAL:
        for name in ("lq", "hq"):
            mine, other = (levels(at / name / f"{key}.png") for at in (inputs, hand))
            assert np.array_equal(mine, other)
    assert table == [{"key": key, **degradation(key).severity} for key in VAL]


def test_a_set_is_degraded_as_the_model_was_trained_to_undo(world: Path, tmp_path: Path) -> None:
    """As its bundle says; where that says nothing, the user is asked."""
    facts = TrainingFacts(degradation=to_dict(PRESETS["pmrf-128"]))
    model = write_tiny_bundle(tmp_path / "model", alignment="any", training=facts)
    evaluate(tmp_path / "out", model, world / "set", degradation=None, limit=1)
    lq = f"inputs/lq/{VAL[0]}.png"
    assert made(tmp_path / "out")[lq] == made(world / "whole")[lq]

    with pytest.raises(UsageError, match="give --degradation, one of pmrf, pmrf-128,"):
        evaluate(tmp_path / "other", world / "model", world / "set", degradation=None)


def test_a_picture_does_not_depend_on_the_others(world: Path, tmp_path: Path) -> None:
    """The first of a set has the same LQ picture without the rest, and so on."""
    evaluate(tmp_path, world / "model", world / "set", limit=1)
    first, whole = made(tmp_path), made(world / "whole")

    for name in (
        f"inputs/lq/{VAL[0]}.png",
        f"inputs/hq/{VAL[0]}.png",
        f"restored/{MEAN}/face-0.png",
    ):
        assert first[name] == whole[name]
    assert f"inputs/lq/{VAL[1]}.png" not in first


def test_a_job_that_is_killed_is_finished_by_the_same_command(world: Path, tmp_path: Path) -> None:
    """Killed while it degrades, restores either way and measures: the same numbers and pictures."""
    for units in (0, 1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path, world / "model", world / "set", Stopping(units))
    evaluate(tmp_path, world / "model", world / "set")

    assert pictures(tmp_path) == pictures(world / "whole")
    assert without_places(read_summary(tmp_path)) == without_places(read_summary(world / "whole"))


def pictures(folder: Path) -> dict[str, bytes]:
    """Return what was degraded and restored, by name."""
    wanted = (".png", ".json", "degradations.parquet")
    found = made(folder).items()
    return {n: d for n, d in found if n.endswith(wanted) and "/" in n and "/." not in n}


@pytest.mark.parametrize(
    "lost",
    [
        ("inputs",),
        (
            *(f"inputs/lq/{VAL[0]}.png", f"inputs/hq/{VAL[2]}.png"),
            *("inputs/degradations.parquet", f"restored/{LATENT}/{VAL[1]}.png"),
        ),
    ],
)
def test_what_was_deleted_is_made_again(world: Path, tmp_path: Path, lost: tuple[str, ...]) -> None:
    """A folder or some files, with the same bytes; and the numbers stay."""
    out = tmp_path / "out"
    shutil.copytree(world / "whole", out)
    for name in lost:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    evaluate(out, world / "model", world / "set")

    assert pictures(out) == pictures(world / "whole")
    assert without_places(read_summary(out)) == without_places(read_summary(world / "whole"))


def test_values_are_sliced_by_what_was_drawn(world: Path) -> None:
    """By all four parameters, each range with ends that some key has."""
    found = read_summary(world / "whole").slices
    drawn = [degradation(key).severity for key in VAL]

    assert {one.by for one in found} == {*drawn[0]}
    for one in found:
        assert {one.at_least, one.at_most} <= {severity[one.by] for severity in drawn}


def test_a_summary_says_of_which_bundle_a_method_is(world: Path) -> None:
    """Its digest, and the settings that the pictures depend on."""
    methods = read_summary(world / "whole").methods

    assert methods[LATENT].restored["model"] == load_bundle(world / "model").config.digest
    assert methods[LATENT].restored["steps"] == 2
    assert methods[MEAN].restored["method"] == MEAN


def test_given_lq_pictures_are_compared_with_the_reference(world: Path, tmp_path: Path) -> None:
    """As if the set had been degraded here; another method stands beside the model's."""
    hand = by_hand(tmp_path)
    restored = f"copied={world / 'whole' / 'restored' / LATENT}"
    summary = evaluate(
        tmp_path / "out",
        *(world / "model", hand / "lq"),
        reference=hand / "hq",
        restored=(restored,),
        name="ours",
    )

    whole = read_summary(world / "whole").methods
    assert [*summary.methods] == ["ours", MEAN, "copied"]
    assert summary.methods["ours"].values == summary.methods["copied"].values
    assert summary.methods["ours"].values == whole[LATENT].values


def test_a_posterior_mean_that_is_given_takes_the_model_s_place(
    world: Path, tmp_path: Path
) -> None:
    """It is not restored, and indrmse compares with the given one."""
    mean = world / "whole" / "restored" / MEAN
    summary = evaluate(tmp_path, world / "model", world / "set", posterior_mean=mean)

    whole = read_summary(world / "whole").methods[LATENT]
    assert [*summary.methods] == [LATENT]
    assert summary.methods[LATENT].values == whole.values


def test_another_name_adds_a_method(world: Path, tmp_path: Path) -> None:
    """In one folder; what was restored before is given by its folder."""
    out = tmp_path / "out"
    shutil.copytree(world / "whole", out)
    first = f"{LATENT}={out / 'restored' / LATENT}"
    summary = evaluate(
        out, world / "model", world / "set", name="half", strength=0.5, restored=(first,)
    )

    assert [*summary.methods] == ["half", MEAN, LATENT]
    assert summary.methods["half"].pixels != summary.methods[LATENT].pixels


def test_another_model_of_the_same_predictor_is_added(world: Path, tmp_path: Path) -> None:
    """In one folder; the posterior mean is the same, whatever flow is around its predictor."""
    out, pixel = tmp_path / "out", write_tiny_bundle(tmp_path / "pixel", "pixel", steps=3)
    shutil.copytree(world / "whole", out)
    first = f"{LATENT}={out / 'restored' / LATENT}"
    summary = evaluate(out, pixel, world / "set", restored=(first,))

    assert [*summary.methods] == ["pmrf", MEAN, LATENT]
    assert summary.methods[MEAN].pixels == read_summary(world / "whole").methods[MEAN].pixels


def test_a_posterior_mean_of_another_predictor_is_refused(world: Path, tmp_path: Path) -> None:
    """In one folder the distances of two methods would be from different pictures."""
    out, other = tmp_path / "out", write_tiny_bundle(tmp_path / "other", seed=1, alignment="any")
    shutil.copytree(world / "whole", out)

    with pytest.raises(UsageError, match=r"restored/posterior-mean.*predictor"):
        evaluate(out, other, world / "set", name="other")


def test_a_saved_configuration_goes_on(world: Path) -> None:
    """With --config the same command runs, and finds everything done."""
    before = made(world / "whole")
    saved = world / "whole" / ".evaluate" / "config.json"

    assert saved.is_file()
    evaluate(world / "whole", world / "model", world / "set")
    assert made(world / "whole").keys() == before.keys()
    assert f'"model": "{world / "model"}"' in saved.read_text()
    assert '"restored": []' in saved.read_text()


@pytest.mark.slow
def test_everything_may_lie_in_a_bucket(
    world: Path, tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set, model, output and state: a killed job is finished with the pictures made on a disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, given = (uploaded(world / n, f"s3://tests/model/{n}") for n in ("model", "set"))
    output = path_of("s3://tests/model/out")
    with pytest.raises(KeyboardInterrupt):
        evaluate(output, model, given, Stopping(3))
    evaluate(output, model, given)

    for name, data in pictures(world / "whole").items():
        if name.startswith("inputs") or name.endswith(".png"):
            assert (output / name).read_bytes() == data
    assert without_places(read_summary(output)) == without_places(read_summary(world / "whole"))


def broken(folder: Path) -> Path:
    """Write a picture that is none; returns its folder."""
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    return folder


REFUSED: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], str]] = {
    "no input": (lambda world, out: {"given": out / "none"}, "none: no such folder or archive"),
    "lq": (lambda world, out: {"lq": world}, "the LQ pictures are those of --input"),
    "reference": (lambda world, out: {"reference": world}, "--reference .* is an image set, whose"),
    "degradations": (lambda world, out: {"degradations": "x"}, "--degradations .* an image set"),
    "name twice": (lambda world, out: {"restored": (f"{LATENT}={world}",)}, f"the name {LATENT} c"),
    "size of a set": (
        lambda world, out: {"given": write_set(out / "large", 48)},
        r"^--input \S*large: HQ pictures of 48 x 48 pixels, and --model restores to 32 x 32",
    ),
    "too small": (
        lambda world, out: {"degradation": "difface-test"},
        "--degradation: an image of 32 x 32 pixels cannot be downscaled by",
    ),
    "broken HQ": (
        lambda world, out: {"given": world, "reference": broken(out / "hq")},
        "--reference .*hq: a.png: not_an_image",
    ),
    "size of HQ": (
        lambda world, out: {
            "given": evaluate_jobs.write_pictures(out / "lq", 1),
            "reference": evaluate_jobs.write_pictures(out / "hq", 1, side=48),
        },
        "hq: HQ pictures of 48 x 48 pixels, and --model restores to 32 x 32",
    ),
    "another kind of set": (
        lambda world, out: {"given": write_latents(out / "set", [sample(SMALL, "a")])},
        "--input .* latent set",
    ),
    "no such split": (
        lambda world, out: {"given": write_images(out / "set", [("a", FACE)])},
        "no image of split 'val'.*, or give --split train",
    ),
    "no model": (lambda world, out: {"model": out / "none"}, "--model .*none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_evaluated_is_refused_first(world: Path, tmp_path: Path, case: str) -> None:
    """In a sentence that names it, before anything is restored."""
    change, said = REFUSED[case]
    fields = {"model": world / "model", "given": world / "set", **change(world, tmp_path)}
    with pytest.raises(UsageError, match=said):
        evaluate(tmp_path / "out", fields.pop("model"), fields.pop("given"), **fields)

    assert not (tmp_path / "out" / "restored").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"degradation_seed": 1}, "degradation_seed: 0 -> 1"),
        ({"degradation": "pmrf"}, "degradation.kernel_size: 11 -> 41"),
        ({"limit": 2}, "limit: None -> 2"),
        ({"split": "train"}, "input: "),
        ({"strength": 0.5}, "strength: 1.0 -> 0.5"),
        ({"seed": 3}, "seed: 0 -> 3"),
    ],
)
def test_another_configuration_is_refused(world: Path, fields: dict[str, Any], said: str) -> None:
    """With the field that differs; what was written stays."""
    before = made(world / "whole")
    with pytest.raises(UsageError, match=said):
        evaluate(world / "whole", world / "model", world / "set", **fields)

    assert made(world / "whole") == before


def test_overwrite_makes_another_configuration_anew(world: Path, tmp_path: Path) -> None:
    """Nothing of the old one stays, as in a folder of its own."""
    shutil.copytree(world / "whole", tmp_path / "old")
    fields: dict[str, Any] = {"degradation_seed": 1, "steps": 1, "limit": 1}
    for name in ("old", "new"):
        more = {"overwrite": True} if name == "old" else {}
        evaluate(tmp_path / name, world / "model", world / "set", **fields, **more)

    assert pictures(tmp_path / "old") == pictures(tmp_path / "new")


def test_pictures_that_cannot_be_restored_leave_no_numbers(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named; --common evaluates the others."""
    hand = by_hand(tmp_path)
    picture(0, SIDE, SIDE + 8).save(hand / "lq" / "face-0.png")
    with pytest.raises(UserError, match=r"1 of 3 pictures were not restored.*give --common"):
        evaluate(tmp_path / "out", world / "model", hand / "lq", reference=hand / "hq")
    assert "not_aligned\tface-0" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()

    fields: dict[str, Any] = {"reference": hand / "hq", "common": True}
    summary = evaluate(tmp_path / "out", world / "model", hand / "lq", **fields)
    assert summary.test_set.n == 2


@pytest.mark.parametrize("name", ["a/b", "a=b", ".a", MEAN])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    """Also that of the posterior mean, which another method would take."""
    with pytest.raises(ValueError, match="name"):
        job("out", "model", "set", name=name)


def test_the_command_says_what_is_missing() -> None:
    """A model without pictures, or pictures without a model."""
    with pytest.raises(UsageError, match="no --input"):
        main(["-o", "out", "--model", "bundle"])
    with pytest.raises(UsageError, match="no --model"):
        main(["-o", "out", "-i", "lq"])
