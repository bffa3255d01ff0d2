"""The restoration job: list, restore what is not restored, report; killed, it loses one unit.

OUT/KEY.png, OUT/KEY.json   a restored picture, and how it was made
OUT/results.parquet         a row for each picture, the failed ones with the reason
OUT/report.html             the page to read
OUT/.restore/               the state of the job
identity.json           what the pictures depend on beside the inputs; others are refused
config.json             the resolved configuration, for --config
results.jsonl           what became of every picture so far
"""

import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from datasets.sources import ImageRef, Listing
from infra import paths
from infra.config import from_dict, pretty_json, to_dict
from infra.errors import BudgetExceeded, UsageError
from pipelines.jobs.folder import SetFolder, plain
from pipelines.jobs.inputs import listed
from pipelines.jobs.stage import Engine, Resources, a_gpu_each, started
from pipelines.restore import report
from pipelines.restore.bundles import open_bundle
from pipelines.restore.config import STATE, RestoreConfig, RestoreRule
from pipelines.restore.networks import check_method, settings
from pipelines.restore.results import Result, Results
from pipelines.restore.worker import RestoreImages, RestoreSpec

UNIT = 8  # pictures: as many as a kill can lose of a worker's time


class Restoration:
    """One job in one output folder.

    Args:
        config: the resolved configuration.

    Raises:
        UsageError: a model that cannot be used.
    """

    def __init__(self, config: RestoreConfig) -> None:
        self.config = config = config.absolute()
        self.set = SetFolder(paths.path_of(config.output), STATE, "a folder of restored pictures")
        self.folder, self.state = self.set.path, self.set.state
        self.bundle = open_bundle(config.rule.model)
        check_method(config.rule, self.bundle)
        self.settings = settings(config.rule, self.bundle.config)
        self.identity = plain({**self.settings, "whole": asdict(config.whole)})

    def run(self, engine: Engine | None = None) -> None:
        """Do what is left to do.

        Args:
            engine: what carries out the units; by default Ray.

        Raises:
            UsageError: an output, an input or a device that cannot be used.
            UserError: the job could not be finished for a reason that the user can mend.
            BudgetExceeded: all is done that can be, and some pictures could not be restored.
        """
        with self.set.held():
            self.set.claim("identity.json", self.identity, overwrite=self.config.overwrite)
            if self.config.overwrite:
                self._discard()
            listing = listed(self.config.input, self.state / "sources")
            listing.prepare()
            paths.write_bytes(self.state / "identity.json", pretty_json(self.identity))
            paths.write_bytes(self.state / "config.json", pretty_json(to_dict(self.config)))
            with Results(self.state / "results.jsonl") as results:
                self._work(listing, results, engine)
                self._end(listing, results)

    def _discard(self) -> None:
        """Remove what another configuration made here, the pictures before their results."""
        with Results(self.state / "results.jsonl") as results:
            for result in results.by_key.values():
                for name in result.files:
                    (self.folder / name).unlink(missing_ok=True)
        self.set.start_over(self.identity)

    def _work(self, listing: Listing, results: Results, engine: Engine | None) -> None:
        left = results.left(listing.images)
        if not left:
            sys.stdout.write(f"{self.folder}: all is restored already\n")
            return
        with started(engine, self.config.workers) as running:
            rule, resources = self._placed(running)
            spec = RestoreSpec(
                rule=rule,
                whole=self.config.whole,
                output=str(self.folder),
                notes=str(self.state / "attempts"),
                session=uuid.uuid4().hex,
                model=self.settings["model"],
            )
            made = running.run("restore", units(left), RestoreImages, (spec,), len(left), resources)
            for unit in made:
                rows = [from_dict(Result, row) for row in unit["results"]]
                results.append(rows)
                for row in rows:
                    if row.reason:
                        sys.stderr.write(f"{row.reason}\t{row.key}\t{row.detail}\n")

    def _placed(self, engine: Engine) -> tuple[RestoreRule, Resources]:
        """Say on what is computed; an open device is a GPU where there is one."""
        device = self.config.rule.device or ("cuda" if engine.gpus() else "cpu")
        rule = replace(self.config.rule, device=device)
        sys.stdout.write(f"{self.settings['method']} on {'GPUs' if device == 'cuda' else 'CPUs'}\n")
        if device == "cpu":
            return rule, Resources(cpus=rule.threads)
        otherwise = "give --device cpu to restore on CPUs"
        return rule, a_gpu_each(engine, self.config.gpus, "--device cuda", otherwise)

    def _end(self, listing: Listing, results: Results) -> None:
        rows = [results.by_key[ref.key] for ref in listing.images]
        paths.write_bytes(self.folder / report.TABLE, report.table(rows))
        page = report.build(listing, rows, self.folder, self.settings)
        paths.write_bytes(self.folder / report.PAGE, page.encode())
        failures = [row for row in rows if row.reason]
        sys.stdout.write(report.summary(rows, self.folder))
        if failures:
            raise BudgetExceeded(
                f"{len(failures)} of {len(rows)} pictures were not restored; each has its reason "
                f"above and in {self.folder / report.TABLE}"
            )


def units(refs: Sequence[ImageRef]) -> list[dict[str, Any]]:
    """Group pictures to units of work."""
    return [
        {
            "name": f"{refs[first].key.replace('/', '_')}-{first}",
            "images": [asdict(r) for r in part],
        }
        for first in range(0, len(refs), UNIT)
        if (part := refs[first : first + UNIT])
    ]


def missing(config: RestoreConfig) -> list[str]:
    """List the options without which there is nothing to do."""
    given = {"input": config.input, "output": config.output, "model": config.rule.model}
    return [f"--{name}" for name, value in given.items() if not value]


def check(config: RestoreConfig) -> None:
    """Refuse a command line on which nothing can be done.

    Raises:
        UsageError: says what is missing.
    """
    if lacking := missing(config):
        raise UsageError(f"no {', '.join(lacking)}; python -m pipelines.restore --help says what")
