"""The job: pictures through each autoencoder, then an evaluation; killed, it loses one unit.

OUT/vae.json, vae.html            the numbers, and the page to read
OUT/originals/KEY.png             the pictures
OUT/reconstructed/NAME/KEY.png    the same through the autoencoder NAME
OUT/evaluation/                   as of `pipelines.evaluate.job`
OUT/.vae/                         the state of the job
    config.json                   the resolved configuration, for --config
    originals/, reconstructed/    what each finished unit has written
    attempts/, sources/           notes on what is under way; what is kept of archives
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets.inputs import parsed
from datasets.sources import ImageRef
from infra.config import from_dict, pretty_json, to_dict
from infra.errors import BudgetExceeded, UsageError, UserError
from infra.paths import AnyPath, path_of, write_bytes
from pipelines.evaluate.config import EvaluateConfig, SetsConfig
from pipelines.evaluate.job import Evaluation, placed, say_failures
from pipelines.evaluate.pairs import mark, names
from pipelines.evaluate.summary import Summary, read_summary
from pipelines.evaluate.vae import report
from pipelines.evaluate.vae.config import (
    EVALUATION,
    ORIGINALS,
    RECONSTRUCTED,
    STATE,
    VAEsConfig,
)
from pipelines.evaluate.vae.filling import Target, Unit, as_units, png_sizes
from pipelines.evaluate.vae.latents import LatentSums
from pipelines.evaluate.vae.networks import Compared, look
from pipelines.evaluate.vae.originals import WriteOriginals, find_pictures
from pipelines.evaluate.vae.result import Result, result_of
from pipelines.evaluate.vae.worker import ReconstructPictures, ReconstructSpec
from pipelines.evaluate.worker import Failure
from pipelines.jobs.folder import SetFolder
from pipelines.jobs.stage import Engine, Resources, started

Facts = Mapping[str, list[Any]]
"""Of the originals by key: SHA-256 of the levels, width, height."""


class Reconstruction:
    """One job in one output folder.

    Args:
        config: the configuration.

    Raises:
        UsageError: an autoencoder that is not there.
    """

    def __init__(self, config: VAEsConfig) -> None:
        self.config = config = config.absolute()
        self.set = SetFolder(path_of(config.output), STATE, "an evaluation of autoencoders")
        self.folder, self.state = self.set.path, self.set.state
        self.originals = self.folder / ORIGINALS
        self.session = uuid.uuid4().hex
        self.vaes = look(config.folders)

    def run(self, engine: Engine | None = None) -> Result:
        """Reconstruct and measure what is left, and write the numbers and the page.

        Args:
            engine: what carries out the units; by default Ray.

        Returns:
            All numbers.

        Raises:
            UsageError: an input, an output or a device that cannot be used.
            UserError: pictures that cannot be reconstructed or measured, each with its line.
            BudgetExceeded: all is done, but metrics that were asked for by name are missing.
        """
        refuse_inside(self.config)
        with self.set.held():
            refs = find_pictures(self.config, self.state / "sources")
            self._refuse_others(refs)
            write_bytes(self.state / "config.json", pretty_json(to_dict(self.config)))
            with started(engine, self.config.measure.workers) as running:
                device, resources = placed(self.config.measure, running, "autoencoders")
                facts = self._written(refs, running)
                check_sizes(facts, self.vaes)
                sums = {
                    vae.name: self._reconstructed(vae, facts, running, device, resources)
                    for vae in self.vaes
                }
                summary, lacking = self._evaluated(running)
            sizes = Counter((width, height) for _, width, height in facts.values())
            result = result_of(self.config, device, sizes, self.vaes, sums, summary)
            report.write(self.folder, result)
        if lacking is not None:
            raise lacking
        return result

    def _refuse_others(self, refs: Sequence[ImageRef]) -> None:
        """Refuse a folder in which pictures lie that are not wanted now.

        Raises:
            UsageError: names them.
        """
        others = sorted(png_sizes(self.originals).keys() - {ref.key for ref in refs})
        if others:
            raise UsageError(
                f"{self.originals} has {len(others):,} pictures that this command does not name: "
                f"{names(others)}. An output folder is of one set of pictures, which may grow: "
                "give another --output, or the --input and --first that it was begun with"
            )

    def _target(self, stage: str, folder: AnyPath, records: str) -> Target:
        return Target(
            name=stage,
            folder=str(folder),
            records=str(self.state / records),
            notes=str(self.state / "attempts"),
        )

    def _written(self, refs: Sequence[ImageRef], engine: Engine) -> Facts:
        """Write the originals that are not there; returns what is known of all."""
        target = self._target(ORIGINALS, self.originals, ORIGINALS)
        units = as_units(refs, [mark(ref) for ref in refs])
        _fill(target, units, engine, WriteOriginals, (target, self.session), Resources())
        return target.facts(units)

    def _reconstructed(
        self, vae: Compared, facts: Facts, engine: Engine, device: str, resources: Resources
    ) -> LatentSums:
        """Reconstruct what is not reconstructed; returns the sums over all latents."""
        config, lengths = self.config, png_sizes(self.originals)
        target = self._target(
            f"reconstruct {vae.name}",
            self.folder / RECONSTRUCTED / vae.name,
            f"{RECONSTRUCTED}/{vae.name}",
        )
        refs = [
            ImageRef(
                key=key,
                origin=vae.name,
                file=f"{key}.png",
                path=str(self.originals / f"{key}.png"),
                size=lengths[key],
                stamp=0,
            )
            for key in facts
        ]
        depends_on = [vae.mark, config.precision, device, config.measure.threads]
        units = as_units(refs, [[*depends_on, digest] for digest, _, _ in facts.values()])
        spec = ReconstructSpec(
            target=target,
            where=vae.where,
            identity=vae.identity,
            precision=config.precision,
            device=device,
            threads=config.measure.threads,
            session=self.session,
        )
        _fill(target, units, engine, ReconstructPictures, (spec,), resources)
        found = [LatentSums.from_json(values) for values in target.facts(units).values()]
        return sum(found[1:], start=found[0])

    def _evaluated(self, engine: Engine) -> tuple[Summary, BudgetExceeded | None]:
        """Measure the reconstructions; a metric that is missing is raised once all is written."""
        folders = [f"{vae.name}={self.folder / RECONSTRUCTED / vae.name}" for vae in self.vaes]
        sets = SetsConfig(restored=tuple(folders), reference=str(self.originals))
        output = self.folder / EVALUATION
        config = EvaluateConfig(output=str(output), sets=sets, measure=self.config.measure)
        try:
            return Evaluation(config).run(engine), None
        except BudgetExceeded as lacking:
            return read_summary(output), lacking


def _fill(
    target: Target,
    units: Sequence[Unit],
    engine: Engine,
    worker: type[WriteOriginals] | type[ReconstructPictures],
    arguments: Sequence[Any],
    resources: Resources,
) -> None:
    """Do the units of a folder that are left.

    Raises:
        UserError: pictures that cannot be made, each with its line.
    """
    left = target.unfinished(units)
    total = sum(len(unit["images"]) for unit in left)
    failures: list[Failure] = []
    for done in engine.run(target.name, left, worker, arguments, total, resources):
        failures += [from_dict(Failure, row) for row in done["failures"]]
    if failures:
        say_failures(failures)
        raise UserError(
            f"{len(failures):,} pictures cannot be used; each has its line above. Numbers of the "
            "others would be those of another test set: mend them, or give a folder without them, "
            "and run the same command again"
        )


def check_sizes(facts: Facts, vaes: Sequence[Compared]) -> None:
    """Refuse pictures that an autoencoder cannot take.

    Raises:
        UsageError: names them, and the autoencoders.
    """
    for vae in vaes:
        factor = vae.network.downsample_factor
        wrong = [key for key, (_, *size) in facts.items() if any(side % factor for side in size)]
        if wrong:
            _, width, height = facts[wrong[0]]
            raise UsageError(
                f"{vae.name} takes pictures whose sides are multiples of {factor}; "
                f"{len(wrong):,} of {len(facts):,} are others, the first is {width} x {height} "
                f"pixels: {names(wrong)}. Crop or resize them as you would publish it"
            )


def refuse_inside(config: VAEsConfig) -> None:
    """Refuse an output folder inside the input, whose pictures would be taken for the input's.

    Raises:
        UsageError: it is inside.
    """
    output, given = path_of(config.output), parsed(config.input).path
    if f"{output.resolve()}/".startswith(f"{given.resolve()}/"):
        raise UsageError(
            f"--output {config.output} lies in --input {config.input}, and what is written would "
            "be read as pictures of it; give a folder elsewhere"
        )
