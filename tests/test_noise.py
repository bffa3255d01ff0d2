"""Random numbers by key: equal for equal keys, and for no others."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.noise import Key, NamedNoise, Purpose, fill_normal, keyed_generator
from trainers.loop.noise import Noise

CPU = torch.device("cpu")
SHAPE = (2, 3)
keys = st.tuples(st.integers(0, 2**70), st.integers(0, 2**33), st.integers(0, 3), st.text())


def numbers(key: Key) -> torch.Tensor:
    """Draw six numbers by a key."""
    drawn = torch.empty(SHAPE)
    fill_normal(drawn, key)
    return drawn


def of_step(seed: int = 0, step: int = 0, position: int = 0) -> Noise:
    """Return the noise of one sample of a step."""
    return Noise(seed=seed, step=step, positions=[position], total=1, device=CPU)


@settings()
@given(keys, keys)
def test_equal_keys_and_no_others_give_equal_numbers(one: Key, other: Key) -> None:
    """Of integers of any size, and of text."""
    assert torch.equal(numbers(one), numbers(one))
    assert torch.equal(numbers(one), numbers(other)) == (one == other)


def test_hashes_that_agree_in_32_bits_give_different_numbers() -> None:
    """A generator that kept the low 32 bits of a 64-bit seed would make these two one."""
    by_end: dict[bytes, Key] = {}
    for position in range(1_000_000):  # about 77,000 are enough
        key: Key = (0, 0, 1, position)
        end = hashlib.sha256(json.dumps(key).encode()).digest()[4:8]
        if end in by_end:
            break
        by_end[end] = key
    other = by_end[end]

    assert key != other
    assert not torch.equal(numbers(key), numbers(other))


@pytest.mark.parametrize("word", [2**32, 2**64])
def test_a_large_seed_is_not_another_step(word: int) -> None:
    """Nor a small seed: every bit of it counts."""
    mine = of_step(seed=word).normal(SHAPE, Purpose.SOURCE_NOISE)
    for other in (of_step(), of_step(step=1), of_step(seed=1), of_step(position=1)):
        assert not torch.equal(mine, other.normal(SHAPE, Purpose.SOURCE_NOISE))
    times = Noise(seed=word, step=0, positions=range(4), total=4, device=CPU).times()
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        other = Noise(seed=seed, step=step, positions=range(4), total=4, device=CPU)
        assert not torch.equal(times, other.times())


def test_purposes_and_names_have_numbers_of_their_own() -> None:
    """A sample's numbers are its own whatever else is in its batch."""
    noise = NamedNoise(0, ["a", "b"])
    drawn = noise.normal(SHAPE, Purpose.SOURCE_POSTERIOR)

    assert torch.equal(drawn[1:], NamedNoise(0, ["b"]).normal(SHAPE, Purpose.SOURCE_POSTERIOR))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, noise.normal(SHAPE, Purpose.SOURCE_NOISE))
    assert not torch.equal(drawn, NamedNoise(1, ["a", "b"]).normal(SHAPE, Purpose.SOURCE_POSTERIOR))


def test_numbers_are_standard_normal() -> None:
    """Mean 0, variance 1 and no excess, within 5 standard errors; float32."""
    count = 200_000
    drawn = torch.empty(count)
    fill_normal(drawn, (0, "a"))
    values = drawn.double()

    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / count) ** 0.5


def test_no_global_generator_is_touched() -> None:
    """Neither PyTorch's nor NumPy's."""
    before, theirs = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    numbers((0, 1))
    keyed_generator((0, 1)).random(3)

    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(theirs, np.random.get_state()[1])  # noqa: NPY002
