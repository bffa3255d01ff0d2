"""Averages of weights: their law, their effect, and that they leave training alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoint import CheckpointError, load_strict
from models.ema import EMA, EMAConfig, Warmup, decay_at, read_torch_ema


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Build a small network with parameters and buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def train(model: nn.Module, steps: int, ema: EMA | None = None, *, look: bool = False) -> None:
    """Train on fixed noise; update ``ema``, and ``look`` at the averaged network, every step."""
    generator = torch.Generator().manual_seed(7)
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        model(torch.randn(8, 3, generator=generator).to(dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(model)
            if look:
                with ema.applied(model), torch.no_grad():
                    model.eval()(torch.ones(2, 3, dtype=dtype))
                model.train()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the whole state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Tell whether two states agree bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    ("warmup", "update", "expected"),
    [
        ("diffusers", 1, 0.0),
        ("diffusers", 10, 0.5263),
        ("diffusers", 100, 0.9174),
        ("diffusers", 1000, 0.99108),
        ("diffusers", 89_990, 0.9999 - 1e-9),
        ("diffusers", 89_991, 0.9999),
        ("torch_ema", 1, 0.1818),
        ("torch_ema", 10, 0.55),
        ("torch_ema", 10**6, 0.9999),
        ("none", 1, 0.9999),
    ],
)
def test_decays_follow_the_published_laws(warmup: Warmup, update: int, expected: float) -> None:
    """Both warm-ups pass through their anchors and stop at the decay asked for."""
    assert decay_at(update, 0.9999, warmup) == pytest.approx(expected, abs=5e-5)


def test_the_diffusers_law_reaches_its_cap_at_89991() -> None:
    """The last update below the cap is the 89,990th."""
    assert decay_at(89_990, 0.9999, "diffusers") < 0.9999
    assert decay_at(89_991, 0.9999, "diffusers") == 0.9999


@settings(max_examples=20)
@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    warmup=st.sampled_from(["diffusers", "torch_ema", "none"]),
)
def test_every_decay_follows_the_recursion(values: list[float], warmup: Warmup) -> None:
    """Several averages at once each equal a <- d a + (1 - d) p, computed in float64."""
    decays = (0.0, 0.5, 0.99)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    ema = EMA(model, EMAConfig(decays=decays, warmup=warmup))
    expected = dict.fromkeys(decays, 2.0)
    for update, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        for decay in decays:
            d = decay_at(update, decay, warmup)
            expected[decay] = d * expected[decay] + (1 - d) * value

    for decay in decays:
        average = ema.averaged_state_dict(model, decay)["weight"].item()
        assert average == pytest.approx(expected[decay], abs=2e-5)


def test_the_average_changes_the_output() -> None:
    """Inside the context the network answers differently, as one with averaged weights does."""
    model, x = network(), torch.ones(2, 3)
    ema = EMA(model, EMAConfig(decays=(0.9, 0.5), warmup="none"))
    train(model, 5, ema)
    raw = model.eval()(x)
    averaged = network(seed=1).eval()
    load_strict(averaged, ema.averaged_state_dict(model), "the average")

    with ema.applied(model):
        first = model(x)
    with ema.applied(model, 0.5):
        second = model(x)

    assert torch.equal(first, averaged(x))
    assert not torch.allclose(first, raw, atol=1e-3)
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_at_the_average_never_changes_training(dtype: torch.dtype) -> None:
    """Training with an average swapped in every step equals training without any, bit for bit."""
    plain, watched = network(dtype=dtype), network(dtype=dtype)

    train(plain, 6)
    train(watched, 6, EMA(watched, EMAConfig(decays=(0.9,))), look=True)

    assert same(snapshot(plain), snapshot(watched))


def test_own_weights_come_back_after_an_exception() -> None:
    """A failing evaluation leaves the raw weights, in the same tensors, and training goes on."""
    model = network()
    ema = EMA(model, EMAConfig())
    train(model, 3, ema)
    before, places = snapshot(model), [value.data_ptr() for value in model.parameters()]

    def evaluate() -> None:
        with ema.applied(model):
            assert not same(before, snapshot(model))
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()

    assert same(before, snapshot(model))
    assert places == [value.data_ptr() for value in model.parameters()]
    ema.update(model)


def test_an_average_is_not_averaged_with_itself() -> None:
    """An update while an average is swapped in is refused, also between nested contexts."""
    model = network()
    ema = EMA(model, EMAConfig(decays=(0.9, 0.5)))

    with ema.applied(model):
        with ema.applied(model, 0.5):
            pass
        with pytest.raises(RuntimeError, match="leave the context"):
            ema.update(model)


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """Steps too small for bfloat16 still move the average, which is exact to float32."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, EMAConfig(decays=(0.999,), warmup="none"))
    nn.init.constant_(model.weight, 2.0)
    for _ in range(3):
        ema.update(model)

    average = ema.averaged_state_dict(model)["weight"]

    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(2 - 0.999**3, abs=1e-6)


def test_buffers_are_the_models_own() -> None:
    """Running statistics are neither averaged nor swapped."""
    model = network()
    ema = EMA(model, EMAConfig(decays=(0.5,)))
    train(model, 4, ema)
    own = model.state_dict()["1.running_mean"]

    with ema.applied(model):
        assert torch.equal(model.state_dict()["1.running_mean"], own)
    assert torch.equal(ema.averaged_state_dict(model)["1.running_mean"], own)


def test_shared_parameters_are_averaged_under_every_name() -> None:
    """Two layers with one weight have one average, under both names."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    ema = EMA(model, EMAConfig(decays=(0.5,), warmup="none"))
    nn.init.constant_(model[0].weight, 3.0)
    ema.update(model)

    averaged = ema.averaged_state_dict(model)

    assert torch.equal(averaged["0.weight"], averaged["1.weight"])
    assert not torch.equal(averaged["1.weight"], model[1].weight)


def test_resuming_equals_going_on(tmp_path: Path) -> None:
    """Saved as safetensors, loaded and updated, averages equal those never interrupted."""
    config = EMAConfig(decays=(0.9, 0.99), warmup="torch_ema")
    model = network()
    ema = EMA(model, config)
    train(model, 3, ema)
    save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    resumed = EMA(network(seed=5), config)
    resumed.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    train(model, 2)
    for each in (ema, resumed):
        each.update(model)

    assert resumed.updates == ema.updates == 4
    assert same(resumed.state_dict(), ema.state_dict())


def test_the_state_of_another_model_or_decay_is_refused() -> None:
    """The error names the first tensor that does not fit, and nothing is loaded."""
    ema = EMA(network(), EMAConfig())
    before = {name: value.clone() for name, value in ema.state_dict().items()}

    for other in (
        EMA(nn.Linear(3, 4), EMAConfig()),
        EMA(network(), EMAConfig(decays=(0.9,))),
        EMA(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), EMAConfig()),
    ):
        with pytest.raises(CheckpointError, match="differ in name or shape, first"):
            ema.load_state_dict(other.state_dict())

    assert same(before, ema.state_dict())


def test_a_wrapped_model_or_an_unknown_decay_is_refused() -> None:
    """Names with a wrapper's prefix are not the names that are averaged."""
    model = network()
    ema = EMA(model, EMAConfig())

    with pytest.raises(ValueError, match="without a wrapper"):
        ema.update(nn.Sequential(model))
    with (
        pytest.raises(ValueError, match=r"only \(0.9999,\) are followed"),
        ema.applied(model, 0.5),
    ):
        pass


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decays": ()}, "at least 1 item"),
        ({"decays": (1.0,)}, "less than 1"),
        ({"decays": (0.9, 0.9)}, "each once"),
        ({"warmup": "linear"}, "'linear'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    """The error names the field, its value and the choices."""
    with pytest.raises(ValueError, match=said):
        EMAConfig(**fields)  # type: ignore[arg-type]  # wrong on purpose


def lightning_file(path: Path, averages: list[Tensor], model: nn.Module) -> Path:
    """Write a checkpoint as Lightning and torch_ema lay it out."""
    shadow = {"decay": 0.9999, "num_updates": 9, "shadow_params": averages}
    raw = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": raw | {"mmse_model.x": torch.ones(1)}, "ema": shadow}, path)
    return path


def test_nameless_averages_get_their_names(tmp_path: Path) -> None:
    """torch_ema's list, in parameter order, becomes a state dict with the raw model's buffers."""
    model, averaged = network(), network(seed=1)
    train(model, 2)
    path = lightning_file(tmp_path / "pmrf.ckpt", list(averaged.parameters()), model)

    state = read_torch_ema(path, model, prefix="model.")

    load_strict(network(), state, path)
    assert torch.equal(state["2.weight"], averaged[2].weight)
    assert torch.equal(state["1.running_mean"], model.state_dict()["1.running_mean"])


def test_averages_of_another_model_are_refused(tmp_path: Path) -> None:
    """A list of other shapes, or no list, is no average of this model."""
    model = network()
    path = lightning_file(tmp_path / "pmrf.ckpt", [torch.ones(2)], model)

    with pytest.raises(CheckpointError, match="1 averages, of other shapes than the 6 parameters"):
        read_torch_ema(path, model, prefix="model.")
    with pytest.raises(CheckpointError, match="no `shadow_params` under 'average'"):
        read_torch_ema(path, model, key="average", prefix="model.")
