"""The loss of Sim-VAE: its terms against references, where gradients go, the weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.losses import (
    PERCEPTUAL_LAYERS,
    PerceptualLoss,
    SimVAELoss,
    SimVAELossConfig,
    kl,
    l1,
)
from models.metrics.backbones import VGG19


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int, batch: int = 2, size: int = 32) -> Tensor:
    """Draw images in [-1, 1]."""
    return noise(batch, 3, size, size, seed=seed).tanh()


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    """Build the term on random features that keep the variance of their input."""
    vgg = VGG19()
    generator = torch.Generator().manual_seed(0)
    for name, value in vgg.named_parameters():
        scale = 0.05 if name.endswith("bias") else (2 / value[0].numel()) ** 0.5
        value.data = scale * torch.randn(value.shape, generator=generator)
    return PerceptualLoss(vgg)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 3), scale=st.floats(0.01, 3))
def test_kl_is_the_divergence_summed_over_dims_and_averaged_over_images(
    seed: int, batch: int, scale: float
) -> None:
    """It equals torch.distributions' divergence from N(0, 1), in the authors' reductions."""
    mean, logvar = scale * noise(2, batch, 4, 3, 3, seed=seed)
    posterior = Normal(mean.double(), (0.5 * logvar.double()).exp())
    prior = Normal(torch.zeros_like(posterior.mean), torch.ones_like(posterior.mean))

    expected = kl_divergence(posterior, prior).sum(dim=(1, 2, 3)).mean()

    torch.testing.assert_close(kl(mean, logvar).double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_keeps_its_digits_near_zero() -> None:
    """A posterior almost equal to the prior has the small divergence it has, not rounding."""
    logvar = torch.full((1, 32, 8, 8), 1e-4)

    value = kl(torch.zeros_like(logvar), logvar).item()

    assert value == pytest.approx(2048 * 1e-8 / 4, rel=1e-3)
    assert kl(torch.zeros_like(logvar), torch.zeros_like(logvar)) == 0


def test_kl_grows_with_the_latent_and_not_with_the_batch() -> None:
    """Twice the cells have twice the divergence; twice the images have the same."""
    mean, logvar = noise(2, 1, 4, 8, 8)
    value = kl(mean, logvar)

    assert torch.allclose(kl(mean.repeat(1, 1, 2, 1), logvar.repeat(1, 1, 2, 1)), 2 * value)
    assert torch.allclose(kl(mean.repeat(2, 1, 1, 1), logvar.repeat(2, 1, 1, 1)), value)


def test_l1_averages_all_values() -> None:
    """It is the mean over pixels, channels and images, whatever their number."""
    x, y = images(1), images(2)

    torch.testing.assert_close(l1(x, y), (x - y).abs().sum() / x.numel())
    assert torch.allclose(l1(x.repeat(3, 1, 1, 1), y.repeat(3, 1, 1, 1)), l1(x, y))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_l1_of_half_maps_needs_no_copy_in_float32(half: torch.dtype) -> None:
    """It is within 1e-4 of the float32 copies' own, and its gradient is theirs to the bit.

    Differences are rounded, which averages out; the sum is in float32 and counts every value.
    """
    x, y = (noise(4, 64, 64, 64, seed=seed).to(half).requires_grad_() for seed in (1, 2))
    expected = (x.float() - y.float()).abs().mean()
    (gradient,) = torch.autograd.grad(expected, x)

    value = l1(x, y)

    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(torch.autograd.grad(value, x)[0], gradient)


def test_the_forward_pass_reads_no_value() -> None:
    """On the meta device, where a value cannot be read, the whole loss and its gradient are made.

    On a GPU, to read one would make the host wait.
    """
    with torch.device("meta"):
        loss = SimVAELoss(SimVAELossConfig(), PerceptualLoss(VGG19()))
        x, mean = torch.empty(1, 3, 32, 32, requires_grad=True), torch.empty(1, 4, 4, 4)
        loss(x, torch.empty(1, 3, 32, 32), mean, mean).total.backward()

    assert x.grad is not None


def test_l1_does_not_broadcast() -> None:
    """Two shapes are an error, also where PyTorch would make them one."""
    with pytest.raises(ValueError, match=r"\[2, 3, 32, 32\] and images \[1, 3, 32, 32\]"):
        l1(images(1), images(1)[:1])


def test_perceptual_is_the_weighted_sum_over_layers(perceptual: PerceptualLoss) -> None:
    """It maps [-1, 1] to [0, 1], and weighs the five layers as Real-ESRGAN does."""
    x, y = images(1), images(2)
    names = ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4")
    f_x, f_y = (perceptual.vgg(image * 0.5 + 0.5, names) for image in (x, y))
    distances = torch.stack([(f_x[name] - f_y[name]).abs().mean() for name in names])

    torch.testing.assert_close(
        perceptual(x, y), distances @ torch.tensor([0.1, 0.1, 1.0, 1.0, 1.0])
    )
    assert tuple(PERCEPTUAL_LAYERS) == names
    assert perceptual(x, x) == 0


def test_perceptual_gradients_reach_the_reconstruction_alone(perceptual: PerceptualLoss) -> None:
    """Neither the reference nor VGG's weights receive a gradient."""
    x, y = images(1).requires_grad_(), images(2).requires_grad_()

    perceptual(x, y).backward()

    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert y.grad is None
    assert all(value.grad is None for value in perceptual.parameters())
    assert not perceptual.vgg.training


def test_the_whole_loss_is_the_weighted_sum_of_its_terms(perceptual: PerceptualLoss) -> None:
    """With the authors' weights: L1 + 0.05 perceptual + 1e-6 KL, the terms reported unweighted."""
    x, y = images(1), images(2)
    mean, logvar = noise(2, 2, 4, 4, 4)

    losses = SimVAELoss(SimVAELossConfig(), perceptual)(x, y, mean, logvar)

    assert torch.equal(losses.l1, l1(x, y))
    assert torch.equal(losses.kl, kl(mean, logvar))
    assert torch.equal(losses.perceptual, perceptual(x, y))
    expected = losses.l1 + 0.05 * losses.perceptual + 1e-6 * losses.kl
    torch.testing.assert_close(losses.total, expected)


@pytest.mark.parametrize("term", ["l1", "perceptual", "kl"])
def test_each_weight_scales_its_term_alone(perceptual: PerceptualLoss, term: str) -> None:
    """One weight of 2 and zeros elsewhere give twice that term."""
    weights = dict.fromkeys(("l1", "perceptual", "kl"), 0.0) | {term: 2.0}
    mean, logvar = noise(2, 2, 4, 4, 4)

    losses = SimVAELoss(SimVAELossConfig(**weights), perceptual)(images(1), images(2), mean, logvar)

    torch.testing.assert_close(losses.total, 2 * getattr(losses, term))


def test_without_vgg_the_rest_trains() -> None:
    """A perceptual weight of 0 needs no VGG, and gradients reach all three inputs."""
    x, mean, logvar = images(1), noise(2, 4, 4, 4), noise(2, 4, 4, 4, seed=1)
    inputs = [value.requires_grad_() for value in (x, mean, logvar)]

    losses = SimVAELoss(SimVAELossConfig(perceptual=0))(x, images(2), mean, logvar)
    losses.total.backward()

    assert losses.perceptual == 0
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in inputs)
    assert not any(part.requires_grad for part in losses[1:])


def test_bfloat16_terms_are_reduced_in_float32() -> None:
    """Long sums of bfloat16 values do not lose their small terms."""
    x = torch.full((1, 3, 256, 256), 1e-3, dtype=torch.bfloat16)
    logvar = torch.full((1, 32, 32, 32), 0.5, dtype=torch.bfloat16)

    assert l1(x, torch.zeros_like(x)).dtype == torch.float32
    assert l1(x, torch.zeros_like(x)).item() == pytest.approx(1e-3, rel=2**-8)
    expected = 32_768 * 0.5 * (torch.tensor(0.5).expm1().item() - 0.5)
    assert kl(torch.zeros_like(logvar), logvar).item() == pytest.approx(expected, rel=1e-5)


def test_a_perceptual_weight_without_vgg_is_refused() -> None:
    """The term does not vanish in silence; the error names both ways out."""
    with pytest.raises(ValueError, match=r"load_vgg19.*set perceptual=0"):
        SimVAELoss(SimVAELossConfig())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(value: float) -> None:
    """The error names the weight."""
    with pytest.raises(ValueError, match=rf"kl\s+Input should be .*input_value={value}"):
        SimVAELossConfig(kl=value)
