"""VGG19's features: the public layout and cost, the values before the ReLU, loading."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.backbones import VGG19, load_vgg19

# Places of the convolutions in torchvision's `vgg19().features`; pooling stands at 4, 9, 18, 27.
PLACES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
POOLED = (4, 9, 18, 27)


@pytest.fixture(scope="module")
def vgg() -> VGG19:
    """Build a network of random weights that keeps the variance of its input."""
    model = VGG19()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        fan_in = value[0].numel()
        scale = 0.05 if name.endswith("bias") else (2 / fan_in) ** 0.5
        value.data = scale * torch.randn(value.shape, generator=generator)
    return model.requires_grad_(False)


def images(batch: int = 1, size: int = 32, seed: int = 1) -> Tensor:
    """Draw images in [0, 1]."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def reference(model: VGG19, x: Tensor) -> dict[int, Tensor]:
    """Run VGG19 by its table of places, in float64; returns what each convolution gives."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x.double() - mean[:, None, None]) / std[:, None, None]
    outputs = {}
    for place in range(35):
        if place in PLACES:
            x = F.conv2d(
                x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1
            )
            outputs[place] = x
        elif place in POOLED:
            x = F.max_pool2d(x, 2)
        else:
            x = x.relu()
    return outputs


def test_keys_are_torchvisions() -> None:
    """Sixteen convolutions at torchvision's places, with its shapes; 20.0 M parameters."""
    with torch.device("meta"):
        state = VGG19().state_dict()

    assert list(state) == [f"features.{n}.{kind}" for n in PLACES for kind in ("weight", "bias")]
    assert sum(value.numel() for value in state.values()) == 20_024_384
    assert state["features.34.weight"].shape == (512, 512, 3, 3)


def test_flops_are_the_published_ones() -> None:
    """Up to conv5_4 a 256 x 256 image costs 0.050961 TFLOP."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VGG19()(torch.rand(1, 3, 256, 256), ["conv5_4"])

    assert counter.get_total_flops() / 1e12 == pytest.approx(0.050961, abs=1e-6)


def test_values_are_those_before_the_relu(vgg: VGG19) -> None:
    """Every convolution's output equals an independent float64 run, negative values included."""
    outputs = vgg(images(), list(vgg.places))
    expected = reference(vgg, images())

    for name, place in vgg.places.items():
        assert outputs[name].min() < 0
        torch.testing.assert_close(outputs[name].double(), expected[place], rtol=1e-3, atol=1e-4)
    assert list(vgg.places)[:3] == ["conv1_1", "conv1_2", "conv2_1"]


def test_later_layers_leave_earlier_features_alone(vgg: VGG19) -> None:
    """What is returned does not depend on what else is asked for: nothing works in place."""
    alone = vgg(images(), ["conv1_2"])["conv1_2"]
    among = vgg(images(), ["conv2_1", "conv1_2", "conv3_4"])

    assert torch.equal(alone, among["conv1_2"])
    assert set(among) == {"conv2_1", "conv1_2", "conv3_4"}


def test_nothing_is_computed_behind_the_last_layer(vgg: VGG19) -> None:
    """An image too small for five resolutions suffices for the first."""
    assert vgg(images(size=2), ["conv2_2"])["conv2_2"].shape == (1, 128, 1, 1)


@pytest.mark.parametrize(
    ("shape", "layers", "said"),
    [
        ((1, 3, 8, 8), ["relu1_1"], "some of conv1_1, conv1_2"),
        ((1, 3, 8, 8), [], "some of conv1_1"),
        ((1, 1, 8, 8), ["conv1_1"], r"\[1, 1, 8, 8\]; expected \[B, 3, H, W\]"),
        ((3, 8, 8), ["conv1_1"], r"\[3, 8, 8\]"),
    ],
)
def test_wrong_input_is_refused(
    vgg: VGG19, shape: tuple[int, ...], layers: list[str], said: str
) -> None:
    """The error names what came and what is allowed."""
    with pytest.raises(ValueError, match=said):
        vgg(torch.rand(shape), layers)


def test_torchvisions_file_loads_without_its_classifier(
    vgg: VGG19, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a path or from the cache of torch.hub come the same frozen features."""
    classifier = {"classifier.0.weight": torch.ones(2, 2), "classifier.0.bias": torch.ones(2)}
    path = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir()
    torch.save(vgg.state_dict() | classifier, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    for loaded in (load_vgg19(path), load_vgg19()):
        x = images()
        assert torch.equal(loaded(x, ["conv5_4"])["conv5_4"], vgg(x, ["conv5_4"])["conv5_4"])
        assert not any(value.requires_grad for value in loaded.parameters())
        assert not loaded.training


def test_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    """The error names the path looked at and torchvision's address of the file."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_vgg19(tmp_path / "vgg.pth")

    assert str(tmp_path / "vgg.pth") in str(caught.value)
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in str(caught.value)


def test_another_vgg_is_refused(vgg: VGG19, tmp_path: Path) -> None:
    """VGG16, whose keys overlap, is not taken for VGG19."""
    state = vgg.state_dict()
    torch.save({k: v for k, v in state.items() if int(k.split(".")[1]) < 30}, tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match=r"VGG19 .*missing \(6\): features.30.bias"):
        load_vgg19(tmp_path / "a.pth")
