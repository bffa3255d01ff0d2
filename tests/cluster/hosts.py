"""Hosts in namespaces of this machine: each has its own address, name, processes and disk.

A host sees the machine's programs, but may write only to its own folders: /tmp, /run, /dev/shm, and
/srv with its home and its copy of the project. All other file systems are read-only to it, and the
folders of other hosts are out of its sight. Hosts reach each other over a bridge, and nothing else.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("datasets", "infra", "models", "pipelines", "trainers", "pyproject.toml")
NETWORK = "10.77.0"
DRIVER = f"{NETWORK}.254"  # the address of this process on the bridge
DISKS = "ext2|ext3|ext4|xfs|btrfs|overlay|nfs|nfs4|9p|virtiofs|tmpfs"
BOOT = """
set -e
grep -E '^[^ ]+ [^ ]+ ({disks}) ' /proc/self/mounts | cut -d' ' -f2 > points
hostname {name}
ip link set lo up
mount --bind srv /srv
mount --bind ../names /etc/hosts
{programs}
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
exec 3< points
mount --rbind tmp /tmp
while read -r point <&3; do
    case $point in /tmp|/tmp/*|/run|/run/*|/dev/shm|/srv|/etc/hosts|/sys/*) ;;
    *) mount -o remount,bind,ro "$point" ;; esac
done
exec 3<&-
cd /
echo up
trap '' CHLD  # whoever loses its parent here is not left as a zombie
exec sleep infinity
"""


def why_not() -> str:
    """Return a sentence that says why there can be no hosts here, or an empty one."""
    missing = [name for name in ("ip", "unshare", "nsenter", "mount") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)}: not installed (Debian's packages iproute2 and util-linux)"
    tried = subprocess.run(
        [*inside(), "ip", "link", "add", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"namespaces cannot be made here: {tried.stderr.strip()}"
    return ""


def inside() -> list[str]:
    """Return what begins a command that shall have a network, processes and mounts of its own.

    They, and all that is made in them, end with the command, however it ends.
    """
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return own if os.geteuid() == 0 else [*own, "--map-root-user"]


def shell(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")


def make_bridge() -> None:
    """Make the bridge, in the namespaces of this process, which is the first one in them.

    Raises:
        RuntimeError: it is not :func:`inside` namespaces of its own, but the machine's.
    """
    if os.getpid() != 1:
        raise RuntimeError("this would mount over /run of the machine: python -m tests.cluster")
    shell("mount", "-t", "tmpfs", "tmpfs", "/run")  # where `ip netns` keeps its names
    shell("ip", "link", "set", "lo", "up")
    shell("ip", "link", "add", "bridge", "type", "bridge")
    shell("ip", "address", "add", f"{DRIVER}/24", "dev", "bridge")
    shell("ip", "link", "set", "bridge", "up")


class Host:
    """A host: started, killed as by a power failure, and started again.

    Args:
        name: its hostname.
        number: the last part of its address.
        folder: for the disks of all hosts.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.folder = folder / name
        self.log = folder.parent / "said"
        self.log.mkdir(exist_ok=True)
        with (folder / "names").open("a") as names:
            names.write(f"{self.address} {name}\n")
        self._holder: subprocess.Popen[str] | None = None
        wire = f"to-{name}"
        shell("ip", "netns", "add", name)
        shell("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        shell("ip", "link", "set", wire, "master", "bridge", "up")
        shell("ip", "-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        shell("ip", "-n", name, "link", "set", "eth0", "up")

    def start(self) -> None:
        """Start it with empty disks and a copy of the project."""
        for name in ("tmp", "srv/home", "srv/clone"):
            (self.folder / name).mkdir(parents=True)
        for name in CODE:
            _copy(ROOT / name, self.folder / "srv/clone" / name)
        script = BOOT.format(name=self.name, disks=DISKS, programs=self._programs())
        unshared = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *unshared, "--kill-child", "sh", "-c", script],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            raise RuntimeError(f"{self.name} did not start")

    def _programs(self) -> str:
        """Return commands that keep an environment below /tmp in sight, as CI makes one."""
        prefix = Path(sys.prefix)
        if not prefix.is_relative_to("/tmp"):
            return ""
        place = shlex.quote(f"tmp/{prefix.relative_to('/tmp')}")
        return f"mkdir -p {place}; mount --bind {shlex.quote(sys.prefix)} {place}"

    def kill(self) -> None:
        """End all its processes at once by SIGKILL; its disks are kept in `lost`, out of reach."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            while subprocess.run(
                ["ip", "netns", "pids", self.name], capture_output=True, check=True
            ).stdout:
                time.sleep(0.05)
            self._holder = None
            lost = self.folder.parent.parent / "lost"
            lost.mkdir(exist_ok=True)
            self.folder.rename(lost / f"{len(list(lost.iterdir()))}-{self.name}")

    def begin(self, command: Sequence[str], variables: Mapping[str, str], title: str) -> "Running":
        """Begin a command on it, from its copy of the project; what it says goes to a file."""
        assert self._holder is not None
        below = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        entered = ["nsenter", "--target", below.split()[0], "--mount", "--uts", "--ipc", "--net"]
        place = self.log / f"{len(list(self.log.iterdir())):02d}-{self.name}-{title}.txt"
        with place.open("w") as said:
            process = subprocess.Popen(
                [*entered, "--pid", "--wdns=/srv/clone", *command],
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": "/srv/home",
                    "TMPDIR": "/tmp",
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "1",
                    **variables,
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        return Running(process, place, f"{self.name}: {shlex.join(command)}")


class Running:
    """A command that runs on a host."""

    def __init__(self, process: "subprocess.Popen[bytes]", said: Path, title: str) -> None:
        self._process = process
        self._said = said
        self._title = title

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened, while the command runs."""
        while not happened():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._title}: ended too early:\n{self.said()[-3000:]}")
            time.sleep(0.05)

    def code(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait()

    def end(self) -> None:
        """Wait for its end, which must be a good one."""
        if code := self.code():
            raise RuntimeError(f"{self._title}: exit code {code}:\n{self.said()[-3000:]}")

    def said(self) -> str:
        """Return what it has printed."""
        return self._said.read_text(errors="replace")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
