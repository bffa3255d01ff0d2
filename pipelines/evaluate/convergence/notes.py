"""What else bears on a comparison of runs, in sentences: batches, machines, settings, gaps."""

from collections.abc import Iterator, Sequence

from models.metrics.catalog import METRICS
from pipelines.evaluate.convergence.comparable import partly_recorded
from pipelines.evaluate.convergence.curves import COSTS, FORK, unknown_costs
from pipelines.evaluate.convergence.outcome import Member, Outcome
from pipelines.evaluate.convergence.records import RunRecord

BATCH = "engine.global_batch_size"
SEED = "loop.seed"
NO_SETTINGS = (
    "loop.",
    "validation.",
    "encoding_flops",
)  # begin what is shown elsewhere, or nowhere
OF_THE_LOOP = (SEED, "loop.max_steps")  # what else the loop is told changes no curve
MACHINE = ("ranks", "device", "host")  # tags
NOT_RECORDED = "not recorded"


def notes(outcome: Outcome) -> list[str]:
    """Return everything that a reader has to know of the runs."""
    records = outcome.records
    return [
        *_of_batches(records),
        *_of_machines(records),
        *(note for group in outcome.groups for note in _of_seeds(group.name, group.records)),
        *(note for record in records for note in _of_run(record)),
        *(note for group in outcome.groups for one in group.members for note in _of_gaps(one)),
        *(note for metric in outcome.metrics for note in _of_falling(outcome, metric)),
        *_of_version(records),
    ]


def differing(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the settings in which runs differ, with the value of each run."""
    names = dict.fromkeys(name for one in records for name in one.params)
    values = {
        name: [one.params.get(name, NOT_RECORDED) for one in records]
        for name in names
        if name in OF_THE_LOOP or not name.startswith(NO_SETTINGS)
    }
    return {name: some for name, some in values.items() if len(set(some)) > 1}


def machine(record: RunRecord) -> str:
    """Say where a run began, such as "8 x NVIDIA H200, node7"."""
    ranks, device, host = (record.tags.get(name, NOT_RECORDED) for name in MACHINE)
    return f"{ranks} x {device}, {host}" if "device" in record.tags else host


def _of_batches(records: Sequence[RunRecord]) -> Iterator[str]:
    batches = {one.source: one.params.get(BATCH, "an unknown number of") for one in records}
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{size} samples in {source}" for source, size in batches.items())
        yield f"Steps are of different batches ({sizes}): compare FLOPs rather than steps."


def _of_machines(records: Sequence[RunRecord]) -> Iterator[str]:
    machines = {one.source: machine(one) for one in records}
    if len(set(machines.values())) > 1:
        places = "; ".join(f"{source}: {place}" for source, place in machines.items())
        yield f"Hours are of different machines ({places})."
    for record in records:
        moved = [f"{name} {record.changed[name]}" for name in MACHINE if name in record.changed]
        if moved:
            yield f"{record.source} was resumed on another machine: {', '.join(moved)}."


def _of_seeds(group: str, records: Sequence[RunRecord]) -> Iterator[str]:
    settings = differing(records).keys() - {SEED}
    if settings:
        yield f"The runs of {group} differ in more than their seed: {', '.join(sorted(settings))}."


def _of_run(record: RunRecord) -> Iterator[str]:
    if FORK in record.tags:
        yield f"{record.source} is a fork of the run {record.tags[FORK]}."
    if begun := record.tags.get("init.from"):
        yield f"{record.source} did not begin with random weights, but with those of {begun}."
    for cost, why in unknown_costs(record).items():
        yield f"{record.source}: {COSTS[cost]} are unknown: {why}."


def _of_gaps(member: Member) -> Iterator[str]:
    for metric, one in member.curves.items():
        if one.undefined:
            yield (
                f"{member.record.source}: {one.undefined} of its validations have no finite "
                f"{metric} and are left out."
            )


def _of_falling(outcome: Outcome, metric: str) -> Iterator[str]:
    """Warn of a metric that gets worse in training, as PSNR does while a flow learns texture."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    worse = []
    for group in outcome.groups:
        for record, one in zip(group.records, group.curves(metric), strict=True):
            values = sign * one.values[one.steps > 0]
            if len(values) > 1 and values[0] == values.max():
                worse.append(record.source)
    if worse:
        yield (
            f"{metric} was never better than at the first validation after step 0 in "
            f"{', '.join(worse)}: by it, nothing is said of how fast they converge."
        )


def _of_version(records: Sequence[RunRecord]) -> Iterator[str]:
    before = partly_recorded(records)
    if before and len(records) > 1:
        yield (
            f"{', '.join(before)}: recorded by a version that did not tell yet what a validation "
            "depends on. The metrics of LQ and HQ agree, so the pictures are the same; whether the "
            "weights of the metrics are is not known."
        )
