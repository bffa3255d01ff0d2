"""What cannot be restored is said in a sentence each; the rest is restored, and none is lost."""

import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from infra.errors import BudgetExceeded, UsageError, UserError
from models.bundle import in_memory, write_bundle
from pipelines.restore import pictures as reading
from pipelines.restore import reasons
from pipelines.restore.__main__ import main
from pipelines.restore.job import check, say_failures
from pipelines.restore.results import Result
from tests.conftest import picture
from tests.support import astronaut
from tests.support.forked import Forked
from tests.support.restore_jobs import job, pictures, restore
from tests.support.tiny_bundle import SIDE, bundle, write_faces, write_tiny_bundle
from tests.test_reasons import rows
from tests.test_restore_job import rows as results

POISON = b"POISON"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model."""
    return write_tiny_bundle(tmp_path_factory.mktemp("model"), alignment="any")


@pytest.fixture(scope="module")
def mixed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Restore pictures of every kind once; returns the output and what was said."""
    folder = tmp_path_factory.mktemp("mixed")
    lq = folder / "lq"
    lq.mkdir()
    face = picture(0, SIDE, SIDE)
    pixels = np.asarray(face)
    face.save(lq / "sound.png")
    whole = (lq / "sound.png").read_bytes()
    face.convert("L").save(lq / "grey.png")
    grey16 = np.asarray(face.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey16).save(lq / "grey16.png")
    face.resize((90, 90)).save(lq / "large.jpg", quality=95)
    face.resize((20, 20)).save(lq / "small.png")
    face.save(lq / "moving.webp", save_all=True, append_images=[picture(1, SIDE, SIDE)])
    face.putalpha(255)
    face.save(lq / "opaque.png")
    face.putalpha(128)
    face.save(lq / "glass.png")
    Image.fromarray(pixels[:1, :1]).save(lq / "dot.png")
    Image.fromarray(pixels[:, :20]).save(lq / "wide.png")
    (lq / "cut.png").write_bytes(whole[: len(whole) // 2])
    (lq / "empty.png").touch()
    (lq / "text.png").write_text("this is no picture")
    (lq / "bomb.png").write_bytes(_with_size(whole, 20_000, 20_000))
    with pytest.raises(BudgetExceeded) as ended, _errors(folder / "said"):
        restore(lq, folder / "out", model)
    assert (ended.value.exit_code, str(ended.value)) == (
        3,
        "7 of 14 pictures were not restored; each has its line above, with the reason",
    )
    return folder / "out", (folder / "said").read_text()


def _with_size(png: bytes, width: int, height: int) -> bytes:
    """Return a PNG whose header promises another size."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Write what is said on standard error to a file."""
    import contextlib

    with path.open("w") as file, contextlib.redirect_stderr(file):
        yield


@pytest.mark.parametrize(
    ("key", "reason", "said"),
    [
        ("glass", "transparent", "transparent pixels, behind which nothing is known; save it"),
        ("dot", "too_small", "1 x 1 pixels: smaller than --min-face 4; a model of 32 x 32 would"),
        ("wide", "not_aligned", "20 x 32 pixels: not square, so not an aligned face; give --whole"),
        ("cut", "truncated", "cannot be decoded to its end, or a part of it is lost; copy it"),
        ("empty", "empty_file", "the file has no byte; copy it again"),
        ("text", "not_an_image", "its content is no PNG, JPEG, WebP, TIFF"),
        ("bomb", "too_many_pixels", "it has more pixels than are decoded; reduce it"),
    ],
)
def test_a_picture_that_cannot_be_restored_is_one_named_line(
    mixed: tuple[Path, str], key: str, reason: str, said: str
) -> None:
    """On the terminal, in the table and on the page; and nothing stands for its output."""
    output, errors = mixed
    row = results(output)[key]
    page = (output / "report.html").read_text()

    assert (row["restored"], row["reason"]) == (False, reason)
    assert said in row["detail"]
    assert errors.count(f"{reason}\t{key}\t{row['detail']}\n") == 1
    assert f"<td>{key}</td>" in page
    assert not [name for name in pictures(output) if name.startswith(f"{key}.")]


@pytest.mark.parametrize("key", ["sound", "grey", "grey16", "opaque", "moving", "large", "small"])
def test_a_picture_of_another_kind_is_restored_as_eight_bits_of_rgb(
    mixed: tuple[Path, str], key: str
) -> None:
    """Grey, 16 bits, an opaque alpha channel, the first frame; of another size with a note."""
    output, _ = mixed
    with Image.open(output / f"{key}.png") as restored:
        assert (restored.mode, restored.size) == ("RGB", (SIDE, SIDE))
    sizes = {"large": "90 x 90", "small": "20 x 20"}
    notes = [f"{sizes[key]} pixels were resized to the model's 32 x 32"] if key in sizes else []
    said = results(output)[key]["notes"]
    assert [note for note in said if "were resized" in note] == notes


def test_the_same_levels_give_the_same_picture(model: Path, tmp_path: Path) -> None:
    """Whether they lie in a file of 8 bits, of 16, of one channel or with an alpha channel."""
    grey = np.asarray(picture(0, SIDE, SIDE).convert("L"))
    as_files = {
        "rgb": np.repeat(grey[..., None], 3, axis=2),
        "grey": grey,
        "grey16": grey.astype(np.uint16) * 257,
        "alpha": np.dstack([grey, grey, grey, np.full_like(grey, 255)]),
    }
    found = set()
    for name, levels in as_files.items():
        (tmp_path / name).mkdir()
        Image.fromarray(levels).save(tmp_path / name / "face.png")
        restore(tmp_path / name, tmp_path / f"out-{name}", model)
        found.add((tmp_path / f"out-{name}" / "face.png").read_bytes())

    assert len(found) == 1


def test_a_model_of_aligned_faces_is_given_no_other(model: Path, tmp_path: Path) -> None:
    """A face that lies on its side is refused; how an upright one lies is said."""
    lq = tmp_path / "lq"
    lq.mkdir()
    face = Image.fromarray(astronaut.portrait(160, share=1.0))
    face.save(lq / "upright.png")
    face.rotate(90).save(lq / "turned.png")
    write_tiny_bundle(tmp_path / "ffhq", alignment="ffhq")
    with pytest.raises(BudgetExceeded, match="1 of 2"):
        restore(lq, tmp_path / "out", tmp_path / "ffhq")
    (known,) = json.loads((tmp_path / "out" / "upright.json").read_text())["faces"]
    assert (known["outcome"], known["alignment"]["verdict"]) == ("restored", "aligned")
    assert abs(known["alignment"]["rotation"]) < 10
    faces = pq.read_table(tmp_path / "out" / "faces.parquet").to_pylist()
    assert faces[0]["alignment.rotation"] == known["alignment"]["rotation"]
    assert results(tmp_path / "out")["turned"]["reason"] == "not_aligned"

    restore(lq, tmp_path / "any", model)
    assert {"turned.png", "upright.png"} <= pictures(tmp_path / "any").keys()


def test_what_the_messages_advise_helps(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smaller --min-face in the same output; a sound copy of a file that was cut."""
    lq = tmp_path / "lq"
    write_faces(lq, 1, 3)
    whole = (write_faces(tmp_path / "b", 1) / "face-0.png").read_bytes()
    (lq / "cut.png").write_bytes(whole[:300])
    with pytest.raises(BudgetExceeded, match="2 of 2"):
        restore(lq, tmp_path / "out", model)
    advised = re.search(r"give (--min-face) (\d+) to have", capsys.readouterr().err)
    assert advised is not None
    with pytest.raises(BudgetExceeded, match="1 of 2"):
        restore(lq, tmp_path / "out", model, min_face=int(advised[2]))
    assert "truncated\tcut\t" in capsys.readouterr().err  # of an earlier run: said again
    (lq / "cut.png").write_bytes(whole)
    restore(lq, tmp_path / "out", model, min_face=int(advised[2]))

    assert {"cut.png", "face-0.png"} <= pictures(tmp_path / "out").keys()


def test_a_failure_that_may_pass_keeps_the_picture_of_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is tried again; a file that was replaced by a broken one takes its picture along."""
    lq, output = write_faces(tmp_path / "lq", 2), tmp_path / "out"
    restore(lq, output, model)
    before = pictures(output)
    for path in lq.iterdir():
        os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(reading, "decode", _no_memory)
        with pytest.raises(BudgetExceeded, match="2 of 2"):
            restore(lq, output, model)
    assert pictures(output) == before
    assert results(output)["face-0"]["reason"] == "out_of_memory"

    (lq / "face-0.png").write_bytes(b"")
    with pytest.raises(BudgetExceeded, match="1 of 2"):
        restore(lq, output, model)
    assert pictures(output) == {n: d for n, d in before.items() if n.startswith("face-1.")}


def _no_memory(*_: Any) -> Any:
    raise MemoryError("Unable to allocate 3.00 GiB")


@pytest.mark.forks
def test_a_picture_that_kills_the_process_is_given_up_by_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its unit are restored; the processes and the signals are real."""
    lq, output = write_faces(tmp_path / "lq", 5), tmp_path / "out"
    with (lq / "face-1.png").open("ab") as file:
        file.write(POISON)
    decode = reading.decode

    def deadly(data: bytes, *rest: int) -> Any:
        if data.endswith(POISON):
            os.kill(os.getpid(), 9)
        return decode(data, *rest)

    monkeypatch.setattr(reading, "decode", deadly)
    monkeypatch.setattr("pipelines.restore.job.SHARES", 0.2)  # all in one unit
    engine = Forked()
    with pytest.raises(BudgetExceeded, match="1 of 5"):
        restore(lq, output, model, engine)

    assert engine.deaths == 3  # one of the unit, and two of the picture alone
    assert results(output)["face-1"]["reason"] == "crashed"
    assert sum(name.endswith(".png") for name in pictures(output)) == 4


@contextmanager
def _full(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_job_and_loses_nothing(model: Path, tmp_path: Path) -> None:
    """What was restored stays, nothing half-written is there, and the same command goes on."""
    lq, output = tmp_path / "lq", tmp_path / "out"
    lq.mkdir()
    for name in "abc":  # of one colour, so that the PNG is small
        Image.new("RGB", (SIDE, SIDE), (90, 80, 70)).save(lq / f"{name}.png")
    restore(lq, output, model)
    before = pictures(output)
    picture(0, SIDE, SIDE).save(lq / "d.png")
    with _full(1500), pytest.raises(UserError, match=r"out/d\.png: .*(too large|full|room)"):
        restore(lq, output, model)
    assert pictures(output) == before

    restore(lq, output, model)
    assert pictures(output).items() >= before.items()
    assert {"d.png", "d.json"} <= pictures(output).keys()
    assert not list(output.rglob("*partial*"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"output": "lq/face-0.png"}, r"--output .*face-0\.png: this is a file"),
        ({"output": "lq"}, r"--output .*lq: not empty and not a set of restored pictures; give"),
        ({"output": "lq/face-0.png/out"}, r"face-0\.png"),
        ({"model": "nowhere"}, r"--model .*nowhere.*bundle\.json"),
        ({"given": "nowhere"}, r"--input .*nowhere: no such file or folder; check the path"),
        ({"given": "void"}, r"--input .*void: holds no image \(nothing at all\)"),
        ({"gpus": 1, "device": "cuda"}, r"--device cuda: 1 GPU wanted, 0 in the Ray cluster"),
        ({"method": "pmrf"}, r"--method pmrf: .* has latent-pmrf, posterior-mean"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    """In a sentence, and before any picture is touched."""
    lq = write_faces(tmp_path / "lq", 1)
    (tmp_path / "void").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    given = {"given": "lq", "output": "out", "model": str(model), **fields}
    paths = {name: tmp_path / given.pop(name) for name in ("given", "output", "model")}
    with pytest.raises(UserError, match=said):
        restore(paths["given"], paths["output"], paths["model"], **given)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert lq.is_dir()


def test_a_command_line_without_what_it_needs_names_it() -> None:
    """All at once."""
    with pytest.raises(UsageError, match=r"no --input, --output, --model; .*--help"):
        main(["--seed", "1"])
    with pytest.raises(UsageError, match="no --model;"):
        check(job("a", "b", ""))


def test_every_reason_is_documented() -> None:
    """The README's table has those that the code knows, in their order, and no other."""
    documented = [row[0].strip("`") for row in rows("Why a picture is not restored")]

    assert documented == list(reasons.REASONS)


def test_a_face_that_is_not_finite_is_one_named_line(tmp_path: Path) -> None:
    """An overflow of the networks ends no job: the picture fails by its name."""
    made = bundle()
    with torch.no_grad():
        next(made.velocity.parameters()).fill_(float("inf"))
    write_bundle(tmp_path / "model", in_memory(made.config, made.velocity, made.restorer))
    write_faces(tmp_path / "lq", 2)
    with pytest.raises(BudgetExceeded, match="2 of 2"):
        restore(tmp_path / "lq", tmp_path / "out", tmp_path / "model", device="cpu")

    assert {row["reason"] for row in results(tmp_path / "out").values()} == {"not_finite"}
    assert not pictures(tmp_path / "out")


def test_a_face_that_failed_among_others_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Its photograph was restored, and yet it has a line of its own with the reason."""
    faces = [
        {"number": 1, "outcome": "restored"},
        {"number": 2, "outcome": "failed", "reason": "not finite"},
        {"number": 3, "outcome": "left alone", "reason": "too_small: 9 pixels, --min-face 16"},
    ]
    say_failures([Result(key="album/us", bytes=1, stamp=1, files=["album/us.png"], faces=faces)])

    assert capsys.readouterr().err == "face_failed\talbum/us:2\tnot finite\n"
