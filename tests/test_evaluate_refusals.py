"""What cannot be compared is refused by name; nothing stands for its numbers, the rest stays."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.errors import BudgetExceeded, UsageError, UserError
from pipelines.evaluate.__main__ import main
from pipelines.evaluate.summary import Summary
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.evaluate_jobs import SIDE, evaluate, numbers, small_sets, write_pictures


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write HQ pictures and those of a method."""
    write_pictures(tmp_path / "hq")
    write_pictures(tmp_path / "a", noise=5)
    return tmp_path


def run(given: Path, **fields: Any) -> Summary:
    """Evaluate method "a" into the folder "out"."""
    methods = fields.pop("methods", {"a": given / "a"})
    engine = fields.pop("engine", None)
    fields = {"reference": given / "hq", **fields}
    return evaluate(given / "out", methods, engine, **fields)


def tables(given: Path) -> dict[str, bytes]:
    """Return what stands in the output for a user."""
    return {path.name: path.read_bytes() for path in (given / "out").glob("*") if path.is_file()}


def test_pictures_without_partners_are_listed_by_folder_and_name(given: Path) -> None:
    """Missing ones and those that no other folder has; twenty names at most, and how many more."""
    before = numbers(run(given)), tables(given)
    (given / "a" / "face-1.png").unlink()
    picture(9, SIDE, SIDE).save(given / "a" / "extra.png")
    with pytest.raises(UsageError) as refused:
        run(given)
    assert str(refused.value) == (
        "pictures are paired by their names without the extension, and some have no partner. "
        "--restored a lacks 1: face-1. --reference lacks 1: extra. Rename them, or give --common "
        "to evaluate those that all have"
    )
    assert tables(given) == before[1]

    write_pictures(given / "hq", 30)
    with pytest.raises(UsageError, match=r"--restored a lacks 27: face-1, .* and 7 more"):
        run(given)


def test_common_evaluates_what_all_folders_have(given: Path) -> None:
    """As if the others were not there, with a note of how many they are."""
    for name in ("a/face-1.png", "hq/face-2.png"):
        (given / name).unlink()
    summary = run(given, common=True)
    assert summary.test_set.n == 2
    assert summary.notes == ["--common: 2 keys that not all folders have are left out"]
    for name in ("hq/face-1.png", "a/face-2.png"):
        (given / name).unlink()
    assert numbers(run(given)) == numbers(summary)

    shutil.rmtree(given / "a")
    picture(9, SIDE, SIDE).save(write_pictures(given / "a", 0) / "other.png")
    with pytest.raises(UsageError, match="--common: no picture has the same name in --restored a,"):
        run(given, common=True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _large(path: Path) -> None:
    picture(1, SIDE + 2, SIDE).save(path)


def _glass(path: Path) -> None:
    face = picture(1, SIDE, SIDE)
    face.putalpha(128)
    face.save(path)


def _nan(path: Path) -> None:
    levels = np.full((SIDE, SIDE), np.nan, np.float32)
    Image.fromarray(levels).save(path.with_suffix(".tif"))
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, "truncated\t--restored a face-1\tit cannot be decoded to its end, or a part"),
        (
            lambda path: path.write_bytes(b""),
            "empty_file\t--restored a face-1\tthe file has no byte; copy",
        ),
        (
            lambda path: path.write_text("text"),
            "not_an_image\t--restored a face-1\tits content is no",
        ),
        (
            _glass,
            "transparent\t--restored a face-1\tit has transparent pixels, behind",
        ),
        (_nan, "unsupported_mode\t--restored a face-1\tits numbers have no known white; save"),
        (
            _large,
            "unequal_sizes\t--restored a face-1\t18 x 16 pixels, and the picture of --reference is "
            "16 x 16 pixels; metrics compare pictures of one size",
        ),
    ],
    ids=["cut", "empty", "text", "glass", "nan", "large"],
)
def test_a_picture_that_cannot_be_measured_is_named(
    given: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], said: str
) -> None:
    """There are no numbers of the others; mended, it alone is measured."""
    sound = (given / "a" / "face-1.png").read_bytes()
    spoil(given / "a" / "face-1.png")
    with pytest.raises(UserError, match="1 pictures cannot be measured; each has its line"):
        run(given)
    assert capsys.readouterr().err.startswith(said)
    assert tables(given) == {}

    (given / "a" / "face-1.tif").unlink(missing_ok=True)
    (given / "a" / "face-1.png").write_bytes(sound)
    engine = InProcess()
    summary = run(given, engine=engine)
    assert [group["key"] for _, unit in engine.units for group in unit["groups"]] == ["face-1"]
    assert summary.test_set.n == 4


def test_other_kinds_of_files_are_read_counted_and_said(given: Path) -> None:
    """Grey three times, the high byte of 16 bits, JPEG as it is decoded; by the folder's option."""
    face = picture(0, SIDE, SIDE).convert("L")
    face.save(given / "a" / "face-0.png")
    Image.fromarray(np.asarray(face).astype(np.uint16) * 257).save(given / "hq" / "face-0.png")
    picture(1, SIDE, SIDE).save(given / "a" / "face-1.jpg", quality=95)
    (given / "a" / "face-1.png").unlink()
    summary = run(given)

    assert list(summary.notes) == [
        "--restored a: 1 of 4 files are JPEG",
        "--restored a: 1 of 4 files are grey",
        "--reference: 1 of 4 files are 16 bits",
        "--reference: 1 of 4 files are grey",
    ]
    from pyarrow import parquet

    assert parquet.read_table(given / "out" / "values.parquet")["psnr"][0].as_py() == (
        pytest.approx(80)
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": {"a": "nowhere"}}, r"--restored a .*nowhere: no such file or folder"),
        ({"methods": {"a": "empty"}}, r"--restored a .*empty: holds no image"),
        ({"methods": {"a/b": "a"}}, r"--restored a/b=.*a: give NAME=FOLDER, such as ours="),
        ({"methods": {"": "a"}}, r"--restored =.*a: give NAME=FOLDER"),
        ({"restored": ("a",)}, r"--restored .*a: give NAME=FOLDER"),
        ({"restored": ("a=a", "a=hq")}, r"--restored: the name a comes twice"),
        ({"reference": "empty"}, r"--reference .*empty: holds no image \(nothing at all\)"),
        ({"posterior_mean": "nowhere"}, r"--posterior-mean .*nowhere: no such file"),
        ({"lq": "nowhere"}, r"--lq .*nowhere: no such file"),
        ({"distribution": "nowhere.npz"}, r"--distribution .*nowhere\.npz: no such file; give an"),
        ({"reference": "set.npz"}, r"--reference .*set\.npz: statistics, and --protocol custom"),
        (
            {"protocol": "lfw", "distribution": "hq"},
            "--protocol lfw has no HQ pictures, so that --reference and --distribution both name",
        ),
    ],
)
def test_folders_that_are_none_are_refused_by_their_option(
    given: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    """Before anything is measured."""
    (given / "empty").mkdir()
    monkeypatch.chdir(given)
    with pytest.raises(UsageError, match=said):
        run(given, **fields)
    assert tables(given) == {}


def test_one_name_with_two_extensions_is_refused(given: Path) -> None:
    """It says whose they are; to evaluate a.png or a.jpg by chance would be no result."""
    picture(1, SIDE, SIDE).save(given / "a" / "face-1.jpg")
    with pytest.raises(UsageError) as refused:
        run(given)
    assert str(refused.value) == (
        "--restored a: 1 keys occur twice, the first is 'face-1' (face-1.jpg of a and face-1.png "
        "of a); rename or remove one of the files: names differ in more than the extension"
    )


def test_an_output_that_holds_something_else_is_refused(given: Path) -> None:
    """Nothing is written there; a folder inside the restored pictures does no harm."""
    with pytest.raises(UsageError, match="not empty and not an evaluation; give a new folder"):
        evaluate(given / "a", {"a": given / "a"}, reference=given / "hq")
    assert sorted(path.name for path in (given / "a").iterdir()) == [
        f"face-{number}.png" for number in range(4)
    ]
    inside = given / "a" / "evaluation"
    first = evaluate(inside, {"a": given / "a"}, reference=given / "hq")
    engine = InProcess()

    assert evaluate(inside, {"a": given / "a"}, engine, reference=given / "hq") == first
    assert engine.units == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metrics", "fidd"], r"metrics 'fidd': unknown; choose of psnr, ssim"),
        (["--protocol", "ffhq"], r"protocol 'ffhq': unknown; choose one of custom, celeba-test"),
        ([], r"no --restored, --output; python -m pipelines\.evaluate --help says what"),
    ],
)
def test_a_command_line_that_names_nothing_is_refused(arguments: list[str], said: str) -> None:
    """It says what there is."""
    with pytest.raises(UsageError, match=said):
        main(arguments)


def test_a_metric_that_is_asked_for_and_missing_ends_with_exit_code_3(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are there; without --metrics a missing one is said, and is no failure."""
    with pytest.raises(BudgetExceeded, match="without indrmse, lpips; each has its line") as ended:
        run(given, metrics=("psnr", "indrmse", "lpips"), weights=str(given / "a"))
    said = capsys.readouterr().err
    assert ended.value.exit_code == 3
    assert "missing\tindrmse\tit compares with the predictor's output; give --posterior" in said
    assert "missing\tlpips\t" in said
    assert b'"psnr"' in tables(given)["summary.json"]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"no weights"), "damaged, or more than weights"),
        (
            lambda path: torch.save({"conv.weight": torch.zeros(2)}, path),
            "another architecture than AlexNet",
        ),
    ],
    ids=["damaged", "another network"],
)
def test_weights_that_are_there_and_wrong_end_the_command(
    given: Path, write: Callable[[Path], object], said: str
) -> None:
    """With metric and file, before anything is measured; they are not taken for missing."""
    write(given / "alexnet-owt-7be5be79.pth")
    engine = InProcess()
    with pytest.raises(UsageError, match=rf"metric lpips: .*{said}"):
        run(given, metrics=("psnr", "lpips"), weights=str(given), engine=engine)
    assert engine.units == []


def test_a_metric_without_a_value_is_left_out_of_the_mean_and_counted(given: Path) -> None:
    """Pictures below its least size; the note says why where no picture has one."""
    picture(3, 10, 10).save(given / "a" / "face-3.png")
    picture(3, 10, 10).save(given / "hq" / "face-3.png")
    values = run(given, metrics=("psnr", "ssim", "ms_ssim")).methods["a"].values

    assert (values["ssim"].undefined, values["psnr"].undefined) == (1, 0)
    assert values["ssim"].value is not None
    assert (values["ms_ssim"].value, values["ms_ssim"].undefined) == (None, 4)
    assert values["ms_ssim"].note == "needs 161 pixels on each side; the pictures have 10"


def test_a_set_of_another_number_than_its_protocol_is_noted(given: Path) -> None:
    """By the number that is published."""
    (note,) = run(given, protocol="celeba-test").notes

    assert note.startswith("protocol celeba-test: 4 pictures; the published set has 3,000 (https")


def test_without_hq_pictures_the_reference_is_a_set(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of other pictures, with other names: whole sets are compared with it, and single ones not."""
    small_sets(monkeypatch)
    write_pictures(given / "ffhq", 7, noise=1)
    for path in (given / "ffhq").iterdir():
        path.rename(path.with_name(f"ffhq-{path.name}"))
    with pytest.raises(BudgetExceeded, match="without psnr"):
        run(given, protocol="lfw", reference=given / "ffhq", metrics=("psnr", "brisque", "fid"))
    assert "missing\tpsnr\tit compares with HQ pictures, which this test set has not" in (
        capsys.readouterr().err
    )
    summary = run(given, protocol="lfw", reference=given / "ffhq", metrics=("brisque", "fid"))
    as_distribution = run(given, distribution=given / "ffhq", metrics=("brisque", "fid"))

    assert summary.test_set.hq == ""
    assert as_distribution.methods["a"].values == summary.methods["a"].values


def test_a_distribution_without_a_metric_of_sets_changes_nothing(given: Path) -> None:
    """Its pictures are not read."""
    (given / "ffhq").mkdir()
    (given / "ffhq" / "broken.png").write_bytes(b"")

    assert numbers(run(given, distribution=given / "ffhq")) == numbers(run(given))


def write_statistics(path: Path, width: int) -> Path:
    """Write the statistics of random features as published files hold them."""
    features = np.random.default_rng(0).normal(size=(50, width))
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features.T))
    return path


def test_statistics_stand_for_a_set_in_one_metric(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first that takes them; they do not say of which network they are."""
    small_sets(monkeypatch)
    file = write_statistics(given / "set.npz", 6)
    asked = ("fid_legacy", "fid", "mmd_dinov2")
    with pytest.raises(BudgetExceeded, match="without fid, mmd_dinov2"):
        run(given, distribution=file, metrics=asked)
    said = capsys.readouterr().err
    assert "missing\tfid\tthe file of statistics is taken for that of fid_legacy" in said
    assert "missing\tmmd_dinov2\ta file of statistics will not do" in said
    plain = run(given, protocol="lfw", reference=file, metrics=("fid",)).methods["a"].values
    assert plain["fid"].value is not None
    assert len(plain["fid"].fingerprint.reference) == 64


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no npz"),
        lambda path: np.savez(path, mu=np.zeros(3)),
        lambda path: np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2))),
    ],
)
def test_a_file_that_is_no_statistics_is_refused_before_anything_is_measured(
    given: Path, write: Callable[[Path], object]
) -> None:
    """By its option, with what is expected."""
    write(given / "set.npz")
    engine = InProcess()
    with pytest.raises(UsageError, match=r"--distribution .*no statistics of a reference .*mu \["):
        run(given, distribution=given / "set.npz", engine=engine)
    assert engine.units == []


def test_statistics_of_another_network_give_no_value(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note names both widths, and the other values are there."""
    small_sets(monkeypatch)
    file = write_statistics(given / "set.npz", 5)
    values = run(given, distribution=file, metrics=("psnr", "fid")).methods["a"].values

    assert values["psnr"].value is not None
    assert values["fid"].value is None
    assert values["fid"].note == "features of 6 and of 5 values: of two different networks"
