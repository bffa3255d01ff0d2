"""Services on one host, Ray on three, and a launcher of trainings on two of them."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from infra.deploy.private import read_exports
from tests.cluster.hosts import Host, Running

BUCKET = "s3://latent-pmrf"
RAY_PORT = 6379
RAY = ("--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats")
HEAD = ("--head", "--port", str(RAY_PORT), "--include-dashboard", "false")
SECRET = "AWS_SECRET_ACCESS_KEY"
KEYS = ("AWS_ACCESS_KEY_ID", SECRET)


class Cluster:
    """The hosts `head`, `worker-1`, `worker-2` and `services`, while a `with` block lasts.

    Attributes:
        variables: the addresses and keys that commands on its hosts are given.

    Args:
        folder: for the hosts' disks and what their commands said.
    """

    def __init__(self, folder: Path) -> None:
        disks = folder / "hosts"
        disks.mkdir()
        (disks / "names").write_text("127.0.0.1 localhost\n")
        names = ("head", "worker-1", "worker-2", "services")
        self.hosts = {name: Host(name, number, disks) for number, name in enumerate(names, 1)}
        self.variables: dict[str, str] = {}

    def __enter__(self) -> Self:
        for host in self.hosts.values():
            host.start()
        services = self.hosts["services"]
        kept = ["--folder", "/srv/home/services", "--host", services.address]
        running = services.begin([sys.executable, "-m", "infra.deploy", *kept], {}, "services")
        running.wait_until(lambda: "Both are up" in running.said())
        self.variables = read_exports(services.folder / "srv/home/services/env")
        os.environ.update(self.variables)  # this process looks into the bucket, too
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.kill()

    def start_ray(self, *names: str) -> None:
        """Start Ray on hosts that have it not; the head's comes first."""
        for name in names:
            host = self.hosts[name]
            head = f"{self.hosts['head'].address}:{RAY_PORT}"
            role = HEAD if name == "head" else ("--address", head)
            own = ["--node-ip-address", host.address]
            keys = {key: self.variables[key] for key in KEYS}  # where the bucket is, jobs tell
            host.begin(["ray", "start", *role, *own, *RAY], keys, "ray").end()

    def stop_ray(self, *names: str) -> None:
        """End what is left of Ray on hosts whose head is gone."""
        for name in names:
            self.hosts[name].begin(["ray", "stop", "--force"], {}, "ray-stop").end()

    def job(self, command: Sequence[str], title: str) -> Running:
        """Begin a command of `pipelines` on the head, with the whole cluster's workers."""
        variables = {"RAY_ADDRESS": f"{self.hosts['head'].address}:{RAY_PORT}", **self.variables}
        return self.hosts["head"].begin([sys.executable, "-m", *command], variables, title)

    def training(self, command: Sequence[str], title: str) -> list[Running]:
        """Begin a trainer by DeepSpeed's launcher, one rank on `head` and one on `worker-1`."""
        pair = [self.hosts["head"], self.hosts["worker-1"]]
        for host in pair:
            lines = [f"{other.name} slots=1\n" for other in pair]
            (host.folder / "srv/home/hostfile").write_text("".join(lines))
        launcher = ["deepspeed", "--hostfile", "/srv/home/hostfile", "--no_ssh"]
        meet = ["--master_addr", pair[0].address]
        variables: Mapping[str, str] = {"DS_ACCELERATOR": "cpu", **self.variables}
        return [
            host.begin(
                [*launcher, "--node_rank", str(rank), *meet, *command], variables, f"{title}-{rank}"
            )
            for rank, host in enumerate(pair)
        ]
