"""Paths that cross processes: absolute before anything is sent, and no data among the code."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from datasets.verify import problems
from infra.errors import UserError
from infra.s3.client import connection, forget
from pipelines.curate.config import CurateConfig, CutRule
from pipelines.encode.config import EncodeConfig, EncodeRule
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.stage import CODE, ROOT, RayEngine, Resources, for_workers
from pipelines.restore.config import RestoreConfig
from tests.conftest import PATIENCE, Pictures, free_port, program


def test_every_path_of_a_job_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs, output, weights, score files and networks; a NAME before a path stays."""
    for name in ("raw", "weights", "a=b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    given = ("raw", "photos=raw", "a=b", "pkg:skimage/data/cell.png", "test=s3://faces/test")
    job = CurateConfig(
        input=given,
        cut=CutRule(exclude=given),
        output="sets/one",
        scorer=ScorerChoice(name="scores.json", weights="weights"),
    ).absolute()

    assert job.input == (
        *(f"{tmp_path}/raw", f"photos={tmp_path}/raw", f"{tmp_path}/a=b"),
        *given[3:],
    )
    assert job.cut.exclude == job.input
    assert RestoreConfig(reference="hq=raw").absolute().reference == f"hq={tmp_path}/raw"
    assert job.output == f"{tmp_path}/sets/one"
    assert job.scorer.name == f"{tmp_path}/scores.json"
    assert job.scorer.weights == f"{tmp_path}/weights"
    assert CurateConfig(output="x").absolute().scorer.weights == "q-future/one-align"
    rule = EncodeRule(vae="flux-f8c16=weights", predictor="weights", regressor="")
    latents = EncodeConfig(input="raw", output="out", rule=rule).absolute()
    assert (latents.input, latents.output, latents.reuse) == (
        *(f"{tmp_path}/raw", f"{tmp_path}/out"),
        "",
    )
    assert latents.rule.vae == f"flux-f8c16={tmp_path}/weights"
    assert latents.rule.predictor == f"{tmp_path}/weights"
    assert EncodeRule(vae="sd15-f8c4").vae == "sd15-f8c4"


def test_a_cluster_gets_the_code_alone() -> None:
    """What is shipped is a few megabytes, the included model apart, whatever lies beside it."""
    shipped = [p for name in CODE for p in (ROOT / name).rglob("*") if "__pycache__" not in p.parts]
    code = [path for path in shipped if ROOT / "models" / "bundles" not in path.parents]

    assert sum(path.stat().st_size for path in code) < 5 << 20
    assert len(shipped) > len(code)  # its workers restore with the model too


STORE, REGION = "http://store:8333", "eu-central-1"
FORMS = {
    "of S3": {"AWS_ENDPOINT_URL_S3": STORE, "AWS_REGION": REGION},
    "of all services": {"AWS_ENDPOINT_URL": STORE, "AWS_DEFAULT_REGION": REGION},
    "in a profile": {"AWS_PROFILE": "here"},
    "in a profile, for S3": {"AWS_PROFILE": "s3-alone", "AWS_DEFAULT_REGION": REGION},
    "Amazon's": {"AWS_DEFAULT_REGION": REGION},
    "no region": {"AWS_ENDPOINT_URL": STORE},
    "nothing": {},
    "a profile that does not count": {
        "AWS_PROFILE": "here",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    },
}
PROFILES = f"""
[profile here]
endpoint_url = {STORE}
region = {REGION}
request_checksum_calculation = when_required
[profile s3-alone]
services = mine
[services mine]
s3 =
  endpoint_url = {STORE}
"""


@pytest.fixture
def variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[dict[str, str]], dict[str, str]]:
    """Return what makes these the AWS variables of this machine; each call forgets the others."""
    (tmp_path / "config").write_text(PROFILES)

    def those(given: dict[str, str]) -> dict[str, str]:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return given

    return lambda given: those({"AWS_CONFIG_FILE": str(tmp_path / "config"), **given})


def _asked() -> tuple[str, str, str]:
    """Return the server that a client of this process asks, its region, and its checksums."""
    forget()
    meta = connection().client().meta
    forget()
    return meta.endpoint_url, meta.region_name, meta.config.request_checksum_calculation


@pytest.mark.parametrize("form", FORMS)
def test_the_workers_of_a_cluster_ask_the_server_that_the_command_asks(
    variables: Callable[[dict[str, str]], dict[str, str]], form: str
) -> None:
    """However it is set; their machine has keys and files of its own, and none of its variables."""
    variables(FORMS[form])
    asked, sent = _asked(), for_workers()["env_vars"]
    variables({"AWS_CONFIG_FILE": os.devnull, **sent})

    assert _asked() == asked


def test_a_cluster_is_told_no_key_and_nothing_of_this_machine(
    variables: Callable[[dict[str, str]], dict[str, str]],
) -> None:
    """Workers have keys of their own machine: what is passed on stands in Ray's logs."""
    where = {"AWS_ENDPOINT_URL_S3": STORE, "AWS_REGION": REGION, "AWS_MAX_ATTEMPTS": "20"}
    variables(
        {
            **where,
            "AWS_ACCESS_KEY_ID": "A",
            "AWS_SECRET_ACCESS_KEY": "B",
            "AWS_SESSION_TOKEN": "C",
            "AWS_PROFILE": "here",
            "AWS_CA_BUNDLE": "/etc/ca.pem",
        }
    )

    assert for_workers()["env_vars"] == {
        **where,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


def test_what_amazon_makes_of_a_region_is_not_sent(
    variables: Callable[[dict[str, str]], dict[str, str]],
) -> None:
    """An endpoint that is given would end boto3's redirections to the region of a bucket."""
    variables({"AWS_DEFAULT_REGION": REGION})

    assert "AWS_ENDPOINT_URL_S3" not in for_workers()["env_vars"]


def test_a_profile_that_is_not_there_is_explained(
    variables: Callable[[dict[str, str]], dict[str, str]],
) -> None:
    """Before Ray is asked for anything."""
    variables({"AWS_PROFILE": "elsewhere"})
    with pytest.raises(UserError, match="workers of the Ray cluster: AWS_PROFILE names a profile"):
        for_workers()


@pytest.mark.parametrize("workers", [None, 2])
def test_a_cluster_without_cpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    """As after `ray start --head --num-cpus=0` alone: Ray would wait for a machine in silence."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"memory": 1e9, "GPU": 1.0})
    engine = RayEngine(workers)
    with pytest.raises(UserError, match=r"=head:6379 has no CPUs yet.*run the same com"):
        list(engine.run("score", [{}], dict, (), 1, Resources(gpus=1, workers=1)))

    assert engine.times == []


def test_a_cluster_that_does_not_answer_is_explained(pictures: Pictures, tmp_path: Path) -> None:
    """At once; the message names the address, and what to set if the cluster asks for a token."""
    job: list[str | Path] = ["--input", pictures(1), "--output", tmp_path / "set", "--size", "64"]
    variables = {"RAY_ADDRESS": "127.0.0.1:1"}
    process = program("pipelines.curate", [*job, "--stride", "64"], tmp_path, **variables)
    _, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert "Traceback" not in errors
    for word in (
        "RAY_ADDRESS=127.0.0.1:1",
        "nobody answers",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_TOKEN",
    ):
        assert word in errors


TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start a Ray cluster that asks for a token; yields its address and the file of the token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    port, temporary = free_port(), Path(f"/tmp/ray-{os.getpid()}")  # short: sockets lie in it
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    head = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block"),
            *("--port", str(port), "--num-cpus", "1", "--include-dashboard", "false"),
            *("--temp-dir", temporary, "--disable-usage-stats"),
        ],
        cwd=home,
        env={**environment, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert head.stdout is not None
        assert any("runtime started" in line for line in head.stdout)
        yield f"127.0.0.1:{port}", home / ".ray" / "auth_token"
    finally:
        for child in psutil.Process(head.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        head.kill()
        head.communicate()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.slow
def test_relative_paths_and_large_files_on_a_cluster_with_a_token(
    cluster: tuple[str, Path], pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a clone with 700 MB beside the code: refused without the token, and done with it."""
    address, token = cluster
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in CODE:
        shutil.copytree(ROOT / name, clone / name)
    with (clone / "LSDIR.tar").open("wb") as file:
        file.truncate(700 << 20)
    pictures(4, name="clone/raw")
    monkeypatch.setenv("RAY_ADDRESS", address)
    job: list[str | Path] = ["--input", "raw/", "--output", "sets/small", "--no-track"]
    job += ["--size", "64", "--stride", "48", "--threshold", "200", "--preset", "demo"]
    refused = program("pipelines.curate", job, clone, cwd=clone)
    _, errors = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 1
    assert "RAY_AUTH_TOKEN" in errors
    assert "Traceback" not in errors

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    process = program("pipelines.curate", job, clone, cwd=clone, RAY_AUTH_MODE="token")
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors
    assert list(problems(clone / "sets" / "small")) == []
