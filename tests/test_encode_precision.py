"""Latents of low precision say what they were computed in, and what that cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.bundle_facts import BundleConfig
from models.restorer import RestorationRule
from pipelines.encode.job import Encoding
from pipelines.encode.networks import Encoder
from pipelines.encode.reuse import reusable
from tests.support.encoding_jobs import job, manifest_of, run, write_images, write_networks
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_latents import restoration_rule

LOW: dict[str, Any] = {"precision": "bfloat16", "predictor_precision": "bfloat16"}
BY_PRECISION = (
    "rmse_posterior_mean_by_precision",
    "target_error_by_precision",
    "source_error_by_precision",
)
DIGEST = "abab0a0ef6e9390eb939518d360549275ab084cc4bff68d8d512b8d485bb246f"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write small networks and images, and encode two of them in float32."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder, 3)
    run(folder, folder / "exact", limit=2)
    return folder


def encoder(world: Path, **fields: Any) -> Encoder:
    """Load the networks."""
    return Encoder(job(world, world / "no", **fields).rule)


def lq(count: int = 2) -> torch.Tensor:
    """Draw images in [0, 1]."""
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_set_of_low_precision_says_what_it_is_and_what_that_cost(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its identity, its manifest, its page and the last lines; one in float32 says nothing."""
    run(world, tmp_path / "low", limit=2, **LOW)
    said = capsys.readouterr().out
    low, exact = manifest_of(tmp_path / "low"), manifest_of(world / "exact")

    assert low["identity"].items() >= LOW.items()
    assert "predictor_precision" not in exact["identity"]
    assert not set(BY_PRECISION) & exact["distortion"].keys()
    assert all(0 < low["distortion"][name] < 1 for name in BY_PRECISION)
    assert low["distortion"]["source_error_by_precision"] < 0.1
    line = "VAE in bfloat16, predictor in bfloat16, against float32: x̂ differs by"
    assert line in said
    assert line in (tmp_path / "low" / "report.html").read_text()


def test_float32_is_the_same_networks_exactly(world: Path) -> None:
    """To the bit what an encoder in float32 makes; and afterwards the precision is what it was."""
    low, exact = encoder(world, **LOW), encoder(world).restorer
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with low.in_float32() as restorer:
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.equal(restorer.posterior_mean(lq()), exact.posterior_mean(lq()))
            assert torch.equal(restorer.posterior(lq()).mean, exact.posterior(lq()).mean)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert not torch.equal(low.restorer.posterior_mean(lq()), exact.posterior_mean(lq()))


@pytest.mark.parametrize("name", LOW)
def test_each_network_has_its_own_precision(world: Path, name: str) -> None:
    """One in bfloat16 leaves the other as it is, and all give float32."""
    low, exact = encoder(world, **{name: "bfloat16"}).restorer, encoder(world).restorer
    means, latents = (
        [call(one) for one in (low, exact)]
        for call in (lambda r: r.posterior_mean(lq()), lambda r: r.posterior(lq()).mean)
    )

    assert torch.equal(*means) == (name == "precision")
    assert torch.equal(*latents) == (name != "precision")
    assert {one.dtype for one in (*means, *latents)} == {torch.float32}


def test_another_precision_of_the_predictor_leaves_the_targets(world: Path) -> None:
    """They are copied, and the sources, which it makes, are computed."""
    encoding = Encoding(job(world, world / "no", limit=2, predictor_precision="bfloat16"))
    latent = encoding.latent_format({})
    folder = world / "exact"
    found, said = reusable(folder, manifest_of(folder), encoding.identity, latent)

    assert found is not None
    assert not found.sources
    assert "not sources (predictor_precision: None -> 'bfloat16')" in said


def test_a_flow_takes_over_what_its_latents_were_computed_in(world: Path) -> None:
    """So that pictures in validation, and later restored ones, are encoded as those were."""
    identity = Encoding(job(world, world / "no", **LOW)).identity
    rules = [restoration_rule(FlowConfig(), made) for made in (identity, {})]

    assert [(rule.precision, rule.predictor_precision) for rule in rules] == [
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
    ]


def test_bundles_in_float32_keep_their_digests() -> None:
    """Those that were written before there was a precision of the predictor are read as before."""
    old = BundleConfig(rule=RestorationRule(), size=512)
    low = BundleConfig(rule=RestorationRule(predictor_precision="bfloat16"), size=512)

    assert old.digest == DIGEST != low.digest
    assert "predictor_precision" not in old.to_json()
    assert '"predictor_precision": "bfloat16"' in low.to_json()
