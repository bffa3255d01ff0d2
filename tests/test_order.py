"""The order of samples: exact epochs, equal shares, and the same rest on any other layout."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.reading.order import Layout, Order, WeightedSet, keyed_integers, scattered, sweep
from infra.errors import UsageError

GOLDEN = [6, 5, 0, 3, 4, 2, 7, 1, 9, 8, 8, 3, 0, 9, 4, 6, 2, 1, 5, 7]
quick = settings(max_examples=60)
Sample = tuple[int, int, int]  # part, index, visit

parts = st.lists(
    st.builds(
        WeightedSet,
        size=st.integers(1, 60),
        weight=st.sampled_from([1.0, 2.0, 0.5, 0.3, 2.5]),
    ),
    min_size=1,
    max_size=3,
)


def make(*sizes: int, seed: int = 0, digest: str = "d") -> Order:
    """Mix sets of these sizes, each once."""
    return Order([WeightedSet(size=size) for size in sizes], digest=digest, seed=seed)


def at(order: Order, start: int, stop: int) -> list[Sample]:
    """List what stands from ``start`` to ``stop``."""
    draw = order.at(np.arange(start, stop))
    return list(zip(draw.set_index.tolist(), draw.index.tolist(), draw.visit.tolist(), strict=True))


def consumed(order: Order, position: int, ranks: int, micro_batch: int, steps: int) -> list[Sample]:
    """Collect what all ranks load in some steps, rank by rank."""
    found: list[Sample] = []
    for rank in range(ranks):
        layout = Layout(ranks=ranks, rank=rank, micro_batch=micro_batch)
        for step in range(steps):
            draw = order.at(layout.share(position + step * layout.stride))
            assert len(draw.index) == micro_batch  # every rank, every step, a full batch
            found += zip(
                draw.set_index.tolist(), draw.index.tolist(), draw.visit.tolist(), strict=True
            )
    return found


@quick
@given(size=st.integers(1, 300), epoch=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_an_epoch_holds_every_sample_once(size: int, epoch: int, seed: int) -> None:
    """Without weights, each epoch is a permutation, and the visit is the epoch."""
    found = at(make(size, seed=seed), epoch * size, (epoch + 1) * size)

    assert sorted(found) == [(0, index, epoch) for index in range(size)]


@quick
@given(parts=parts, epochs=st.integers(1, 7))
def test_weights_are_kept_exactly(parts: list[WeightedSet], epochs: int) -> None:
    """Every epoch takes the same number of each part, and no sample is ahead of another by two."""
    order = Order(parts, digest="d", seed=1)
    found = at(order, 0, epochs * order.epoch)

    for number, part in enumerate(parts):
        counts = Counter(index for p, index, _ in found if p == number)
        visits = [counts[index] for index in range(part.size)]
        assert sum(visits) == epochs * part.taken
        assert max(visits) - min(visits) <= 1
        for epoch in range(epochs):
            taken = found[epoch * order.epoch : (epoch + 1) * order.epoch]
            assert sum(p == number for p, _, _ in taken) == part.taken


@quick
@given(parts=parts, epochs=st.integers(1, 5))
def test_a_visit_of_a_sample_comes_once(parts: list[WeightedSet], epochs: int) -> None:
    """(part, index, visit), which seeds crops and draws, never recurs and leaves out no visit."""
    order = Order(parts, digest="d", seed=2)
    found = at(order, 0, epochs * order.epoch)

    assert len(set(found)) == len(found)
    for (number, index), count in Counter(sample[:2] for sample in found).items():
        assert {v for p, i, v in found if (p, i) == (number, index)} == set(range(count))


@quick
@given(
    parts=parts,
    layouts=st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(0, 6)), max_size=5
    ),
)
def test_any_sequence_of_layouts_continues_exactly(
    parts: list[WeightedSet], layouts: list[tuple[int, int, int]]
) -> None:
    """Stopped and resumed on other ranks and batch sizes, all take the one sequence, none twice."""
    order = Order(parts, digest="d", seed=3)
    position, found = 0, []
    for ranks, micro_batch, steps in layouts:
        resumed = Order(parts, digest="d", seed=3)
        start = resumed.position(order.state(position))
        assert start == position
        found += consumed(resumed, start, ranks, micro_batch, steps)
        position += steps * ranks * micro_batch

    assert sorted(found) == sorted(at(order, 0, position))


def test_a_step_does_not_depend_on_how_it_is_shared() -> None:
    """Four ranks of 2, in their order, hold what one rank of 8 holds: gradients can be compared."""
    order = make(100)
    shared = [Layout(ranks=4, rank=rank, micro_batch=2).share(40) for rank in range(4)]

    assert np.concatenate(shared).tolist() == Layout(micro_batch=8).share(40).tolist()
    assert order.at(np.concatenate(shared)).index.tolist() == [i for _, i, _ in at(order, 40, 48)]


def test_the_order_is_this_one() -> None:
    """The sequence is a promise to checkpoints: neither a release nor a machine changes it."""
    assert [index for _, index, _ in at(make(10), 0, 20)] == GOLDEN


def test_seed_data_and_epoch_each_change_the_order() -> None:
    """The shuffle is a function of (digest, seed, epoch) and uses all three."""
    orders = [
        at(make(50), 0, 50),
        at(make(50, seed=1), 0, 50),
        at(make(50, digest="e"), 0, 50),
        [(part, index, 0) for part, index, _ in at(make(50), 50, 100)],
    ]

    assert len({tuple(order) for order in orders}) == 4


def test_small_orders_are_uniform() -> None:
    """Each of the 24 orders of four samples is as likely: chi-square over 4800 epochs."""
    order = make(4)
    indices = order.at(np.arange(4 * 4800)).index.reshape(-1, 4)
    counts = Counter(map(tuple, indices.tolist()))
    chi_square = sum((counts[p] - 200) ** 2 / 200 for p in permutations(range(4)))

    assert chi_square < 49.7  # 0.1 % of uniform samples are above, with 23 degrees of freedom


def test_neighbours_are_torn_apart() -> None:
    """In a large epoch, places are uncorrelated with numbers and with the next epoch's places."""
    order = make(20_000)
    first, second = order.at(np.arange(40_000)).index.reshape(2, -1)

    assert abs(np.corrcoef(np.arange(20_000), first)[0, 1]) < 0.03
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.03
    assert np.mean(np.abs(np.diff(first)) == 1) < 5e-4


def test_a_mixture_is_mixed() -> None:
    """Sets of a mixture do not come one after the other: every tenth of an epoch has its share."""
    order = Order([WeightedSet(size=900), WeightedSet(size=100, weight=3.0)], digest="d", seed=0)
    shares = order.at(np.arange(order.epoch)).set_index.reshape(10, -1).mean(axis=1)

    assert order.epoch == 1200
    assert 0.13 < shares.min() < shares.max() < 0.37


def test_a_fraction_meets_other_samples_each_epoch() -> None:
    """At weight 0.5 two epochs share nothing, and which sample comes first varies by pass."""
    order = Order([WeightedSet(size=100, weight=0.5)], digest="d", seed=0)
    halves = [frozenset(order.at(np.arange(50) + 50 * e).index.tolist()) for e in range(4)]

    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(100))
    assert halves[0] != halves[2]


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 1}, "seed"), ({"digest": "other"}, "digest"), ({"size": 11}, "digest")],
)
def test_a_position_in_another_order_is_refused(change: dict[str, object], name: str) -> None:
    """Other data, weights or seed would repeat and lose samples; the difference is named."""
    state = make(10).state(7)
    given_: dict[str, object] = {"size": 10, "seed": 0, "digest": "d", **change}
    other = make(given_["size"], seed=given_["seed"], digest=given_["digest"])  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=name):
        other.position(state)


def test_a_state_is_a_few_numbers() -> None:
    """It fits a checkpoint's JSON whatever the data's size."""
    state = make(70_000).state(70_000 * 3 + 17)

    assert {name: state[name] for name in ("seed", "epoch", "offset")} == {
        "seed": 0,
        "epoch": 3,
        "offset": 17,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranks": 2, "rank": 2}, "rank 2 of 2"),
        ({"ranks": 0, "rank": 0}, "rank 0 of 0"),
        ({"micro_batch": 0}, "micro batch of 0"),
    ],
)
def test_impossible_layouts_are_refused(values: dict[str, int], message: str) -> None:
    """The message has the numbers."""
    with pytest.raises(UsageError, match=message):
        Layout(**values)


def test_a_step_beyond_the_epoch_is_refused() -> None:
    """Else one image would stand twice in a step of a set that holds it once."""
    with pytest.raises(UsageError, match=r"16 ranks x 8 samples = 128 .* only 100"):
        make(100).check(Layout(ranks=16, micro_batch=8))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight: float) -> None:
    """Nothing, less than nothing, and no number at all."""
    with pytest.raises(UsageError, match="weight"):
        WeightedSet(size=3, weight=weight)


@quick
@given(size=st.integers(1, 200), ranks=st.integers(1, 9), micro_batch=st.integers(1, 16))
def test_a_sweep_counts_every_sample_once(size: int, ranks: int, micro_batch: int) -> None:
    """Validation on any layout sees all samples, in equally many equal batches on every rank."""
    counted, batches = [], []
    for rank in range(ranks):
        shares = list(sweep(size, Layout(ranks=ranks, rank=rank, micro_batch=micro_batch)))
        batches.append(len(shares))
        for draw, count in shares:
            assert len(draw.index) == micro_batch
            assert not draw.visit.any()
            counted += draw.index[:count].tolist()

    assert sorted(counted) == list(range(size))
    assert len(set(batches)) == 1


@quick
@given(seed=st.integers(-(2**63), 2**64), count=st.integers(1, 40), start=st.integers(0, 1000))
def test_visits_go_round_all_choices(seed: int, count: int, start: int) -> None:
    """Any K visits in a row meet each of K choices once."""
    visits = np.arange(start, start + count)
    chosen = scattered(seed, np.full(count, 5), visits) % count

    assert sorted(chosen.tolist()) == list(range(count))


def test_samples_start_their_choices_apart() -> None:
    """In one epoch the choices are spread evenly over the samples."""
    chosen = scattered(0, np.arange(8000), np.zeros(8000, np.int64)) % 8
    counts = np.bincount(chosen, minlength=8)

    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # 0.1 %, 7 degrees of freedom


def test_keyed_integers_are_uniform_and_keyed() -> None:
    """Each argument matters, and every value below the range is as likely."""
    assert keyed_integers(0, "a", 0, 100, 100) == keyed_integers(0, "a", 0, 100, 100)
    assert (
        len({tuple(keyed_integers(s, k, v, 10**9)) for s in (0, 1) for k in "ab" for v in (0, 1)})
        == 8
    )
    counts = np.bincount([keyed_integers(0, "a", v, 5)[0] for v in range(5000)], minlength=5)

    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # 0.1 %, 4 degrees of freedom
