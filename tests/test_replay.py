"""A sampler whose evaluations are replayed from buffers gives what it gives without them."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.replay import Compute, Replayed
from models.restorer import RestorationRule, Restorer, Solver
from models.velocity.looformer import PRESETS, LooUFormer
from tests.support.tiny_bundle import seeded

SIDE = 8


class Recorder:
    """Records as a CUDA graph does: the computation is fixed, and its result is in one place.

    Here every replay calls the network again, on the buffers as they are then.
    """

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, compute: Compute) -> Compute:
        """Do the computation, and return what repeats it into the same memory."""
        self.recorded += 1
        result = compute().clone()

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(compute())

        return replay


@pytest.fixture(scope="module", params=[0, 4], ids=["unconditional", "conditional"])
def network(request: pytest.FixtureRequest) -> LooUFormer:
    """Build a tiny velocity network with weights of its own."""
    config = replace(PRESETS["tiny"], condition_channels=request.param)
    built: LooUFormer = seeded(lambda: LooUFormer(config), 7)
    return built


def points(count: int, seed: int = 0, channels: int = 4) -> Tensor:
    """Draw points of a flow."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, SIDE, SIDE, generator=generator)


def condition_of(network: LooUFormer, count: int, seed: int = 9) -> Tensor | None:
    """Draw the condition of a network that takes one."""
    return points(count, seed) if network.config.condition_channels else None


def autocast(*, enabled: bool) -> Any:
    """Return the context of bfloat16 on CPUs."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_replayed_and_eager_samplers_agree_to_the_bit(
    network: LooUFormer, solver: Solver, half: bool
) -> None:
    """Whatever the solver, the precision and the condition; and x_t stays float32."""
    chain, recorder = Restorer(RestorationRule(space="pixel")), Recorder()
    replayed, condition = Replayed(network, recorder), condition_of(network, 2)
    with autocast(enabled=half):
        eager = chain.solve(network, points(2), condition, 3, solver)
        found = chain.solve(replayed, points(2), condition, 3, solver)

    assert torch.equal(found, eager)
    assert found.dtype == torch.float32
    assert (recorder.recorded, recorder.replayed) == (1, 3 if solver == "euler" else 6)


@torch.no_grad()
def test_a_result_is_its_callers_own(network: LooUFormer) -> None:
    """A later evaluation does not change it, nor does a change of it the next evaluation."""
    replayed, t = Replayed(network, Recorder()), torch.full((2,), 0.3)
    condition = condition_of(network, 2)
    first = replayed(points(2), t, condition)
    kept = first.clone()
    second = replayed(points(2, seed=1), t + 0.4, condition)

    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    first.zero_()
    assert torch.equal(replayed(points(2), t, condition), kept)


@torch.no_grad()
def test_inputs_are_left_alone_and_read_at_each_call(network: LooUFormer) -> None:
    """Time and condition are values in buffers, which another call replaces."""
    replayed, x_t = Replayed(network, Recorder()), points(2)
    for seed, time in ((3, 0.0), (4, 0.5), (3, 0.96)):
        t, condition = torch.full((2,), time), condition_of(network, 2, seed)
        assert torch.equal(replayed(x_t, t, condition), network(x_t, t, condition))
    assert torch.equal(x_t, points(2))


def sizes_recorded(network: LooUFormer, sizes: list[int], most: int, *, half: bool = False) -> int:
    """Evaluate batches of these sizes, compare each with the network, and count recordings."""
    recorder = Recorder()
    replayed = Replayed(network, recorder, most=most)
    for count in sizes:
        given = points(count), torch.rand(count), condition_of(network, count)
        for enabled in {False, half}:
            with torch.no_grad(), autocast(enabled=enabled):
                assert torch.equal(replayed(*given), network(*given))
    return recorder.recorded


@pytest.mark.parametrize(
    ("sizes", "most", "recorded"),
    [
        ([2, 1, 2, 1], 2, 2),  # each is known again
        ([1, 2, 1, 3, 1], 2, 3),  # the one that was not used for longest goes: 2
        ([1, 2, 3, 1], 2, 4),
    ],
)
def test_each_size_is_recorded_once_and_few_are_kept(
    network: LooUFormer, sizes: list[int], most: int, recorded: int
) -> None:
    """However often sizes take turns; and what is dropped is recorded anew when it comes again."""
    assert sizes_recorded(network, sizes, most) == recorded


def test_under_autocast_is_another_recording(network: LooUFormer) -> None:
    """One that was made in float32 is not replayed in bfloat16."""
    assert sizes_recorded(network, [2, 2], 4, half=True) == 2


@torch.no_grad()
def test_a_dropped_recording_leaves_no_memory(network: LooUFormer) -> None:
    """Its buffers are gone as soon as another takes its place."""
    kept: list[weakref.ref[Tensor]] = []

    def record(compute: Compute) -> Compute:
        result = compute().clone()
        kept.append(weakref.ref(result))
        return lambda: result.copy_(compute())

    replayed = Replayed(network, record, most=1)
    for count in (1, 2):
        replayed(points(count), torch.zeros(count), condition_of(network, count))

    assert [one() is None for one in kept] == [True, False]
