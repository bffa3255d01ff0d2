"""A dry run of an encoding on a cluster, whose machines are not like that of the command."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UsageError, UserError
from pipelines.jobs.stage import Resources
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import estimated, write_images, write_networks

IMAGES = 4
MINUTE = dict.fromkeys(("encode", "predict", "degrade"), 60.0)
"""What the workers of a `Cluster` say that a step takes, in seconds."""


class Cluster(InProcess):
    """A cluster of so many CPUs and GPUs; what needs no GPU is done in this process."""

    def __init__(self, *, cpus: int = 1, gpus: int = 0) -> None:
        super().__init__()
        self.cpus, self.given = cpus, gpus

    def run(self, *arguments: Any) -> Iterator[dict[str, Any]]:
        """Measure, and say a minute for each step; with a GPU, say which resources were wanted."""
        if arguments[-1].gpus:
            raise UserError(repr(arguments[-1]))
        for result in super().run(*arguments):
            yield {**result, "cost": result["cost"] | MINUTE}

    def gpus(self) -> int:
        """Return the GPUs of the cluster."""
        return self.given

    def workers(self, resources: Resources) -> int:
        """Return as many as are wanted, or as there are CPUs."""
        return resources.workers or self.cpus


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write networks and an image set."""
    folder = write_networks(tmp_path_factory.mktemp("world"))
    write_images(folder, IMAGES)
    return folder


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 1), (3, 3), (640, IMAGES)])
def test_it_counts_the_workers_of_the_cluster(
    world: Path, tmp_path: Path, cpus: int, at_once: int
) -> None:
    """Not this machine's CPUs; a worker without a shard saves no time."""
    said = estimated(world, tmp_path, Cluster(cpus=cpus), draws=5, samples_per_shard=1)
    latents, sources = IMAGES * (2 + 5), IMAGES * 5

    assert f"hours) with {cpus} workers for {IMAGES} shards\n" in said
    (minutes,) = re.findall(r"about ([\d.]+) minutes", said)
    assert float(minutes) == pytest.approx((latents + 2 * sources) / at_once, abs=0.1)


def test_it_measures_where_the_job_computes(world: Path, tmp_path: Path) -> None:
    """By a worker with a GPU of the cluster, which the machine of the command need not have."""
    wanted = re.escape(repr(Resources(cpus=1, gpus=1, workers=8)))
    with pytest.raises(UserError, match=wanted):
        estimated(world, tmp_path, Cluster(gpus=8), device="cuda")
    with pytest.raises(UsageError, match="0 in the Ray cluster; give --device cpu to encode"):
        estimated(world, tmp_path, Cluster(), device="cuda")
