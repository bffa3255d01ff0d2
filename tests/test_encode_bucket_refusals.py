"""Wrong URIs, missing sets and refused requests: one sentence before any work, nothing written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.kinds import LOOKED_AT, LOOKED_INTO, described
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.paths import path_of, write_bytes
from pipelines.encode import __main__ as encode
from pipelines.encode.job import Encoding
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import (
    job,
    manifest_of,
    published,
    run,
    write_images,
    write_networks,
)
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import inputs_uploaded, uploaded
from tests.support.s3_server import READER, use

PLACE = "s3://tests/refusals"
FORM = "give a local path, or s3://bucket/prefix"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_proxy: FaultyProxy) -> Iterator[BucketPath]:
    """Put networks, photographs, an image set and a latent set of it into a bucket."""
    disk = tmp_path_factory.mktemp("world")
    write_networks(disk)
    write_images(disk, 2)
    uploaded(disk / "raw", f"{PLACE}/raw")
    bucket = inputs_uploaded(disk, PLACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run(bucket, bucket / "latents")
        yield bucket


def written(proxy: FaultyProxy) -> list[str]:
    """Return what was asked for besides reading."""
    return [seen.path for seen in proxy.seen if seen.method not in ("GET", "HEAD")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": "S3://tests/images"}, FORM),
        ({"input": "https://host/images"}, FORM),
        ({"reuse": "s3:/tests/latents"}, FORM),
        ({"vae": "gs://bucket/vae"}, FORM),
        ({"vae": "flux-f8c16=s3:/tests/vae"}, FORM),
        ({"input": "s3://te/images"}, "'te' is no name of a bucket"),
        (
            {"input": f"{PLACE}/nothing"},
            "--input .*there is no such folder; an image set is",
        ),
        ({"input": f"{PLACE}/latents"}, "--input .*this is a latent set; an image set is wanted"),
        ({"input": f"{PLACE}/images/manifest.json"}, "--input .*this is a file, not a folder"),
        ({"input": PLACE}, "--input .*this folder holds the sets images, latents: give one"),
        ({"input": f"{PLACE}/raw"}, r"this is a folder of image files \(photo-0.png, photo-1.png"),
        ({"input": "s3://nobody/images"}, "there is no bucket nobody at http.*create it, or"),
        ({"vae": f"{PLACE}/nothing"}, "--vae .*there is no such file, and no folder with files"),
        ({"vae": f"{PLACE}/images"}, "--vae .*/images has no diffusion_pytorch_model.safetensors"),
        ({"vae": f"{PLACE}/raw"}, "--vae .*it has no config.json, but photo-0.png and 1 more"),
        ({"predictor": f"{PLACE}/none.pth"}, "--predictor .*there is no such file"),
        ({"predictor": f"{PLACE}/vae"}, "--predictor .*no configuration of ours"),
        ({"reuse": f"{PLACE}/nothing"}, "--reuse .*no such folder.*leave --reuse out"),
        ({"reuse": f"{PLACE}/images"}, "--reuse .*this is an image set.*leave --reuse out"),
        ({"reuse": f"{PLACE}/new"}, "--reuse .* is --output too"),
        ({"output": f"{PLACE}/raw"}, "--output .*/raw: not empty and not a latent set"),
        ({"output": f"{PLACE}/images/manifest.json"}, "--output .*: this is a file, not a folder"),
        ({"output": "s3://nobody/set"}, "there is no bucket nobody"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(
    world: BucketPath, s3_proxy: FaultyProxy, fields: dict[str, Any], said: str
) -> None:
    """With the option or the URI, what there is, and what is wanted."""
    s3_proxy.harmless()
    output = fields.pop("output", f"{PLACE}/new")
    with pytest.raises(UserError, match=said) as caught:
        Encoding(job(world, path_of(output), **fields)).run(InProcess())

    assert "\n" not in str(caught.value)
    assert written(s3_proxy) == []


@pytest.mark.parametrize("options", [[], ["--repair"]], ids=["verify", "repair"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "nothing: there is no such folder; a latent set is wanted here"),
        ("images", "images: this is an image set; a latent set is wanted here"),
        ("vae", "vae: this is the folder of a network's weights; a latent set is wanted here"),
    ],
)
def test_what_is_no_latent_set_is_not_verified(
    world: BucketPath, s3_proxy: FaultyProxy, name: str, said: str, options: list[str]
) -> None:
    """Nor repaired; the sentence says what it is."""
    s3_proxy.harmless()
    with pytest.raises(UserError, match=said):
        encode.main(["verify", str(world / name), *options])

    assert written(s3_proxy) == []


def test_credentials_that_may_not_write_are_refused_before_any_work(
    world: BucketPath, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permission is named; a set in the way of the output is as it was."""
    before = published(world / "latents")
    with monkeypatch.context() as patch:
        use(patch, s3_proxy.endpoint, READER)
        for name in ("new", "latents"):
            engine = InProcess()
            with pytest.raises(UserError, match=r"need the permission s3:PutObject"):
                Encoding(job(world, world / name, draws=2)).run(engine)
            assert engine.units == []

    assert published(world / "latents") == before
    assert not (world / "new").exists()


def test_networks_that_are_replaced_meanwhile_stop_the_job(
    world: BucketPath, tmp_path: Path, s3_proxy: FaultyProxy
) -> None:
    """A worker that starts later would compute other latents; brought back, they go on."""
    s3_proxy.harmless()
    write_networks(tmp_path, seed=3)
    own = world / "own"
    vae = uploaded(tmp_path.parent / tmp_path.name / "vae", f"{own}/later")
    theirs = {path.name: path.read_bytes() for path in vae.iterdir()}
    ours = {path.name: path.read_bytes() for path in (world / "vae").iterdir()}

    def replace(files: dict[str, bytes]) -> None:
        for name, content in files.items():
            write_bytes(own / "vae" / name, content)

    class Replacing(InProcess):
        def run(self, name: str, *rest: Any) -> Iterator[dict[str, Any]]:
            if name == "encode":
                replace(theirs)
            return super().run(name, *rest)

    replace(ours)
    fields = {"vae": str(own / "vae")}
    with pytest.raises(UserError, match=r"networks were replaced while the job ran \(vae: "):
        Encoding(job(world, own / "set", **fields)).run(Replacing())
    replace(ours)
    run(world, own / "set", **fields)

    assert published(own / "set") == published(world / "latents")


def test_a_large_folder_is_described_by_few_requests(
    world: BucketPath, s3_proxy: FaultyProxy
) -> None:
    """A wrong path in a bucket may hold millions of objects."""
    s3_proxy.harmless()
    for number in range(6):
        write_bytes(world / "photographs" / f"{number}.jpg", b"")
    s3_proxy.harmless()

    assert described(world / "photographs").startswith("this is a folder of image files (0.jpg")
    assert len(s3_proxy.seen) < 6
    assert LOOKED_AT <= 1000
    assert LOOKED_INTO <= 64


def test_a_shard_costs_no_request_for_each_of_its_samples(
    world: BucketPath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Nor does reading the images: neighbours in one of the image set's shards come together."""
    write_images(tmp_path, 9)
    uploaded(tmp_path / "images", f"{PLACE}/nine")
    counts = []
    for limit in (1, 7):
        output = world / f"of-{limit}"
        s3_proxy.harmless()
        fields = {"input": f"{PLACE}/nine", "limit": limit, "batch": 8, "samples_per_shard": 8}
        run(world, output, **fields)
        counts.append(sum("/probe/" not in seen.path for seen in s3_proxy.seen))
        assert len(manifest_of(output)["shards"]) == 1

    assert counts[1] <= counts[0] + 3  # six more samples, which lie in a second shard too
