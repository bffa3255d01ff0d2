"""The files of infra/deploy/: what they name exists, what they start has these options, no keys."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from mlflow.cli import server as mlflow_server
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from torch.distributed.run import get_args_parser

from infra import cli
from infra.deploy.object_store import OPTIONS, weed
from tests.conftest import PATIENCE, ROOT
from trainers.recipes.flow_config import PRESETS, FlowConfig

DEPLOY = ROOT / "infra" / "deploy"
SCRIPT = DEPLOY / "train.slurm"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLUSTER: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_healthy_ones_and_is_pinned(name: str) -> None:
    """What is waited for has a check; an image has a version, and is published to nobody else."""
    service = SERVICES[name]

    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
    assert re.search(r":\d+\.\d+", service["image"])
    if "build" in service:
        assert service["build"]["target"] in _targets()
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_secrets_come_from_a_file_that_is_not_kept() -> None:
    """Compose refuses to start without them; the example has none; git and images leave it out."""
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    given = re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE)

    assert {name for name, _ in given} == asked
    assert all(not value for _, value in given)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert "${" in str(value) or not re.search("KEY|SECRET|PASSWORD", name)
    assert "/infra/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert "infra/deploy/.env" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()


def _targets() -> set[str]:
    return set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))


def test_the_image_holds_the_code_and_nothing_else() -> None:
    """What is copied exists, is let in, and is every folder of the project."""
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()

    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert {"datasets", "infra", "models", "pipelines", "trainers"} < set(copied)
    assert all(":latest" not in line for line in DOCKERFILE.splitlines())


def test_a_login_shell_finds_the_programs_of_the_image(tmp_path: Path) -> None:
    """`ray up` runs each command in a login shell, in which Debian's /etc/profile sets PATH anew.

    Whatever the Dockerfile does to PATH, the folder into which it installs is first there too.
    """
    (tmp_path / ".profile").write_text("PATH=/usr/local/bin:/usr/bin:/bin\n")  # as for a user
    (tmp_path / ".bashrc").touch()
    base = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"  # of python:3.12-slim
    assert re.search(r"^FROM python:3\S+-slim-bookworm AS platform$", DOCKERFILE, re.MULTILINE)
    said = re.search(r"^ENV (?:.* )?PATH=(\S+)", DOCKERFILE, re.MULTILINE)
    path = said[1].replace("$PATH", base) if said else base
    shell = subprocess.run(
        ["bash", "-c", " ".join(_with_interactive('echo "PATH=$PATH"'))],
        env={"HOME": str(tmp_path), "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,  # the shell is interactive, and would take the terminal
    )

    found = re.search(r"^PATH=(.*)$", shell.stdout, re.MULTILINE)
    assert found
    assert found[1].split(":")[0] == path.split(":")[0]


def _options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def _store_options() -> set[str]:
    """List the options of `weed mini`, which its help writes with one hyphen."""
    told = subprocess.run([weed(), "mini", "-h"], capture_output=True, text=True, check=False)
    return set(re.findall(r"^  (-[\w.]+)", told.stdout + told.stderr, re.MULTILINE))


def test_the_services_know_their_options() -> None:
    """Every option of a command is one of the installed program."""
    known = {
        "weed": _store_options() | {"-logtostderr"},
        "mlflow": _options(mlflow_server),
        "ray": _options(ray_start),
    }
    commands = [SERVICES[name]["command"] for name in SERVICES if "command" in SERVICES[name]]
    commands += [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]
    for command in commands:
        words = shlex.split(command)
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= known[words[0]], command


def test_the_store_is_as_careful_as_without_docker() -> None:
    """Compose's store has the options of `python -m infra.deploy`, but for the size of volumes."""
    careful = {option for option in OPTIONS if "volumeSizeLimitMB" not in option}

    assert careful <= set(SERVICES["store"]["command"].split())


def test_the_ray_cluster_is_one_to_ray() -> None:
    """Ray's own schema accepts the file; the two kinds of workers and the head are filled in."""
    prepared = prepare_config(CLUSTER)
    validate_config(prepared)

    assert prepared["available_node_types"].keys() == {"head", "processors", "gpus"}


@pytest.mark.parametrize("whose", ["", "head_", "worker_"])
def test_ray_installs_nothing_into_the_image(whose: str) -> None:
    """Without a word in the file, Ray's defaults for AWS install another Ray and boto3."""
    assert prepare_config(CLUSTER)[f"{whose}setup_commands"] == []


def _words() -> list[str]:
    """Return the words of the script's `srun`, as the shell sees them."""
    text = SCRIPT.read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^srun .*$", text, re.MULTILINE)[0])  # type: ignore[index]


def test_the_training_knows_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `torchrun`, and those of `trainers/flow.py`."""
    words = _words()
    launcher = shlex.split(words[words.index("-c") + 1])
    program = words.index("trainers/flow.py")
    values = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8"}
    values |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    told = [os.path.expandvars(word) for word in launcher[2:-1]]

    parsed = get_args_parser().parse_args([*told, "trainers/flow.py"])
    assert (parsed.nnodes, parsed.node_rank, parsed.nproc_per_node) == ("2", 1, "8")
    arguments = [word.replace("$bucket", "s3://b") for word in words[program + 1 : -1]]
    cli.parse(FlowConfig, PRESETS, arguments, "flow", "")


def test_a_step_has_the_environment_and_the_cpus_of_its_job() -> None:
    """After `sbatch --export=NONE`, and with SLURM from 22.05 on, `srun` must be told of them."""
    options = _words()[1 : _words().index("bash")]

    assert {"--export=ALL", "--cpus-per-task=$SLURM_CPUS_PER_TASK"} <= set(options)


def test_the_script_is_good_shell() -> None:
    """Bash reads it; so does ShellCheck, where it is installed."""
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, SCRIPT], check=True)


RUN = """
import os, pathlib, signal, sys
place = pathlib.Path(sys.argv[sys.argv.index("--work") + 1], ".state")
place.mkdir(parents=True)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143))
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(143)))
(place / "part").write_text(str(os.getpid()))
(place / "part").rename(place / "pid")
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "code", "queued"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_reaches_the_run(
    tmp_path: Path, number: signal.Signals, code: int, queued: bool
) -> None:
    """USR1: rank 0 is told to end, and the job is queued again; TERM: the step is told to.

    SLURM's two programs, and `torchrun`, are stood in for: there is no SLURM on such a machine.
    """
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    _write(programs / "srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    _write(programs / "scontrol", f'echo "$@" >> {tmp_path}/asked; echo node1')
    (tmp_path / "run.py").write_text(RUN)
    _write(programs / "torchrun", f'exec python3 {tmp_path}/run.py "$@"')
    (tmp_path / "keys").write_text("")
    work = Path("/tmp", tmp_path.name, "a-job")
    slurm = {"JOB_NAME": "a-job", "JOB_ID": "7", "JOB_NODELIST": "node[1-2]", "NNODES": "2"}
    slurm |= {"NODEID": "0", "GPUS_ON_NODE": "8", "CPUS_PER_TASK": "64"}
    process = subprocess.Popen(
        ["bash", SCRIPT],
        cwd=tmp_path,
        env={
            **os.environ,
            **{f"SLURM_{name}": value for name, value in slurm.items()},
            "USER": tmp_path.name,
            "LATENT_PMRF_ENV": str(tmp_path / "keys"),
        },
    )
    try:
        while not (work / ".state" / "pid").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
    finally:
        process.kill()
        shutil.rmtree(work.parent, ignore_errors=True)

    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show hostnames node[1-2]", *(["requeue 7"] * queued)]


def _write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
