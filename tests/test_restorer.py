"""The steps from LQ to a restored image: one chain for encoding, validation and restoring."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.degradation.parameters import degradation_preset
from datasets.reading.images import DegradedBatch, ImageSet, OnlinePairs
from datasets.reading.memory import Memory
from datasets.reading.order import Order, WeightedSet
from models.frozen import load_posterior_mean, load_regressor, load_vae
from models.noise import NamedNoise, Purpose
from models.ranges import uint8_to_unit
from models.restorer import RestorationRule, Restorer, Solver
from models.velocity.looformer import PRESETS, LooUFormer
from pipelines.encode.networks import Encoder, identity, load_models
from tests.support.encoding_jobs import job, write_images, write_networks, write_regressor
from trainers.loop.noise import Noise
from trainers.recipes.flow_pairs import from_images

SIDE = 32
RULES: dict[str, dict[str, Any]] = {
    "latent-pmrf": {},
    "authors": {"posterior": "sample"},
    "elir": {"source": "regressed"},
    "lq": {"source": "lq"},
    "from-noise": {"source": "noise", "conditional": True},
    "no-noise": {"sigma_s": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tiny networks, and images to encode."""
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    write_regressor(folder)
    write_images(folder, 4)
    return folder


def restorer(folder: Path, **rule: Any) -> Restorer:
    """Build a restorer of the tiny networks."""
    regressed = rule.get("source") == "regressed"
    return Restorer(
        RestorationRule(**rule),
        vae=load_vae(str(folder / "vae"))[0],
        predictor=load_posterior_mean(str(folder / "predictor"))[0],
        regressor=load_regressor(str(folder / "network"))[0] if regressed else None,
    )


def velocity(rule: RestorationRule) -> nn.Module:
    """Build a velocity network with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        channels = 4 if rule.conditional else 0
        return LooUFormer(replace(PRESETS["tiny"], condition_channels=channels)).eval()


def lq(count: int) -> Tensor:
    """Draw 8-bit pictures in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return uint8_to_unit(levels)


class Counting:
    """Numbers by name, which notes what they were drawn for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.noise, self.purposes = NamedNoise(0, names), list[Purpose]()

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw, and note it."""
        self.purposes.append(purpose)
        return self.noise.normal(shape, purpose)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_restoration_is_a_function_of_seed_and_key(folder: Path, rule: dict[str, Any]) -> None:
    """Repeated to the bit; alone as among others, but for the order of a kernel's sums."""
    chain = restorer(folder, **rule)
    network, images, names = velocity(chain.rule), lq(8), [f"key-{i}" for i in range(8)]
    together = chain.restore(network, images, NamedNoise(1, names), steps=3)
    again = chain.restore(network, images, NamedNoise(1, names), steps=3)
    alone = [
        chain.restore(network, images[i : i + 1], NamedNoise(1, names[i : i + 1]), steps=3)
        for i in range(8)
    ]
    is_random = rule.get("sigma_s") != 0

    assert torch.equal(together, again)
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-4)
    other = chain.restore(network, images, NamedNoise(2, names), steps=3)
    assert torch.equal(other, together) != is_random
    assert 0 <= together.min() <= together.max() <= 1


@pytest.mark.parametrize(
    ("rule", "purposes"),
    [
        ("latent-pmrf", [Purpose.SOURCE_NOISE]),
        ("authors", [Purpose.SOURCE_POSTERIOR, Purpose.SOURCE_NOISE]),
        ("elir", [Purpose.SOURCE_NOISE]),
        ("from-noise", [Purpose.SOURCE_NOISE]),
        ("no-noise", []),
    ],
)
def test_no_number_is_drawn_that_the_rule_has_no_use_for(
    folder: Path, rule: str, purposes: list[Purpose]
) -> None:
    """The mode of a posterior is no sample of it, and a source without noise asks for none."""
    chain, noise = restorer(folder, **RULES[rule]), Counting(["a", "b"])
    chain.restore(velocity(chain.rule), lq(2), noise, steps=1)

    assert noise.purposes == purposes


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_velocity_of_zero_restores_what_the_autoencoder_makes_of_the_posterior_mean(
    folder: Path, solver: Solver
) -> None:
    """D(E(posterior mean)), clipped, by either solver."""

    class Still(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            return torch.zeros_like(x_t)

    chain = restorer(folder, sigma_s=0.0)
    assert chain.vae is not None
    mean = chain.posterior_mean(lq(2))
    with torch.no_grad():
        expected = ((chain.vae.decode(chain.vae.encode(mean * 2 - 1).mean) + 1) / 2).clamp(0, 1)
    found = chain.restore(Still(), lq(2), NamedNoise(0, ["a", "b"]), steps=2, solver=solver)

    torch.testing.assert_close(found, expected)


def test_in_pixel_space_images_are_the_points_of_the_flow(folder: Path) -> None:
    """PMRF: nothing is encoded, nothing decoded."""
    predictor, _ = load_posterior_mean(str(folder / "predictor"))
    chain, noise = Restorer(RestorationRule(space="pixel"), predictor=predictor), Counting(["a"])
    mean = chain.posterior_mean(lq(1))

    assert torch.equal(chain.encode(mean, noise, Purpose.SOURCE_POSTERIOR), mean)
    assert torch.equal(chain.image(2 * mean), (2 * mean).clamp(0, 1))
    assert noise.purposes == []


def test_a_step_without_its_network_is_refused() -> None:
    """By the name of what to give."""
    with pytest.raises(ValueError, match="give the vae"):
        Restorer(RestorationRule()).posterior(lq(1))
    with pytest.raises(ValueError, match=r"posterior\n.*'mode' or 'sample'.*'median'"):
        RestorationRule(posterior="median")


def test_a_trainer_encodes_as_the_encoder_does(folder: Path) -> None:
    """Images of a loader, in [-1, 1], and of a worker, in [0, 1]: the same latents to the bit."""
    encoder = Encoder(job(folder, folder / "unused").rule)
    images = ImageSet(folder / "images")
    picks = Order([WeightedSet(size=len(images))], digest="x", seed=0).at(np.arange(2))
    pairs = OnlinePairs([images], degradation_preset("pmrf-128"))
    batch: DegradedBatch = pairs.load(picks, Memory("reused"))
    hq, levels = ((side + 1) / 2 for side in (batch.hq, batch.lq))
    exact = (levels * 255).round() / torch.tensor(255.0)  # as datasets.degradation leaves them
    noise = Noise(seed=0, step=0, positions=range(2), total=2, device=torch.device("cpu"))
    found = from_images(restorer(folder), batch, noise)

    for image, is_source, mine in ((exact, True, found.source), (hq, False, found.target)):
        channels_last = encoder.tensor(list(image.permute(0, 2, 3, 1).numpy()))
        if is_source:
            channels_last = encoder.restorer.posterior_mean(channels_last)
        theirs = encoder.encode(channels_last, batch.keys, is_source=is_source)
        assert np.array_equal(np.stack([one.latent for one in theirs]), mine.numpy())


def test_a_sampled_set_says_how_its_noise_is_drawn(folder: Path) -> None:
    """So one that was sampled with other numbers is another set; of the mode it says nothing."""
    rules = [job(folder, folder / "unused", posterior=name).rule for name in ("mode", "sample")]
    of_mode, of_sample = (identity(rule, load_models(rule)) for rule in rules)

    assert of_sample.keys() - of_mode.keys() == {"noise"}
