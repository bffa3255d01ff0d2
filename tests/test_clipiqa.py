"""CLIP-IQA: the reference's value under seeded weights, its conventions, the published files.

The published weights are not at hand: that damage lowers the score is not shown here.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import CheckpointError, CheckpointNotFoundError, weights_digest
from models.metrics.catalog import METRICS
from models.metrics.clipiqa import (
    CLIP,
    FILES,
    MIN_SIDE,
    ClipIqa,
    ImageBlock,
    build,
    float_weights,
    prompt_ids,
    read_clip,
)
from models.ranges import uint8_to_unit
from tests.support.seeded_weights import read_keys, repeated, seeded, sines512, zeros

KEYS = read_keys("clip_rn50")
SCALARS = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Draw weights, most of which repeat."""
    return repeated(KEYS, 103)


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> ClipIqa:
    """Build the score of them."""
    return build(float_weights(weights), "seeded")


def pictures(height: int, width: int, batch: int = 1) -> Tensor:
    """Draw noise: uint8 [B, 3, H, W]."""
    noise = np.random.default_rng(height).integers(0, 256, (batch, 3, height, width), np.uint8)
    return torch.from_numpy(noise)


def test_names_and_shapes_are_the_published_files() -> None:
    """All 489 tensors, none more; their hash is checked in test_seeded_weights.py."""
    with torch.device("meta"):
        clip = CLIP()

    assert {name: tuple(value.shape) for name, value in clip.state_dict().items()} == KEYS
    assert sum(value.numel() for value in clip.parameters()) == 102_007_137


@pytest.mark.slow  # draws 102 million normal numbers
def test_the_score_is_the_references() -> None:
    """The published code gives this under the seeded weights."""
    model = build(float_weights(seeded(KEYS, 103)), "seeded")

    assert model(uint8_to_unit(sines512())).tolist() == pytest.approx([0.433722], rel=1e-4)


def test_the_score_is_what_it_was_beside_the_references(model: ClipIqa) -> None:
    """Recorded, of weights that are drawn in no time, when the test above passed."""
    assert model(uint8_to_unit(sines512()[..., :64, :96])).tolist() == pytest.approx(
        [0.532641], rel=1e-4
    )


def test_the_positional_embedding_of_the_last_pooling_is_left_out(
    model: ClipIqa, weights: dict[str, Tensor]
) -> None:
    """A hundred thousand times as much of it moves no score; the seeded value could not tell."""
    images, name = uint8_to_unit(pictures(64, 96)), "visual.attnpool.positional_embedding"
    other = build(float_weights({**weights, name: 1e5 * weights[name]}), "seeded")

    assert torch.equal(other(images), model(images))


def test_descriptions_are_ten_in_five_pairs() -> None:
    """Each row begins with 49406 and ends with 49407, behind which are zeros."""
    ids = prompt_ids()

    assert ids.shape == (10, 6)
    assert ids[:, 0].eq(49406).all()
    assert ids[8].tolist() == [49406, 9307, 268, 1139, 2867, 49407]
    assert ids[0].tolist() == [49406, 886, 2867, 49407, 0, 0]


def test_places_behind_a_description_change_nothing(weights: dict[str, Tensor]) -> None:
    """With more of CLIP's 77 places, the features are those of the first six."""
    with torch.device("meta"):
        clip = CLIP()
    clip.load_state_dict(weights, assign=True)
    ids = prompt_ids()[7:]
    with torch.no_grad():
        short, whole = clip.encode_text(ids), clip.encode_text(F.pad(ids, (0, 6)))

    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-5)
    assert short.std(dim=0).min() > 0  # no two are the same


def test_the_score_is_the_mean_of_the_good_probabilities(model: ClipIqa) -> None:
    """By the definition: exp(logit_scale) times cosines, a softmax in each of the five pairs."""
    images = uint8_to_unit(pictures(40, 60))
    features = model.visual(images)[0].double()
    texts = model.texts.double()
    logits = texts @ (features / features.norm())
    good = [1 / (1 + np.exp(float(logits[n + 1] - logits[n]))) for n in range(0, 10, 2)]

    towers = {name.partition(".")[0] for name in model.state_dict()}
    assert towers == {"visual", "texts"}  # descriptions are encoded once, when it is built
    assert texts.norm(dim=1).tolist() == pytest.approx([100] * 10, rel=1e-5)
    assert model(images).item() == pytest.approx(np.mean(good), rel=1e-5)


def test_a_block_averages_before_its_last_convolution_and_its_shortcut() -> None:
    """The convolution of 3 x 3 takes every place, and 2 x 2 places are averaged behind its ReLU."""
    block = ImageBlock(8, 4, stride=2).eval()
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
    inner, shortcut = (
        some.unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean((3, 5)) for some in (inner, x)
    )
    expected = (block.bn3(block.conv3(inner)) + block.downsample(shortcut)).relu()

    torch.testing.assert_close(block(x), expected)


def test_each_picture_is_judged_by_itself(model: ClipIqa) -> None:
    """Whatever else is in the batch."""
    images = uint8_to_unit(pictures(40, 50, batch=3))
    alone = torch.cat([model(image[None]) for image in images])

    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


def test_the_smallest_picture_has_one_place(model: ClipIqa) -> None:
    """One pixel less is refused."""
    assert METRICS["clipiqa"].min_side == MIN_SIDE
    assert model(uint8_to_unit(pictures(31, 31))).isfinite().all()
    with pytest.raises(ValueError, match=r"30 x 64 pixels.*at least 31"):
        model(uint8_to_unit(pictures(30, 64)))


def archive(values: dict[str, Tensor], path: Path) -> Path:
    """Write tensors by name as a TorchScript archive, with OpenAI's scalars beside them."""
    root = nn.Module()
    for name, value in {**values, **{k: torch.tensor(v) for k, v in SCALARS.items()}}.items():
        *folders, last = name.split(".")
        place = root
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, nn.Module())
            place = getattr(place, folder)
        place.register_buffer(last, value)
    torch.jit.save(torch.jit.script(root), path)
    return path


def test_openais_archive_is_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """A TorchScript program: the tensors it holds, in float16."""
    some = {name: value.half() for name, value in weights.items() if "layer1.0" in name}
    found = read_clip(archive(some, tmp_path / "RN50.pt"))

    assert found.keys() == some.keys() | SCALARS.keys()
    assert all(torch.equal(found[name], value) for name, value in some.items())


def test_half_a_download_is_refused(tmp_path: Path) -> None:
    """What is left of an archive without its end is no archive any more."""
    path = archive({"visual.conv1.weight": torch.ones(32, 3, 3, 3)}, tmp_path / "RN50.pt")
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(CheckpointError, match=r"RN50.pt: damaged.* Download it again"):
        METRICS["clipiqa"].load(tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """A changed bit of a weight, which TorchScript would read without a word."""
    path = archive({"visual.conv1.weight": weights["visual.conv1.weight"]}, tmp_path / "RN50.pt")
    with zipfile.ZipFile(path) as content:
        largest = max(content.infolist(), key=lambda record: record.file_size)
        name_size = len(largest.filename)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + 30 + name_size + 500] ^= 1
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match=r"RN50.pt: damaged .*Download it again"):
        read_clip(path)


@pytest.mark.parametrize(
    "name",
    [FILES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FILES[1:])],
)
def test_each_published_file_loads_whole(name: str, tmp_path: Path) -> None:
    """OpenAI's archive, and both of timm/resnet50_clip.openai; zeros prefer no description."""
    if name == "RN50.pt":
        archive(zeros(KEYS, torch.float16), tmp_path / name)
    elif name.endswith(".bin"):
        torch.save(zeros(KEYS), tmp_path / name)
    else:
        save_file({key: value.contiguous() for key, value in zeros(KEYS).items()}, tmp_path / name)

    judge = METRICS["clipiqa"].load(tmp_path)
    assert judge.compute(pictures(32, 32, batch=2)).tolist() == [0.5, 0.5]


def test_a_digest_is_of_the_weights_and_not_of_their_container(weights: dict[str, Tensor]) -> None:
    """Float16 or the same numbers in float32, with counters of batches and scalars or without."""
    some = {name: weights[name] for name in KEYS if "layer1.0" in name}
    half = {name: value.half() for name, value in some.items()}
    full = {name: value.float() for name, value in half.items() if "num_batches" not in name}
    scalars = {name: torch.tensor(value) for name, value in SCALARS.items()}

    assert weights_digest(float_weights({**half, **scalars})) == weights_digest(full)
    assert weights_digest(float_weights(half)) != weights_digest(float_weights(some))


def test_another_network_is_refused(tmp_path: Path) -> None:
    """CLIP with a larger ResNet has other names and shapes."""
    values = {**zeros(KEYS), "visual.layer3.6.conv1.weight": torch.zeros(1)}
    torch.save(values, tmp_path / FILES[2])

    with pytest.raises(CheckpointError, match=r"unexpected \(1\): visual.layer3.6.conv1.weight"):
        METRICS["clipiqa"].load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With its size, its address and its place, and the other file that would do."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        METRICS["clipiqa"].load(tmp_path)

    for part in (str(tmp_path / FILES[0]), "256 MB", "openaipublic", "put it there", FILES[1]):
        assert part in str(caught.value)
