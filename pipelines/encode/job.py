"""The encoding job: probe, plan, encode what is not encoded, publish; later, add draws.

The state of the job is in the output folder; a killed job loses at most the shards under way.

    OUTPUT/                   the set: shards, manifest.json; index, pairs and statistics.parquet
    OUTPUT/config.json        the resolved configuration, for --config
    OUTPUT/report.html        the page to read
    OUTPUT/versions/          the set as it was before each time that it grew
    OUTPUT/.encode/           the state of the job
        identity.json         the settings that the latents depend on; others are refused
        probe/                the distortion bound and its pictures
        draws-FIRST-LAST/     a generation that is being encoded: plan, shards, records and sums

A set grows by generations: the first run encodes targets and draws 0 to K - 1, a later one with
more --draws adds shards with the further draws and rewrites the manifest and the tables. A
published shard never changes, and the set as it was stays in `versions`, so that a run on it can be
resumed. With --reuse, latents that would come out the same are copied from
another set.
"""

import json
import sys
from typing import Any

from datasets import shards
from datasets.latent_format import LatentFormat
from datasets.sets import open_set
from datasets.versions import forget_versions, keep_version
from infra import paths
from infra.config import from_dict, pretty_json, to_dict
from infra.errors import UsageError
from infra.paths import AnyPath
from models.checkpoint import CheckpointError
from models.frozen import check_takes
from pipelines.encode import report as encoding_report
from pipelines.encode.bound import IMAGES, RESULT, Probe, bound
from pipelines.encode.config import STATE, EncodeConfig
from pipelines.encode.images import latent_shards, open_images, refuse_long_names
from pipelines.encode.manifest import Generation, stage_manifest
from pipelines.encode.members import GenerationSpec
from pipelines.encode.networks import identity, load_models, parameters
from pipelines.encode.reuse import Reuse, earlier_manifest, reusable
from pipelines.encode.sums import ChannelSums
from pipelines.encode.worker import EncodeShard
from pipelines.jobs.folder import SetFolder, plain
from pipelines.jobs.plan import PLAN, units_left, write_plan
from pipelines.jobs.progress import Watched
from pipelines.jobs.stage import Engine, Resources, a_gpu_each, started
from pipelines.jobs.times import save_times

LEAST_STD = 1e-3  # for the step of 8-bit levels in a channel that hardly varies


class Encoding:
    """One job in one output folder.

    Args:
        config: the resolved configuration.

    Raises:
        UsageError: images or weights that cannot be read, or that do not fit together.
    """

    def __init__(self, config: EncodeConfig) -> None:
        config = config.absolute()
        self.config = config
        self.rule = config.rule
        self.set = SetFolder(paths.path_of(config.output), STATE, "a latent set")
        self.folder, self.state = self.set.path, self.set.state
        self.images = open_images(paths.path_of(config.input), config.limit)
        models = load_models(self.rule)
        factor = models.vae.downsample_factor
        if self.images.size % factor:
            raise UsageError(
                f"--input {config.input}: images of {self.images.size} pixels; --vae "
                f"{self.rule.vae} takes multiples of {factor}: curate them at another --size"
            )
        side = self.images.size // factor
        self.shape = models.vae.latent_channels, side, side
        if models.regressor is not None:
            try:
                check_takes(models.regressor, self.shape)
            except CheckpointError as error:
                raise UsageError(f"--regressor {self.rule.regressor}: {error}") from error
        self.networks = plain(identity(self.rule, models))
        self.identity = plain(
            {
                "images": self.images.digest,
                "limit": config.limit,
                "size": self.images.size,
                **self.networks,
                "dtype": config.dtype,
                "keep_images": config.keep_images,
                "samples_per_shard": config.samples_per_shard,
            }
        )

    def run(self, engine: Engine | None = None) -> None:
        """Do what is left to do.

        Args:
            engine: what carries out the units; by default Ray.

        Raises:
            UsageError: an output or a device that cannot be used; nothing was encoded.
            UserError: the set could not be finished for a reason that the user can mend.
        """
        self.check()
        with self.set.held():
            self.set.claim("identity.json", self.identity, overwrite=self.config.overwrite)
            if self.config.overwrite:
                self.set.start_over(self.identity)
            if self._finished():
                sys.stdout.write(f"{self.folder}: complete already; nothing to do\n")
                return
            with started(engine, self.config.workers) as running:
                self._work(running)

    def check(self) -> None:
        """Refuse, before anything is written, what would end the work later.

        Raises:
            UsageError: an image whose latents no tar can hold, or a set of --reuse that cannot be
                used.
        """
        refuse_long_names(
            self.images.folder,
            self.images.rows["key"],
            range(self.config.draws),
            lambda key, number: parameters(self.rule, key, number).gray_target,
            images=self.config.keep_images,
        )
        self.earlier()

    def earlier(self) -> tuple[AnyPath, dict[str, Any]] | None:
        """Return the folder and the manifest of the set that --reuse names, if any.

        Raises:
            UsageError: it cannot be used.
        """
        if not self.config.reuse:
            return None
        folder = paths.path_of(self.config.reuse)
        return folder, earlier_manifest(folder, self.folder)

    def reuse(self, latent: LatentFormat) -> tuple[Reuse | None, str]:
        """Return what may be copied from the set of --reuse, and a sentence that says so."""
        earlier = self.earlier()
        return (None, "") if earlier is None else reusable(*earlier, self.identity, latent)

    def published(self) -> dict[str, Any] | None:
        """Return the manifest of the set in the folder, if it is this one.

        Raises:
            UsageError: it has more draws than asked for, or lacks shards.
        """
        manifest = shards.read_manifest(self.folder)
        if manifest is None or manifest.get("identity") != self.identity:
            return None
        if self.set.is_discarded():
            return None
        lost = self.set.lacks(manifest)
        if lost:
            wrong = (
                f"lacks {lost[0]}, or has another length of it: make it again with "
                f"python -m pipelines.encode verify '{self.folder}' --repair"
            )
        elif manifest["draws"] > self.config.draws:
            wrong = (
                f"holds {manifest['draws']} draws, --draws is {self.config.draws}: ask for at "
                "least as many, give another folder"
            )
        else:
            return manifest
        raise UsageError(f"--output {self.folder} {wrong}, or --overwrite to encode anew")

    def _finished(self) -> bool:
        manifest = self.published()
        is_whole = manifest is not None and manifest["draws"] == self.config.draws
        return is_whole and self.set.is_finished(track=self.config.track)

    def _work(self, engine: Engine) -> None:
        resources = self.resources(engine)
        where = self.set.tracked(
            "latent-pmrf/encode",
            {**self.identity, "draws": self.config.draws},
            lambda: self._make(engine, resources),
            lambda manifest: encoding_report.metrics(manifest, engine.times),
            track=self.config.track,
        )
        sys.stdout.write(where)

    def resources(self, engine: Engine) -> Resources:
        """Return what a worker holds: a GPU with --device cuda, else a CPU."""
        if self.rule.device == "cpu":
            return Resources()
        otherwise = "give --device cpu to encode on CPUs"
        return a_gpu_each(engine, self.config.gpus, "--device cuda", otherwise)

    def _make(self, engine: Engine, resources: Resources) -> dict[str, Any]:
        paths.write_bytes(self.folder / "config.json", pretty_json(to_dict(self.config)))
        paths.write_bytes(self.state / "identity.json", pretty_json(self.identity))
        probe = self._probe(engine, resources)
        for _, staging in self._begun():  # killed while publishing
            if shards.read_manifest(staging) is not None:
                self.set.publish(staging)
        manifest = self.published()
        while manifest is None or manifest["draws"] < self.config.draws:
            self._generation(manifest, probe, engine, resources)
            manifest = self.published()
        for (first, _), staging in self._begun():
            if first < manifest["draws"]:  # it is published, and the job was killed before it went
                paths.remove_tree(staging)
        page = encoding_report.build(manifest, probe, self.state / "probe", engine.times)
        paths.write_bytes(self.folder / "report.html", page.encode())
        save_times(self.state / "times.json", engine.times)
        sys.stdout.write(encoding_report.summary(manifest, engine.times, self.folder))
        return manifest

    def _probe(self, engine: Engine, resources: Resources) -> dict[str, Any]:
        """Measure the distortion bound on a fixed part of the images, unless it was measured."""
        folder = self.state / "probe"
        if not (folder / RESULT).exists():
            rows = self.images.spread(IMAGES)
            arguments = (self.rule, str(self.images.folder), str(folder), self.networks)
            units = [{"rows": rows}]
            for _ in engine.run("probe", units, Probe, arguments, len(rows), resources):
                pass
        result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
        return result

    def _generation(
        self,
        manifest: dict[str, Any] | None,
        probe: dict[str, Any],
        engine: Engine,
        resources: Resources,
    ) -> None:
        """Encode and publish a generation: one that was begun before, or all draws that lack."""
        first = 0 if manifest is None else manifest["draws"]
        staging = self._staging(first)
        last = int(staging.name.rpartition("-")[2])
        latent = self.latent_format(probe)
        if manifest is not None:  # 8-bit levels stay those of the first generation
            latent = from_dict(LatentFormat, manifest["latent"])
        taken: dict[str, int] = {}
        for entry in manifest["shards"] if manifest else ():
            taken[entry["split"]] = taken.get(entry["split"], 0) + 1
        tables = latent_shards(self.images.rows, self.config.samples_per_shard, taken)
        write_plan(staging / PLAN, list(tables.values()))
        units = units_left(staging, tables)
        reuse, said = self.reuse(latent)
        sys.stdout.write(said)
        spec = GenerationSpec(
            plan=str(staging / PLAN),
            images=str(self.images.folder),
            size=self.images.size,
            first=first,
            last=last,
            latent=to_dict(latent),
            networks=self.networks,
            keep_images=self.config.keep_images,
            reuse=reuse,
        )
        total = sum(len(tables[str(unit["name"])]) for unit in units)
        watched = Watched(total, staging)
        for _ in engine.run("encode", units, EncodeShard, (spec, self.rule), watched, resources):
            pass
        if manifest is None:
            forget_versions(self.folder)
        else:
            keep_version(open_set(self.folder, "latent set"))
        new = Generation(staging, tuple(tables), spec, latent)
        entries = {"identity": self.identity, "distortion": bound(probe)}
        stage_manifest(self.folder, manifest, new, entries)
        self.set.publish(staging)

    def _staging(self, first: int) -> AnyPath:
        """Return the folder of the next generation; removes those that no longer fit."""
        begun = []
        for (start, end), folder in self._begun():
            if start == first and end <= self.config.draws:
                begun.append((end, folder))
            else:
                paths.remove_tree(folder)
        return max(begun)[1] if begun else self.state / f"draws-{first}-{self.config.draws}"

    def _begun(self) -> list[tuple[tuple[int, int], AnyPath]]:
        """List the generations that were begun: their first draw, the end, and their folders."""
        found = []
        for folder in self.state.glob("draws-*"):
            first, end = folder.name.split("-")[1:]
            found.append(((int(first), int(end)), folder))
        return found

    def latent_format(self, probe: dict[str, Any]) -> LatentFormat:
        """Return how a latent is stored; 8-bit levels follow from the probe's latents."""
        channels, height, width = self.shape
        if self.config.dtype != "uint8":
            return LatentFormat(
                channels=channels, height=height, width=width, dtype=self.config.dtype
            )
        sums = ChannelSums.joined([probe["sums"]], channels)
        spread = [max(LEAST_STD, std) for std in sums.std.tolist()]
        return LatentFormat.eight_bit(self.shape, sums.mean.tolist(), spread)
