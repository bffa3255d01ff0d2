"""An evaluation in MLflow: a run with the numbers of every method, its page and its summary."""

import hashlib

from infra import paths
from infra.config import digest, pretty_json
from infra.paths import AnyPath
from infra.tracking.record import LOG, Resume, described
from infra.tracking.rules import flatten
from infra.tracking.run import start_run
from pipelines.evaluate.summary import PAGE, SUMMARY, Summary, encoded

EXPERIMENT, TRACKING, RECORDED = "latent-pmrf/evaluate", "tracking", "recorded.json"


def record(folder: AnyPath, state: AnyPath, summary: Summary) -> str:
    """Record a summary; one that is recorded already is not recorded again.

    Args:
        folder: the output folder, with the page and the summary in it.
        state: its hidden folder.
        summary: the numbers.

    Returns:
        A line that says where to see the run.
    """
    sha256 = hashlib.sha256(encoded(summary)).hexdigest()
    mark = pretty_json({"summary": sha256})
    if paths.read_if_there(state / RECORDED) == mark:
        return ""
    settings = {
        **summary.settings,
        **{"test_set": summary.test_set.keys, "n": summary.test_set.n, "summary": sha256},
    }
    own = paths.local_twin(state / TRACKING)
    begun = described(own / LOG)  # by a job that was killed before its mark
    is_same = begun.get("params") == digest(flatten(settings))
    resume = Resume(begun["token"]) if is_same else None
    with start_run(EXPERIMENT, folder=own, name=folder.name, params=settings, resume=resume) as run:
        context, data = "evaluation", summary.test_set.hq or summary.test_set.keys
        run.log_dataset(summary.test_set.protocol, data, settings["sets.reference"], context)
        run.log_metrics(numbers(summary))
        for name in (PAGE, SUMMARY):
            with paths.fetched(folder / name) as local:
                run.log_artifact(local)
        run.close()
        paths.write_bytes(state / RECORDED, mark)
        return f"MLflow: {run.where()}\n"


def numbers(summary: Summary) -> dict[str, float]:
    """Return every value as METHOD/METRIC, with the ends of its interval beside it."""
    found: dict[str, float] = {}
    for method, one in summary.methods.items():
        for name, value in one.values.items():
            ends = {"": value.value, "/low": value.low, "/high": value.high}
            found |= {f"{method}/{name}{e}": x for e, x in ends.items() if x is not None}
    return found
