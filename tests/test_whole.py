"""A whole photograph has its faces restored, and is otherwise what it was."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data

from datasets.decoding import decode
from datasets.photographs import read_photograph
from datasets.png import png as png_of
from models.faces.alignment import square_alignment
from models.faces.find import Face
from models.faces.paste import distance_from_centre
from pipelines.restore.config import RestoreRule, WholeRule
from pipelines.restore.faces import ChosenFace, choose_faces
from pipelines.restore.networks import FaceRestorer, NotFinite, RestoredFace
from pipelines.restore.reasons import sentence
from pipelines.restore.whole import NoFaceRestored, made_whole, put_back, restore_faces
from tests.support import astronaut
from tests.support.face_points import LANDMARKS
from tests.support.icc_profiles import adobe_rgb
from tests.support.tiny_bundle import SIDE, write_tiny_bundle

Array = np.ndarray[Any, Any]
PIXELS: Array = data.astronaut()[:240, 60:380].copy()
SQUARES = {1: (90.0, 110.0, 90.0, 8.0), 2: (165.0, 90.0, 60.0, -20.0), 3: (280.0, 220.0, 150.0, 0)}
"""Centre, side and angle of the squares that stand for faces; the last lies over the border."""


def chosen(number: int, left_alone: str = "", size: int = SIDE) -> ChosenFace:
    """Make a face of a square."""
    x, y, side, turned = SQUARES[number]
    angle = np.deg2rad(turned)
    alignment = square_alignment(
        np.array([x, y]), side / 2 * np.array([np.cos(angle), np.sin(angle)]), size
    )
    box = (x - side / 4, y - side / 4, x + side / 4, y + side / 4)
    face = Face(box, 1.5, alignment.to_photograph(size * LANDMARKS))
    return ChosenFace(number, face, alignment, left_alone)


def all_faces(_: Array) -> list[ChosenFace]:
    """Choose every square."""
    return [chosen(number) for number in SQUARES]


def png(pixels: Array, **options: Any) -> bytes:
    """Encode a photograph."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def reddened(faces: Sequence[Array], names: Sequence[str]) -> list[RestoredFace]:
    """Restore faces by more red: a change whose amount is known."""
    assert len(faces) == len(names)
    return [
        RestoredFace((face // 2 + np.array([80, 20, 20])).astype(np.uint8), None) for face in faces
    ]


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> FaceRestorer:
    """Open a bundle of tiny networks that makes two restorations of a face."""
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    return FaceRestorer(RestoreRule(model=str(folder), samples=2, device="cpu"))


RULE = WholeRule(whole=True, layers=True, colour="mean")


def test_a_photograph_is_restored_with_everything_it_has(restorer: FaceRestorer) -> None:
    """Profile, EXIF, alpha and all pixels outside the squares stay; the JSON tells of the faces."""
    alpha = np.random.default_rng(0).integers(0, 256, PIXELS.shape[:2], dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Grandmother"
    given = png(np.dstack([PIXELS, alpha]), icc_profile=adobe_rgb(), exif=exif)
    made = made_whole("album/us", "us.png", given, all_faces, restorer, RULE)
    result = read_photograph(made.pictures[""])
    box = (0, 0, PIXELS.shape[1], PIXELS.shape[0])
    distances = [distance_from_centre(face.alignment, box) for face in all_faces(PIXELS)]
    outside = np.min(distances, axis=0) >= 1

    layers = {f"layers/face-{n}{what}" for n in SQUARES for what in ("", ".spread")}
    assert set(made.pictures) == {"", "sample-1", *layers}
    assert np.array_equal(result.levels[outside], PIXELS[outside])
    for distance in distances:
        assert (result.levels[distance < 0.5] != PIXELS[distance < 0.5]).any(axis=1).mean() > 0.9
    assert np.array_equal(result.alpha, alpha)
    assert result.profile == adobe_rgb()
    assert b"Grandmother" in (result.exif or b"")
    assert result.text["Software"] == "latent-pmrf"
    assert restorer.settings["model"] in result.text.values()
    assert not np.array_equal(read_photograph(made.pictures["sample-1"]).levels, result.levels)
    faces = made.record["faces"]
    assert [(face["number"], face["outcome"]) for face in faces] == [
        (number, "restored") for number in SQUARES
    ]
    for face in faces:
        assert face["colour_difference"]["after"] < face["colour_difference"]["before"]
        assert face["spread"] > 0
    doubtful = [f"Face {face['number']} contradicts" for face in faces if face["doubtful"]]
    assert [" ".join(note.split()[:3]) for note in made.record["notes"]] == doubtful
    assert made.record["input"]["size"] == [320, 240]
    assert made.record["whole"]["colour"] == "mean"
    again = made_whole("album/us", "us.png", given, all_faces, restorer, RULE)
    assert again == made


def test_layers_laid_over_the_input_are_the_output(restorer: FaceRestorer) -> None:
    """An editor that places the layers by their offsets has the output, to the level."""
    made = made_whole("us", "us.png", png(PIXELS), all_faces, restorer, RULE)
    canvas = Image.fromarray(PIXELS).convert("RGBA")
    for face in made.record["faces"]:
        over = Image.open(io.BytesIO(made.pictures[face["layer"]["picture"]]))
        canvas.alpha_composite(over, tuple(face["layer"]["offset"]))

    assert np.array_equal(np.asarray(canvas.convert("RGB")), decode(made.pictures[""]))


def test_the_names_of_faces_seed_their_noise(restorer: FaceRestorer) -> None:
    """Face n of a photograph is what the restorer makes of its crop under the name KEY:n."""
    photograph = read_photograph(png(PIXELS))
    faces = restore_faces(photograph, "us", all_faces, restorer, "off")
    for number, patches in faces.patches.items():
        alone = restorer([patches[0].crop], [f"us:{number}"])[0]
        assert np.array_equal(alone.restored, patches[0].restored)
        assert np.array_equal(alone.samples[0], patches[1].restored)


@pytest.mark.parametrize("kind", ["grey", "sixteen", "grey sixteen"])
def test_grey_and_sixteen_bits_stay_so(kind: str) -> None:
    """A grey photograph is written grey, and 16 bits as 16; the pixels between faces too."""
    pixels = PIXELS if kind == "sixteen" else PIXELS[..., 1]
    levels = pixels.reshape(240, 320, -1).astype(np.uint16) * 257 + 3
    given = png(pixels) if kind == "grey" else png_of(levels)
    photograph = read_photograph(given)
    before = photograph.levels.copy()
    faces = restore_faces(photograph, "us", all_faces, reddened, "off")
    list(put_back(photograph, [patches[0] for patches in faces.patches.values()]))

    assert photograph.levels.dtype == before.dtype
    assert photograph.levels.shape == before.shape
    assert (photograph.levels != before).any()
    assert np.array_equal(read_photograph(photograph.png()).levels, photograph.levels)


def test_one_face_that_fails_is_one_record() -> None:
    """The others are restored; the failed one has its reason and is not painted over."""
    asked = []

    def fails(faces: Sequence[Array], names: Sequence[str]) -> list[RestoredFace]:
        asked.append(list(names))
        if "us:2" in names:
            raise NotFinite("not_finite", "us:2")
        return reddened(faces, names)

    faces = restore_faces(read_photograph(png(PIXELS)), "us", all_faces, fails, "off")

    assert list(faces.patches) == [1, 3]
    assert faces.records[2]["outcome"] == "failed"
    assert faces.records[2]["reason"] == sentence("not_finite", "us:2")
    assert asked == [["us:1", "us:2", "us:3"], ["us:1"], ["us:2"], ["us:3"]]


def test_faces_left_alone_are_listed_and_untouched() -> None:
    """A face that is not to be restored has a record with the reason, and keeps its pixels."""

    def choose(_: Array) -> list[ChosenFace]:
        return [chosen(1), chosen(2, "too_small: 60 pixels, --min-face 64")]

    photograph = read_photograph(png(PIXELS))
    faces = restore_faces(photograph, "us", choose, reddened, "off")

    assert list(faces.patches) == [1]
    assert faces.records[2]["outcome"] == "left alone"
    assert faces.records[2]["reason"] == "too_small: 60 pixels, --min-face 64"


@pytest.mark.parametrize(
    ("found", "reason", "said"),
    [
        ([], "no_face", "no_face"),
        ([chosen(2, "too_small: 60 pixels, --min-face 64")], "no_face_restored", "face 2: too_sm"),
    ],
)
def test_without_a_restored_face_there_is_no_output(
    found: list[ChosenFace], reason: str, said: str
) -> None:
    """The input is never passed off as output: the reason has a word, and every face its own."""
    with pytest.raises(NoFaceRestored, match=said) as caught:
        restore_faces(read_photograph(png(PIXELS)), "us", lambda _: found, reddened, "off")

    assert caught.value.reason == reason
    assert len(caught.value.faces) == len(found)


def test_a_small_face_keeps_its_size() -> None:
    """A face of 60 pixels is restored at the model's side and shrunk; the photograph stays."""
    seen = []

    def note(faces: Sequence[Array], names: Sequence[str]) -> list[RestoredFace]:
        seen.extend(face.shape for face in faces)
        return reddened(faces, names)

    def choose(_: Array) -> list[ChosenFace]:
        return [chosen(2, size=128)]

    photograph = read_photograph(png(PIXELS))
    faces = restore_faces(photograph, "us", choose, note, "off")

    assert seen == [(128, 128, 3)]
    assert faces.records[2]["native_side"] == 60
    assert photograph.levels.shape == PIXELS.shape


def test_a_telephones_photograph_goes_the_whole_way(restorer: FaceRestorer) -> None:
    """A JPEG on its side: its face is found, restored and put back; only its square changes."""
    upright = data.astronaut()[:220, 120:340]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    turned.save(buffer, "JPEG", quality=95, exif=exif)
    given, rule = buffer.getvalue(), WholeRule(whole=True)
    found: list[ChosenFace] = []

    def choose(shown: Array) -> list[ChosenFace]:
        found.extend(choose_faces(shown, rule, SIDE, astronaut.finder()))
        return found

    made = made_whole("us", "us.jpg", given, choose, restorer, rule)
    result = read_photograph(made.pictures[""])
    (face,) = made.record["faces"]
    distance = distance_from_centre(found[0].alignment, (0, 0, 220, 220))
    changed = (result.levels != decode(given)).any(axis=2)

    assert result.exif is not None
    assert face["outcome"] == "restored"
    assert face["native_side"] == pytest.approx(found[0].alignment.native_side, abs=0.1)
    assert not changed[distance >= 1].any()
    assert changed[distance < 0.7].mean() > 0.9
    left, top, right, bottom = face["box"]
    assert changed[int(top) : int(bottom), int(left) : int(right)].mean() > 0.9
