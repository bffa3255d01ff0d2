"""Configurations, draws and records of the degradation: ranges, independence, refusals."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.degradation.parameters import (
    PRESETS,
    DegradationConfig,
    DegradationParameters,
    degradation_preset,
)
from datasets.degradation.reference import draw_parameters
from infra.config import canonical_json, from_dict, to_dict
from infra.errors import UsageError

presets = st.sampled_from(sorted(PRESETS))
seeds = st.integers(0, 2**31 - 1)
keys = st.text(st.characters(codec="utf-8"), max_size=12)
draws = st.integers(0, 400)


def parameters(**changes: Any) -> DegradationParameters:
    """Return mild parameters, changed as said."""
    mild = DegradationParameters(
        flip=False,
        blur_sigma=(2.0, 1.0),
        blur_angle=0.5,
        kernel_size=41,
        downscale=2.0,
        noise_sigma=3.0,
        noise_seed=7,
        jpeg_quality=80,
    )
    return replace(mild, **changes)


def through_json(record: DegradationParameters) -> DegradationParameters:
    """Write a record and read it again."""
    return from_dict(DegradationParameters, json.loads(canonical_json(to_dict(record))))


def within(value: float, values: tuple[float, ...], among: bool) -> bool:
    """Whether a value could have been drawn."""
    return value in values if among else values[0] <= value <= values[1]


@given(presets, seeds, keys, draws)
@settings(max_examples=60)
def test_draws_stay_in_the_ranges(preset: str, seed: int, key: str, draw: int) -> None:
    """Every parameter lies where the preset allows, integers where they are due."""
    config = PRESETS[preset]
    record = draw_parameters(config, seed=seed, key=key, draw=draw)

    assert all(within(sigma, config.blur_sigma, config.among) for sigma in record.blur_sigma)
    assert record.isotropic or within(record.blur_angle, config.blur_angle, config.among)
    assert within(record.downscale, config.downscale, config.among)
    assert within(record.noise_sigma, config.noise_sigma, config.among)
    assert within(record.jpeg_quality, config.jpeg_quality, config.among)
    assert isinstance(record.jpeg_quality, int)
    assert 0 <= record.noise_seed < 2**53
    assert record.shift is None or max(map(abs, record.shift)) <= 20


def test_draws_fill_the_ranges_evenly_and_independently() -> None:
    """Over 1,500 keys: uniform marginals, half isotropic, half flipped, nothing correlated."""
    records = [draw_parameters(PRESETS["pmrf"], seed=1, key=str(key)) for key in range(1500)]
    columns = np.array(
        [
            [
                r.blur_sigma[0] / 15,
                (r.downscale - 0.8) / 31.2,
                r.noise_sigma / 20,
                (r.jpeg_quality + 0.5 - 30) / 70,
                r.noise_seed / 2**53,
                r.flip,
                r.isotropic,
            ]
            for r in records
        ]
    )
    quartiles = np.quantile(columns[:, :5], [0.25, 0.5, 0.75], axis=0)

    assert abs(quartiles - [[0.25], [0.5], [0.75]]).max() < 0.04
    assert abs(columns[:, 5:].mean(axis=0) - 0.5).max() < 0.04
    assert abs(np.corrcoef(columns.T) - np.eye(7)).max() < 0.09
    assert {min(r.jpeg_quality for r in records), max(r.jpeg_quality for r in records)} == {30, 99}
    assert 3 <= sum(r.gray for r in records) <= 30
    assert all(r.gray == r.gray_target for r in records)
    assert len({r.noise_seed for r in records}) == 1500


def test_seed_key_and_draw_each_change_the_draw() -> None:
    """No two of four draws share a noise field."""
    config = PRESETS["pmrf"]
    records = [
        draw_parameters(config, seed=0, key="a", draw=0),
        draw_parameters(config, seed=1, key="a", draw=0),
        draw_parameters(config, seed=0, key="b", draw=0),
        draw_parameters(config, seed=0, key="a", draw=1),
    ]

    assert len({record.noise_seed for record in records}) == 4


@given(seeds)
@settings(max_examples=20)
def test_switching_a_step_leaves_the_others_alone(seed: int) -> None:
    """Whoever flips and grays by himself gets the same blur, noise and JPEG."""
    config = replace(PRESETS["pmrf"], flip_probability=1.0, gray_probability=1.0)
    off = replace(config, flip_probability=0.0, gray_probability=0.0)

    drawn = draw_parameters(config, seed=seed, key="a")

    assert drawn.flip
    assert drawn.gray_target
    assert draw_parameters(off, seed=seed, key="a") == replace(
        drawn, flip=False, gray=False, gray_target=False
    )


def test_an_incomplete_record_is_refused() -> None:
    """No parameter of the degradation has a silent default."""
    record = to_dict(parameters())
    del record["noise_seed"]

    with pytest.raises(UsageError, match="noise_seed"):
        from_dict(DegradationParameters, record)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"downscale": 0.0}, "downscale 0.0: should be greater than or equal to 0.1"),
        ({"downscale": math.nan}, "downscale nan"),
        ({"blur_sigma": [1.0]}, "blur_sigma.1 is missing"),
        ({"blur_sigma": [1.0, 0.0]}, "blur_sigma.1 0.0"),
        ({"noise_sigma": "5"}, "noise_sigma '5': should be a valid number"),
        ({"noise_seed": -1}, "noise_seed -1"),
        ({"noise_seed": 1.5}, "noise_seed 1.5: should be a valid integer"),
        ({"jpeg_quality": 0}, "jpeg_quality 0: should be greater than or equal to 1"),
        ({"jpeg_quality": 55.5}, "jpeg_quality 55.5: should be a valid integer"),
        ({"kernel_size": 40}, "kernel_size 40: expected an odd number"),
        ({"gray_target": True}, "gray_target without gray"),
        ({"shift": [1.0, 2.0]}, "shift.2 is missing"),
        ({"sharpness": 1}, "unknown keys: sharpness; valid: flip, blur_sigma"),
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, Any], says: str) -> None:
    """A record edited by hand or of another format fails when it is read, by name."""
    with pytest.raises(UsageError, match=says):
        from_dict(DegradationParameters, {**to_dict(parameters()), **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"downscale": (8.0, 4.0)}, "two ends in rising order"),
        ({"downscale": (4.0, 8.0, 16.0)}, "set among"),
        (
            {"noise_sigma": (0.0, 300.0)},
            r"noise_sigma\.1\s+Input should be less than or equal to 255",
        ),
        ({"jpeg_quality": (0.0, 50.0)}, r"jpeg_quality\.0\s+Input should be greater"),
        ({"flip_probability": 1.5}, r"flip_probability\s+Input should be less than or equal to 1"),
        ({"kernel_size": 0}, r"kernel_size\s+Input should be greater than 0"),
        ({"among": True, "downscale": ()}, "downscale is empty"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict[str, Any], says: str) -> None:
    """The message names the field, its value and what is allowed."""
    with pytest.raises(ValueError, match=says):
        DegradationConfig(**changes)


def test_an_unknown_preset_is_refused() -> None:
    """The message lists those that exist."""
    with pytest.raises(ValueError, match="'codeformer'; choose one of pmrf, pmrf-128, gfpgan"):
        degradation_preset("codeformer")


def test_the_preset_of_128_pixels_is_the_published_one_seen_from_afar() -> None:
    """Lengths in pixels are a quarter of those at 512; the rest is as it was."""
    far, near = PRESETS["pmrf-128"], PRESETS["pmrf"]
    blur = (near.blur_sigma[0], near.blur_sigma[1] / 4)
    downscale = (near.downscale[0], near.downscale[1] / 4)

    assert far == replace(near, kernel_size=11, blur_sigma=blur, downscale=downscale)
    assert far.kernel_size // 2 == near.kernel_size // 2 // 4


def test_presets_are_the_published_ranges() -> None:
    """Blur, downscale, noise, quality of DifFace = PMRF and of GFPGAN v1."""
    names = ("blur_sigma", "downscale", "noise_sigma", "jpeg_quality")
    ranges = {name: [getattr(PRESETS[name], n) for n in names] for name in PRESETS}

    assert ranges["pmrf"] == [(0.1, 15), (0.8, 32), (0, 20), (30, 100)]
    assert ranges["gfpgan-v1"] == [(0.1, 10), (0.8, 8), (0, 20), (60, 100)]
    assert degradation_preset("gfpgan-v1").shift_probability == 0.3
    assert degradation_preset("gfpgan-v1").jitter_probability == 0.3
    assert math.prod(map(len, ranges["difface-test"])) * 4 == 4000  # four angles


def test_severity_names_the_four_numbers() -> None:
    """Metrics can be sliced by blur (root mean square), downscale, noise and quality."""
    severity = parameters(blur_sigma=(3.0, 4.0)).severity

    assert severity.keys() == {"blur_sigma", "downscale", "noise_sigma", "jpeg_quality"}
    assert severity["blur_sigma"] == pytest.approx(math.sqrt(12.5))
