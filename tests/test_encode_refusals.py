"""What encoding and its verification refuse or find, and in which words."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.decoding import encode_png
from datasets.latent_format import extensions
from datasets.latent_pairs import PAIRS, pair_table
from datasets.shards import (
    file_entry,
    fits_ustar,
    index_table,
    parquet_bytes,
    read_manifest,
    write_shard,
)
from infra import storage
from infra.config import canonical_json, pretty_json
from infra.errors import UsageError, UserError
from models.predictor.swinir import SwinIR, SwinIRConfig
from models.vae.folder import save_sim_vae
from models.vae.sim_vae import PRESETS, SimVAE
from pipelines.encode import __main__ as encode
from pipelines.encode.config import VerifyConfig
from pipelines.encode.estimate import counted, estimate
from pipelines.encode.images import long_names
from pipelines.encode.job import Encoding
from pipelines.encode.manifest import pairs_bytes
from pipelines.encode.repair import repair
from pipelines.encode.verify import problems, recomputed
from tests.support.curation_jobs import InProcess
from tests.support.damage import flip
from tests.support.encoding_jobs import (
    SIZE,
    estimated,
    job,
    published,
    run,
    write_images,
    write_networks,
)
from tests.support.published_sets import finish


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small networks, an image set of four, and a latent set of it."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder, 4)
    run(folder, folder / "set", draws=2)
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """Return a copy of the latent set, to be damaged."""
    return Path(shutil.copytree(world / "set", tmp_path / "set"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"dtype": "float32"}, "dtype: 'float16' -> 'float32'"),
        ({"posterior": "sample"}, "posterior: 'mode' -> 'sample'"),
        ({"degradation": "gfpgan-v1"}, r"degradation.blur_sigma: \[0.1, 15.0\] -> \[0.1, 10.0\]"),
        ({"source": "lq"}, "predictor: .* -> None"),
        ({"limit": 2}, "limit: None -> 2"),
        ({"draws": 1}, "holds 2 draws, --draws is 1"),
    ],
)
def test_another_configuration_is_refused_by_field(
    world: Path, fields: dict[str, Any], named: str
) -> None:
    """What made the latents cannot change under a set, nor can draws be taken away."""
    before = published(world / "set")
    with pytest.raises(UsageError, match=named):
        run(world, world / "set", **{"draws": 2, **fields})

    assert before == published(world / "set")


def test_other_weights_are_refused_by_digest_and_replaced_on_demand(
    world: Path, copy: Path, tmp_path: Path
) -> None:
    """The same path with other weights is another autoencoder; --overwrite encodes anew."""
    write_networks(tmp_path / "other", seed=1)
    vae = str(tmp_path / "other" / "vae")
    with pytest.raises(UsageError, match=r"vae: '\w+' -> '\w+'.*--overwrite"):
        run(world, copy, draws=2, vae=vae)
    run(world, copy, draws=1, vae=vae, overwrite=True)
    run(world, tmp_path / "fresh", draws=1, vae=vae)

    assert published(copy) == published(tmp_path / "fresh")


def test_a_set_that_lost_a_shard_is_refused_or_encoded_anew(world: Path, copy: Path) -> None:
    """GPU-hours are not spent again without being asked for."""
    (copy / "train-000000.tar").unlink()
    with pytest.raises(UsageError, match=r"lacks train-000000.tar.*--overwrite"):
        run(world, copy, draws=2)
    run(world, copy, draws=2, overwrite=True)

    assert published(copy) == published(world / "set")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vae": "nowhere"}, r"--vae nowhere.*config.json and no diffusion_pytorch_model"),
        ({"predictor": "nowhere.pth"}, r"--predictor nowhere.pth.*releases/download"),
        (
            {"input": "nowhere"},
            r"--input .*nowhere: there is no such folder; an image set .*pipelines.curate",
        ),
        ({"device": "cuda"}, r"--device cuda: .* GPU wanted, 0 in the Ray cluster"),
    ],
)
def test_what_is_not_at_hand_is_named(
    world: Path, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    """Which option, which file, where to get it; no set is begun."""
    with pytest.raises(UsageError, match=named):
        run(world, tmp_path / "set", **fields)

    assert read_manifest(tmp_path / "set") is None


def test_an_incomplete_image_set_is_refused(world: Path, tmp_path: Path) -> None:
    """The missing shard is named before anything is encoded."""
    images = Path(shutil.copytree(world / "images", tmp_path / "images"))
    (images / "train-000000.tar").unlink()

    with pytest.raises(UsageError, match=r"1 of \d shards are missing or .*, first train-000000"):
        run(world, tmp_path / "set", input=str(images))


def write_set(folder: Path, sizes: list[int], key: str = "hand") -> Path:
    """Publish an image set by hand, one image of each size; returns it."""
    samples = []
    for number, size in enumerate(sizes):
        png = encode_png(np.full((size, size, 3), 40 * number, np.uint8))
        label = {"key": f"{key}-{number}", "source": "s", "origin": "o", "width": size}
        label |= {"height": size, "sha256": hashlib.sha256(png).hexdigest()}
        samples.append((f"{key}-{number}", {"png": png, "json": canonical_json(label)}))
    shard = write_shard(folder / "train-000000.tar", samples)
    return finish(folder, [shard], "image set")


def test_sizes_that_do_not_fit_are_refused(world: Path, tmp_path: Path) -> None:
    """A side the autoencoder cannot halve; a sample of another size, by its key."""
    odd, mixed = write_set(tmp_path / "odd", [60]), write_set(tmp_path / "mixed", [64, 96])
    with pytest.raises(UsageError, match=r"images of 60 pixels.*multiples of 8"):
        run(world, tmp_path / "one", input=str(odd))
    with pytest.raises(UserError, match=r"hand-1: 96 x 96 pixels in a set of 64 x 64"):
        run(world, tmp_path / "two", input=str(mixed))


def test_keys_that_no_tar_could_hold_are_refused_before_any_work(
    world: Path, tmp_path: Path
) -> None:
    """Those of an earlier set, which has room for draws of one digit, and for its own repair."""
    images = write_set(tmp_path / "images", [64, 64], key="x" * 85)  # KEY.source_9.npy: 100 bytes
    folder = tmp_path / "set"
    run(world, folder, input=str(images), draws=1)
    run(world, folder, input=str(images), draws=2)
    before = published(folder)
    long = job(world, folder, input=str(images), draws=11)
    kept = job(world, tmp_path / "other", input=str(images), keep_images=True)
    engine = InProcess()
    said = rf"--input {images}: 2 of its keys .* name x+-0.source_10.npy, .* 100 bytes"
    for refused in (lambda: Encoding(long).run(engine), lambda: estimate(long)):
        with pytest.raises(UsageError, match=rf"{said}.* shorter names and curate again"):
            refused()
    with pytest.raises(UsageError, match=r"x+-0.posterior_mean_0.png.*leave --keep-images out"):
        Encoding(kept).run(engine)

    assert engine.units == []
    assert not (tmp_path / "other").exists()
    assert published(folder) == before
    flip(folder / "train-000000.tar")
    assert repair(Encoding(long), InProcess()) == ["train-000000.tar"]
    assert published(folder) == before
    assert list(problems(folder)) == []


@settings(max_examples=50)
@given(
    key=st.text("ab/é", min_size=60, max_size=270),
    draws=st.integers(1, 12),
    gray=st.integers(0, 2**12),
    images=st.booleans(),
)
def test_a_key_is_refused_if_and_only_if_a_member_does_not_fit(
    key: str, draws: int, gray: int, images: bool
) -> None:
    """Of all members, gray ones included only where a draw is gray."""

    def is_gray(number: int) -> bool:
        return bool(gray >> number & 1)

    every = extensions(range(draws), is_gray, images=images)
    found = long_names(
        pa.chunked_array([[key]]), range(draws), lambda _, k: is_gray(k), images=images
    )

    assert bool(found) == (not all(fits_ustar(f"{key}.{extension}") for extension in every))


def test_a_damaged_image_is_named(world: Path, tmp_path: Path) -> None:
    """Pixels that are not those of the record do not become latents."""
    images = write_set(tmp_path / "images", [64, 64])
    path = images / "train-000000.tar"
    data = bytearray(path.read_bytes())
    place = data.find(b"IDAT")
    data[place + 6] ^= 1
    path.write_bytes(data)

    with pytest.raises(UserError, match=r"hand-0.png: not the checksum .* copy the shard anew"):
        run(world, tmp_path / "set", input=str(images))


def test_a_latent_that_is_not_finite_stops_the_job_with_its_key(
    world: Path, tmp_path: Path
) -> None:
    """And so does one beyond the range of float16."""
    for value, named in (
        (float("nan"), "latent is not finite"),
        (1e9, "cannot be stored as float16"),
    ):
        vae = SimVAE(PRESETS["tiny"])
        with torch.no_grad():
            vae.encoder.get_parameter("conv_out.bias").fill_(value)
        save_sim_vae(vae, tmp_path / "vae")
        with pytest.raises(UserError, match=rf"photo-\d.*{named}"):
            run(world, tmp_path / "set", vae=str(tmp_path / "vae"), overwrite=True)


def test_verify_finds_a_flipped_bit(copy: Path) -> None:
    """The shard's hash differs."""
    path = copy / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)

    assert any("train-000000.tar: SHA-256" in problem for problem in problems(copy))
    assert encode.main(["verify", str(copy)]) == 1


def rewrite(folder: Path, change: Any) -> None:
    """Change members of the first shard, and every record of them: a lie that is consistent."""
    written = []
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                content = file.read()
                changed = content if number else change(extension, content)
                samples.setdefault(key, {})[extension] = changed
        written.append(write_shard(path, samples.items()))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    storage.write_bytes(folder / PAIRS, pairs_bytes(pair_table(folder, written), manifest))
    storage.write_bytes(folder / "index.parquet", parquet_bytes(index_table(written)))
    manifest["shards"] = [shard.entry() for shard in written]
    manifest["files"] |= {name: file_entry(folder / name) for name in (PAIRS, "index.parquet")}
    storage.write_bytes(folder / "manifest.json", pretty_json(manifest))


def test_recomputing_finds_latents_that_hashes_cannot(copy: Path) -> None:
    """A set whose records agree with each other, but not with the pixels."""

    def brighter(extension: str, content: bytes) -> bytes:
        if not extension.startswith("source"):
            return content
        file = io.BytesIO()
        np.save(file, (np.load(io.BytesIO(content)) * np.float16(1.25)))
        return file.getvalue()

    rewrite(copy, brighter)

    assert list(problems(copy)) == []
    found = list(recomputed(copy, VerifyConfig(recompute=4)))
    assert found
    assert all("the source of draw" in problem for problem in found)


def test_verify_finds_a_draw_that_is_not_its_seeds(copy: Path) -> None:
    """Parameters are a function of seed, key and number: anything else is named."""

    def louder(extension: str, content: bytes) -> bytes:
        if extension != "json":
            return content
        label = json.loads(content)
        label["draws"]["1"]["parameters"]["noise_sigma"] = 1.0
        return canonical_json(label)

    rewrite(copy, louder)

    assert any("draw 1: its parameters are not" in p and "noise_sigma" in p for p in problems(copy))


def test_recomputing_with_other_networks_is_refused(copy: Path, tmp_path: Path) -> None:
    """Not a list of wrong latents, but the reason."""
    vae = str(write_networks(tmp_path / "other", seed=1) / "vae")

    with pytest.raises(UsageError, match=r"was not made with what is given \(vae: "):
        list(recomputed(copy, VerifyConfig(recompute=1, vae=vae)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--input", "x", "--output", "y"], "no --vae, --predictor"),
        (["--preset", "nonesuch"], "nonesuch"),
        (["--draws", "0"], "draws 0"),
        (["--dtype", "float8"], "float8"),
        (["--source", "latent"], "choice 'latent'"),
        (["--degradation", "rain"], "rain"),
        (["--preset", "cpu", "--precision", "tf32"], "tf32"),
        (["--preset", "cpu", "--gpus", "1"], "gpus 1 with device cpu"),
        (["verify"], "usage"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is named, with exit code 2, by us or by the command-line library."""
    with pytest.raises((UsageError, SystemExit)) as caught:
        encode.main(arguments)
    error = caught.value

    assert (error.exit_code if isinstance(error, UsageError) else error.code) == 2
    assert named in str(error) + capsys.readouterr().err


def test_the_dry_run_writes_nothing(world: Path, tmp_path: Path) -> None:
    """It says images, draws, bytes, FLOPs and hours; of a set that is there, what is left."""
    said = estimated(world, tmp_path / "set", draws=5)

    assert not (tmp_path / "set").exists()
    for word in (f"4 images of {SIZE} pixels, 5 draws", "GB", "TFLOP", "hours"):
        assert word in said
    assert "3 draws to encode (2 are there)" in estimated(world, world / "set", draws=5)


def test_a_saved_configuration_is_the_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--config of a finished set's config.json has nothing to do."""
    assert encode.main(["--config", str(world / "set" / "config.json")]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_two_jobs_do_not_share_a_folder(world: Path, tmp_path: Path) -> None:
    """The second is told to wait."""
    with (
        storage.exclusive(tmp_path / "set" / ".encode"),
        pytest.raises(UserError, match="being written by another process"),
    ):
        Encoding(job(world, tmp_path / "set")).run()


def test_the_dry_run_counts_the_published_networks_right() -> None:
    """0.305463 TFLOP a latent and a quarter of 0.181478 a posterior mean, at 256 pixels."""
    image = torch.empty(1, 3, 256, 256, device="meta")
    with torch.device("meta"):
        vae = SimVAE(PRESETS["sim-vae-f8c32"])
    predictor = SwinIR(SwinIRConfig()).to("meta")

    assert counted(vae.encode, image) == pytest.approx(0.305463e12, rel=1e-6)
    assert counted(predictor, image) == pytest.approx(0.181478e12 / 4, rel=1e-5)
