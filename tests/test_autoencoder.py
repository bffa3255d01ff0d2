"""The posterior's maths against torch.distributions, and what encoders and decoders refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from models.vae.autoencoder import Posterior, check_images, check_latent


def build_posterior(seed: int = 0, spread: float = 1.0) -> Posterior:
    """Draw a posterior [2, 3, 4, 5]."""
    generator = torch.Generator().manual_seed(seed)
    return Posterior.from_moments(spread * torch.randn(2, 6, 4, 5, generator=generator))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 3.0))
def test_kl_is_the_divergence_summed_per_image(seed: int, spread: float) -> None:
    """KL to the standard normal, summed over channels and cells, one number per image."""
    posterior = build_posterior(seed, spread)
    reference = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))

    torch.testing.assert_close(posterior.kl(), reference.sum(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_kl_of_the_prior_is_zero() -> None:
    """A standard normal costs nothing."""
    zeros = torch.zeros(1, 2, 3, 3)

    assert Posterior(zeros, zeros).kl().tolist() == [0.0]


def test_kl_is_float32_in_low_precision() -> None:
    """The sum over 131,072 dimensions of a real latent would lose its digits in bfloat16."""
    posterior = build_posterior()
    low = Posterior(*(part.bfloat16() for part in posterior))

    assert low.kl().dtype == torch.float32
    torch.testing.assert_close(low.kl(), posterior.kl(), rtol=0.02, atol=0)


def test_logvar_is_clamped() -> None:
    """Log-variances stay in [-30, 20], whatever the encoder says."""
    moments = torch.tensor([0.0, 0.0, -1e4, 1e4]).view(1, 4, 1, 1)

    assert Posterior.from_moments(moments).logvar.flatten().tolist() == [-30.0, 20.0]


def test_sample_moves_noise_by_mean_and_std() -> None:
    """A sample of given noise is the mean plus so many standard deviations."""
    posterior = build_posterior()
    noise = torch.full_like(posterior.mean, 2.0)

    expected = posterior.mode() + 2.0 * (posterior.logvar.exp() ** 0.5)

    torch.testing.assert_close(posterior.sample(noise=noise), expected)


def test_samples_have_the_distribution_of_the_posterior() -> None:
    """Over many samples, the standardised ones have mean 0 and variance 1."""
    posterior = build_posterior()
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([posterior.sample(generator) for _ in range(4000)])
    standard = (draws - posterior.mean) / posterior.std

    assert standard.mean(dim=0).abs().max() < 5 / 4000**0.5
    assert (standard.var(dim=0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


def test_a_seed_draws_the_same_noise_in_every_precision() -> None:
    """Noise is drawn in float32 and rounded after, so bfloat16 runs see the same latents."""
    mean = torch.zeros(1, 2, 4, 4)
    full = Posterior(mean, mean).sample(torch.Generator().manual_seed(3))
    low = Posterior(mean.bfloat16(), mean.bfloat16()).sample(torch.Generator().manual_seed(3))

    assert torch.equal(low, full.bfloat16())


@pytest.mark.parametrize("both", [False, True])
def test_a_sample_needs_one_source_of_noise(both: bool) -> None:
    """There is no global generator to fall back on, and two sources contradict each other."""
    posterior = build_posterior()
    sources = (torch.Generator(), torch.zeros_like(posterior.mean)) if both else (None, None)

    with pytest.raises(ValueError, match="`generator` or `noise`"):
        posterior.sample(*sources)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 4, 16, 16), ValueError, r"\[1, 4, 16, 16\]; expected \[B, 3, H, W\]"),
        (torch.zeros(3, 16, 16), ValueError, r"\[3, 16, 16\]"),
        (torch.zeros(1, 3, 16, 20), ValueError, "16 x 20; .* multiples of 8: pad"),
        (torch.zeros(1, 3, 0, 16), ValueError, "0 x 16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, r"uint8; .*127\.5"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(
    images: torch.Tensor, error: type[Exception], message: str
) -> None:
    """The error says what came, what is expected and what to do."""
    with pytest.raises(error, match=message):
        check_images(images, 8)


def test_latents_of_another_autoencoder_are_refused() -> None:
    """The channel count tells which autoencoder made a latent."""
    with pytest.raises(ValueError, match=r"\[1, 16, 4, 4\]; expected \[B, 32, h, w\]"):
        check_latent(torch.zeros(1, 16, 4, 4), 32)
