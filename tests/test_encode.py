"""The encoding job: what it makes, what it adds, what it refuses."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from datasets.degradation.parameters import PRESETS, DegradationConfig, DegradationParameters
from datasets.degradation.reference import degrade
from datasets.reading.latents import LatentPairs, check_belongs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from infra.config import from_dict
from infra.errors import UserError
from models.frozen import load_posterior_mean, load_vae
from pipelines.encode.config import VerifyConfig
from pipelines.encode.verify import problems, recomputed
from tests.support.encoding_jobs import (
    array,
    manifest_of,
    members,
    published,
    run,
    write_images,
    write_networks,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small networks and an image set of seven."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(world: Path) -> Path:
    """Return a latent set of three draws each, half of them gray, with its images kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "gray", DegradationConfig(gray_probability=0.5))
        run(world, world / "gray", draws=3, degradation="gray", keep_images=True)
    return world / "gray"


def labels(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON of every sample."""
    for name, content in members(folder).items():
        if name.endswith(".json"):
            yield json.loads(content)


def image_of(world: Path, key: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a sample's pixels."""
    with Image.open(io.BytesIO(members(world / "images")[f"{key}.png"])) as image:
        return np.asarray(image)


def as_input(image: np.ndarray[Any, Any]) -> torch.Tensor:
    """RGB uint8 [H, W, 3] => [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def test_latents_are_what_the_networks_make_of_the_pixels(world: Path, encoded: Path) -> None:
    """Each target is E(HQ), flipped and gray as its draw is; each source E(SwinIR(LQ))."""
    vae, _ = load_vae(str(world / "vae"))
    predictor, _ = load_posterior_mean(str(world / "predictor"))
    found = members(encoded)
    kinds = set()
    for label in labels(encoded):
        image = image_of(world, label["key"])
        for number, draw in label["draws"].items():
            parameters = from_dict(DegradationParameters, draw["parameters"])
            hq = degrade(image, parameters).hq
            gray = np.round(hq * 255).astype(np.uint8)
            kinds.add((draw["flip"], draw["gray_target"]))
            name = f"target_g{number}" if draw["gray_target"] else f"target_{int(draw['flip'])}"
            with torch.no_grad():
                target = vae.encode(torch.from_numpy(hq * 2 - 1).permute(2, 0, 1)[None]).mean
                lq = np.asarray(Image.open(io.BytesIO(found[f"{label['key']}.lq_{number}.png"])))
                restored = predictor.posterior_mean((as_input(lq) + 1) / 2)
                source = vae.encode(restored * 2 - 1).mean
            stored = array(found[f"{label['key']}.{name}.npy"])
            np.testing.assert_allclose(stored, target[0], rtol=1e-3, atol=1e-4)
            stored = array(found[f"{label['key']}.source_{number}.npy"])
            np.testing.assert_allclose(stored, source[0], rtol=1e-3, atol=1e-4)
            assert draw["gray_target"] == bool((gray[..., 0] == gray[..., 1]).all())

    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_a_stored_draw_gives_its_lq_again(world: Path, encoded: Path) -> None:
    """The reference degradation replays the JSON; nearly every LQ is equal to the bit."""
    found = members(encoded)
    differing = []
    for label in labels(encoded):
        image = image_of(world, label["key"])
        for number, draw in label["draws"].items():
            again = degrade(image, from_dict(DegradationParameters, draw["parameters"])).lq
            lq = np.asarray(Image.open(io.BytesIO(found[f"{label['key']}.lq_{number}.png"])))
            differing.append(np.abs(np.round(again * 255) - lq).max())

    assert np.mean(np.array(differing) == 0) > 0.8
    assert max(differing) < 16


def test_plain_webdataset_and_our_loader_read_the_same(encoded: Path) -> None:
    """Sources and targets agree value for value."""
    urls = sorted(str(path) for path in encoded.glob("train-*.tar"))
    plain = {sample["__key__"]: sample for sample in wds.WebDataset(urls, shardshuffle=False)}
    pairs = LatentPairs(encoded)
    loader = Loader(pairs, Layout(micro_batch=1), LoaderConfig(workers=0))
    for seen, (batch, _) in enumerate(loader):
        sample, draw = plain[batch.keys[0]], batch.draws[0]
        gray = json.loads(sample["json"])["draws"][str(draw)]["gray_target"]
        target = f"target_g{draw}.npy" if gray else f"target_{int(batch.flips[0])}.npy"
        assert (array(sample[f"source_{draw}.npy"]) == batch.source[0].double().numpy()).all()
        assert (array(sample[target]) == batch.target[0].double().numpy()).all()
        if seen == 3 * len(plain):
            break


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float16", "posterior": "sample"},
        {"dtype": "float32", "precision": "bfloat16"},
        {"dtype": "uint8", "keep_images": True},
        {"source": "lq", "predictor": "", "dtype": "float32", "posterior": "sample"},
    ],
)
def test_a_set_verifies_and_its_latents_are_computed_again(
    world: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Whatever the dtype, the posterior and the source: within the dtype's error, all samples."""
    run(world, tmp_path / "set", draws=2, **fields)

    assert list(problems(tmp_path / "set")) == []
    assert list(recomputed(tmp_path / "set", VerifyConfig(recompute=7))) == []


def test_a_finished_set_is_left_alone(
    world: Path, encoded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run does no unit of work and says so."""
    monkeypatch.setitem(PRESETS, "gray", DegradationConfig(gray_probability=0.5))
    before = published(encoded)
    second = run(world, encoded, draws=3, degradation="gray", keep_images=True)

    assert second.units == []
    assert "nothing to do" in capsys.readouterr().out
    assert before == published(encoded)


def test_another_autoencoder_sees_the_same_draws(world: Path, tmp_path: Path) -> None:
    """The parameters are a function of (seed, key, number); the latents are not the same."""
    other = write_networks(tmp_path / "other", seed=1)
    run(world, tmp_path / "one")
    run(world, tmp_path / "two", vae=str(other / "vae"))
    one, two = members(tmp_path / "one"), members(tmp_path / "two")
    names = [name for name in one if name.endswith(".json")]

    assert [one[name] for name in names] == [two[name] for name in names]
    assert not any(one[name] == two[name] for name in one if name.endswith(".npy"))


def test_what_a_trainer_has_is_compared_by_digest(world: Path, tmp_path: Path) -> None:
    """A set of another autoencoder is refused by name."""
    run(world, tmp_path / "set", limit=2)
    manifest = manifest_of(tmp_path / "set")
    _, vae = load_vae(str(world / "vae"))
    _, predictor = load_posterior_mean(str(world / "predictor" / "model.safetensors"))
    _, other = load_vae(str(write_networks(tmp_path / "other", seed=1) / "vae"))

    check_belongs(manifest, vae=vae.weights, predictor=predictor.weights)
    with pytest.raises(UserError, match="vae"):
        check_belongs(manifest, vae=other.weights, predictor=predictor.weights)


def test_the_manifest_says_what_the_latents_are(world: Path, tmp_path: Path) -> None:
    """Mean, deviation and error of storing are NumPy's over all members; sigma is the VAE's."""
    run(world, tmp_path / "exact", draws=2, dtype="float32")
    run(world, tmp_path / "half", draws=2, dtype="float16")
    run(world, tmp_path / "bytes", draws=2, dtype="uint8")
    exact = members(tmp_path / "exact")
    for folder in ("exact", "half"):
        manifest = manifest_of(tmp_path / folder)
        found = members(tmp_path / folder)
        for side in ("target", "source"):
            names = [name for name in exact if f".{side}_" in name]
            values, stored = (np.stack([array(m[n]) for n in names]) for m in (exact, found))
            said = manifest["statistics"][side]
            np.testing.assert_allclose(said["mean"], values.mean((0, 2, 3)), rtol=1e-9)
            np.testing.assert_allclose(said["std"], values.std((0, 2, 3)), rtol=1e-6)
            error = np.sqrt(np.square(values - stored).mean((0, 2, 3)))
            np.testing.assert_allclose(said["rounding_error"], error, rtol=1e-6, atol=1e-12)
        assert manifest["latent"]["std"] == manifest["statistics"]["target"]["std"]
    vae, _ = load_vae(str(world / "vae"))
    names = [name.removesuffix(".png") for name in members(world / "images") if "png" in name]
    images = torch.cat([as_input(image_of(world, name)) for name in names])
    with torch.no_grad():
        std = [vae.encode(side).std for side in (images, images.flip(3))]
    sigma = torch.cat(std).square().mean((0, 2, 3)).sqrt()
    said = manifest_of(tmp_path / "exact")["statistics"]["target"]["sigma"]
    np.testing.assert_allclose(said, sigma, rtol=1e-4)
    scale = np.array(manifest_of(tmp_path / "bytes")["latent"]["scale"])
    rounding = np.array(manifest_of(tmp_path / "bytes")["statistics"]["target"]["rounding_error"])
    assert (rounding < scale).all()  # scale / sqrt(12), and what little is clipped


def test_the_distortion_bound_is_psnr_of_the_modes(world: Path, encoded: Path) -> None:
    """D(E(x)) against x and D(E(x_hat)) against x_hat, computed apart from the job."""
    vae, _ = load_vae(str(world / "vae"))
    found, bound = members(encoded), manifest_of(encoded)["distortion"]

    def psnr(images: torch.Tensor, reference: torch.Tensor) -> float:
        eight_bits = [((x + 1) * 127.5).clamp(0, 255).round() for x in (images, reference)]
        return float(20 * torch.log10(255 / (eight_bits[0] - eight_bits[1]).square().mean().sqrt()))

    measured = []
    for label in labels(encoded):
        draw = from_dict(DegradationParameters, label["draws"]["0"]["parameters"])
        hq = degrade(image_of(world, label["key"]), draw).hq
        x = torch.from_numpy(hq).permute(2, 0, 1)[None] * 2 - 1
        png = found[f"{label['key']}.posterior_mean_0.png"]
        x_hat = as_input(np.asarray(Image.open(io.BytesIO(png))))
        with torch.no_grad():
            decoded = [vae.decode(vae.encode(image).mean) for image in (x, x_hat)]
        measured.append((psnr(decoded[0], x), psnr(decoded[1], x_hat)))
    expected = np.mean(measured, axis=0)

    assert bound["images"] == len(measured) == 7
    assert bound["psnr_hq_decoded"] == pytest.approx(expected[0], abs=0.01)
    assert bound["psnr_posterior_mean_decoded"] == pytest.approx(
        expected[1], abs=0.05
    )  # 8-bit x_hat


def test_the_page_shows_the_bound_and_the_pictures(encoded: Path) -> None:
    """One file: five pictures of each of six images, the numbers, the identity."""
    page = (encoded / "report.html").read_text()
    manifest = manifest_of(encoded)

    assert page.count("data:image/jpeg") == 30
    assert f"{manifest['distortion']['psnr_hq_decoded']:.2f} dB" in page
    assert manifest["identity"]["vae"] in page
    assert "http" not in page.replace("http-equiv", "")
