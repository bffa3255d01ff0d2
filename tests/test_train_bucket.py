"""A run whose folder is in a bucket: on any machine it is the run that a local folder has.

A machine is a cache folder of its own here; all train in the test's process.
"""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from infra.config import digest, pretty_json
from infra.errors import UserError
from infra.folders.opening import open_folder
from infra.paths import exclusive, path_of, write_bytes
from infra.s3 import lease, retries
from infra.tracking.record import described
from models.checkpoint import load_checkpoint, weights_digest
from tests.conftest import free_port
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.preloaded import Preloaded
from tests.support.s3_server import OWNER, READER, S3Server, use
from tests.support.training_sets import (
    SMOKE,
    assert_equal,
    digests,
    log,
    same_curve,
    saved_weights,
    write_files,
    write_image_set,
    write_lpips,
)
from trainers.loop.checkpoints import Checkpoints
from trainers.loop.initial import begin_with
from trainers.loop.integrity import MANIFEST, damage, files_below, seal
from trainers.loop.neighbours import everyone
from trainers.loop.run_files import RunFiles
from trainers.loop.stores import METRICS, CopiedStore
from trainers.recipes import flow_config
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_networks import load_networks

if TYPE_CHECKING:
    from tests.support.trainers_here import Ended, Train

pytest_plugins = ["tests.support.trainers_here"]
MANY = 1_000_000
NUMBERS = count()
TINY = ["trainers.flow", *SMOKE, "--workers", "0"]
FOUR = ["--max-steps", "4"]
FOURTH, EIGHTH = "checkpoints/step-00000004", "checkpoints/step-00000008"


@dataclass
class Run:
    """A run that is to be in a bucket, and the machines that train it."""

    uri: str
    command: list[str | Path]
    trained: "Train"
    server: S3Server
    client: Any
    proxy: FaultyProxy
    folder: Path
    environment: pytest.MonkeyPatch

    def train(self, machine: str, *more: str | Path, output: str | Path = "") -> "Ended":
        """Train on the machine of this name."""
        (self.folder / machine).mkdir(exist_ok=True)
        self.environment.setenv("XDG_CACHE_HOME", str(self.folder / machine))
        return self.trained([*self.command, *more], output or self.uri)

    def work(self, machine: str) -> Path:
        """Return the run's folder on a machine."""
        (found,) = (self.folder / machine / "latent-pmrf" / "twins").glob("*/*")
        return found

    @property
    def prefix(self) -> str:
        """What the keys of the run begin with."""
        return self.uri.removeprefix("s3://tests/")

    def stored(self) -> dict[str, int]:
        """Return the length of everything in the bucket below the run, by name."""
        pages = self.client.get_paginator("list_objects_v2")
        return {
            one["Key"].removeprefix(f"{self.prefix}/"): one["Size"]
            for page in pages.paginate(Bucket="tests", Prefix=f"{self.prefix}/")
            for one in page.get("Contents", ())
        }

    def fetched(self) -> Path:
        """Copy the run out of the bucket, by other code than the program's own."""
        folder = self.folder / "fetched"
        for name in self.stored():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            target = str(folder / name)
            self.client.download_file("tests", f"{self.prefix}/{name}", target)
        return folder


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """A tiny flow of eight steps, of which there is nothing yet."""
    monkeypatch.setattr(lease, "SECONDS", -1.0)  # what this process held before counts as given up
    command, train = (request.getfixturevalue(name) for name in ("command", "train"))
    uri = f"s3://tests/bucket-runs/{next(NUMBERS)}/run"
    s3_proxy.harmless()
    client = s3_server.client()
    yield Run(uri, list(command), train, s3_server, client, s3_proxy, tmp_path, monkeypatch)
    s3_proxy.harmless()


def assert_same_run(mine: Path, expected: Path) -> None:
    """Assert that two runs are one to the bit: numbers, averages, moments, weights."""
    theirs, ours = digests(expected), digests(mine)
    weights = {name for name in theirs if name.endswith(".safetensors")}

    assert log(mine) == log(expected)
    assert weights == {name for name in ours if name.endswith(".safetensors")}
    assert {name: ours[name] for name in weights} == {name: theirs[name] for name in weights}


def test_a_run_goes_on_on_another_machine_as_if_nothing_had_been(run: Run, finished: Path) -> None:
    """With an empty disk, to the bit: checkpoints, log, network; and MLflow's run is the same."""
    first = run.train("one", *FOUR)
    token = described(run.work("one") / "log.jsonl")["token"]
    ended = run.train("two")
    local = run.fetched()

    assert first.code == ended.code == 0, first.said + ended.said
    assert f"step 4: saved and uploaded {run.uri}/{FOURTH} in " in first.said
    assert f"resumed from {run.uri}/{FOURTH} to the bit" in ended.said
    assert described(local / "log.jsonl")["token"] == token
    assert_same_run(local, finished)
    assert all(OWNER[1].encode() not in path.read_bytes() for path in files_below(local))
    assert OWNER[1] not in first.said + ended.said
    mine, expected = (
        {name for name in names if not name.startswith((".state/", ".tracking/"))}
        for names in (run.stored(), digests(finished))
    )
    assert mine == expected


@pytest.mark.parametrize(
    "code", ["ExpiredToken", pytest.param("AccessDenied", marks=pytest.mark.slow)]
)
def test_credentials_that_end_in_mid_run_leave_the_checkpoint_for_the_next_start(
    code: str, run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After bounded retries it says what to do and where the checkpoint is; that is uploaded."""
    monkeypatch.setattr(retries, "wait", lambda _: None)
    status = 403 if code == "AccessDenied" else 400
    first = Fault(method="PUT", path=f"{EIGHTH}/optimizer", status=status, code=code)
    first.before = lambda: run.proxy.faults.append(Fault(times=MANY, status=status, code=code))
    run.proxy.faults.append(first)
    ended = run.train("here")
    kept, tried = run.work("here") / EIGHTH, len(run.proxy.seen)
    run.proxy.harmless()
    stored = run.stored()
    again = run.train("here")

    assert ended.code == 1
    assert ended.said.count("error:") == 1
    assert "have expired; renew them" in ended.said or "need the permission s3:Put" in ended.said
    assert f"The checkpoint is kept in {kept}, and the same command uploads it" in ended.said
    assert tried < 200
    assert f"{EIGHTH}/manifest.json" not in stored
    assert again.code == 0, again.said
    assert f"{run.uri}/{EIGHTH} is uploaded, as it was kept in {kept}" in again.said
    assert "complete already: 8 of 8 steps" in again.said
    assert_same_run(run.fetched(), finished)


def test_killed_in_mid_upload_nothing_half_is_visible_and_nothing_is_left(
    run: Run, finished: Path
) -> None:
    """SIGKILL between two parts: another machine goes on from the last whole checkpoint.

    The parts that had come are removed.
    """
    run.train("one", *FOUR)
    options = [*map(str, run.command[1:]), "--no-track", "--output", run.uri]
    cache = {"XDG_CACHE_HOME": str(run.folder / "one")}
    training = Preloaded("tests.support.small_parts", options, run.folder, **cache)
    third = Fault(method="PUT", path=f"{EIGHTH}/ema-0.99/model.safetensors?", skip=2, reset=True)
    third.before = training.kill
    run.proxy.faults.append(third)
    training.communicate()
    killed = run.stored()
    uploads = run.client.list_multipart_uploads(Bucket="tests", Prefix=run.prefix)
    ended = run.train("two")

    assert training.returncode == -signal.SIGKILL
    assert [name for name in killed if "/.unfinished/" in name]
    assert uploads["Uploads"]
    assert f"{EIGHTH}/manifest.json" not in killed
    assert ended.code == 0, ended.said
    assert f"resumed from {run.uri}/{FOURTH}" in ended.said
    assert_same_run(run.fetched(), finished)
    assert "Uploads" not in run.client.list_multipart_uploads(Bucket="tests", Prefix=run.prefix)


def test_a_second_machine_is_refused_and_told_who_has_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before anything is trained, and changes nothing."""
    monkeypatch.setattr(lease, "SECONDS", 60.0)
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    monkeypatch.setattr(lease, "LOOKS", 0.3)
    with exclusive(path_of(run.uri) / ".state"):
        ended = run.train("two")
        left = run.stored()

    assert ended.code == 1
    assert f"{run.uri} is being written by another process (" in ended.said
    assert all(name.startswith(".state/lock/") for name in left)


def test_a_dry_run_leaves_nothing_in_the_bucket_and_names_the_missing_permission(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says where the run would go on; with credentials that may only read it ends, as a run."""
    empty = run.train("here", "--dry-run")
    nothing = run.stored()
    run.train("here", *FOUR)
    before, there = run.stored(), digests(run.folder / "here")
    ended = run.train("here", "--dry-run")
    after = run.stored()
    use(monkeypatch, run.server.endpoint, READER)
    refused = [run.train("here", *more) for more in ([], ["--dry-run"])]

    assert empty.code == ended.code == 0, empty.said + ended.said
    assert nothing == {}
    assert before == after
    assert f"It would go on from {run.uri}/{FOURTH}" in ended.said
    assert digests(run.folder / "here") == there
    for one in refused:
        assert one.code == 1
        assert "PutObject was refused; the credentials need the permission s3:PutObject" in one.said


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3:/tests/run", "give a local path, or s3://bucket/prefix"),
        ("s3://no-such-bucket/run", "there is no bucket no-such-bucket"),
    ],
)
def test_an_output_that_is_no_place_ends_the_run_before_it_begins(
    uri: str, said: str, run: Run
) -> None:
    """Malformed URIs and missing buckets."""
    for more in ([], ["--dry-run"]):
        ended = run.train("here", *more, output=uri)
        assert ended.code in (1, 2)
        assert said in ended.said
        assert "step 0" not in ended.said


def test_a_folder_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    """Two runs in one --work would take each other's checkpoints, as would a run in no bucket."""
    (tmp_path / "own" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / ".state").mkdir(parents=True)
    (tmp_path / "other" / ".state" / "output").write_text("s3://tests/other")

    for name, said in (("own", "holds a run that is in no"), ("other", "the run s3://tests/other")):
        ended = run.train("here", "--work", tmp_path / name)
        assert ended.code == 2
        assert f"--work {tmp_path / name}" in ended.said
        assert said in ended.said


@pytest.fixture(scope="module")
def there(finished: Path, s3_proxy: FaultyProxy, s3_server: S3Server) -> str:
    """The finished run, in the bucket as a copy by other tools."""
    client = s3_server.client()
    for name in digests(finished):
        client.upload_file(str(finished / name), "tests", f"copied/run/{name}")
    return "s3://tests/copied/run"


@pytest.mark.slow
def test_a_fork_of_a_run_in_a_bucket_is_the_fork_of_its_local_copy(
    run: Run, finished: Path, there: str, tmp_path: Path
) -> None:
    """From a run and from a checkpoint, to a local folder and to the bucket; it can go on there."""
    longer = ["--max-steps", "10", "--resume"]
    run.train("here", *longer, finished, output=tmp_path / "expected")
    run.train("here", *longer, there, output=tmp_path / "local")
    ended = run.train("here", *longer, f"{there}/{EIGHTH}")
    again = run.train("here", *longer, there)
    refused = run.train("here", *longer, f"{there}/network", output=tmp_path / "other")

    assert f"a run of its own, forked from {there}/{EIGHTH} to the bit" in ended.said
    assert again.code == 0, again.said
    assert "complete already: 10 of 10" in again.said
    for fork in (tmp_path / "local", run.fetched()):
        assert_equal(saved_weights(fork, 10), saved_weights(tmp_path / "expected", 10))
    assert not (run.work("here") / ".state" / "other").exists()
    assert refused.code == 2
    assert f"no complete checkpoint in {there}/network" in refused.said


@pytest.mark.parametrize(
    "file",
    ["ema-0.99/model.safetensors", pytest.param("manifest.json", marks=pytest.mark.slow)],
)
def test_the_older_checkpoint_is_taken_for_a_damaged_one(file: str, run: Run) -> None:
    """The damaged one is moved aside in the bucket."""
    run.train("one")
    key = f"{run.prefix}/{EIGHTH}/{file}"
    run.client.put_object(Bucket="tests", Key=key, Body=b"{}")
    ended = run.train("two")

    assert ended.code == 0, ended.said
    assert f"the checkpoint {run.uri}/{EIGHTH} is damaged (" in ended.said
    assert f"resumed from {run.uri}/{FOURTH} to the bit" in ended.said
    assert f"checkpoints/damaged-step-00000008/{file}" in run.stored()


def test_weights_to_begin_with_may_be_in_the_bucket(
    there: str,
    finished: Path,
    command: list[str | Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run and a checkpoint the averages, of a folder its own; what is missing is named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    preset = flow_config.PRESETS["tiny"]
    loop = replace(preset.loop, output=str(tmp_path / "run"))
    config = replace(preset, model="tiny", latents=str(command[-1]), loop=loop)
    flow = FlowTask(config, torch.device("cpu"))
    average = f"{EIGHTH}/ema-0.99"
    places = {"": average, FOURTH: f"{FOURTH}/ema-0.99", f"{EIGHTH}/model": f"{EIGHTH}/model"}
    for below, weights in {**places, "network": average}.items():
        digest = begin_with(flow, f"{there}/{below}".rstrip("/"))
        assert digest == weights_digest(load_checkpoint(finished / weights)[1])
    with pytest.raises(UserError, match=f"{there}/nothing: there is no such file"):
        begin_with(flow, f"{there}/nothing")


def test_all_that_a_run_reads_may_be_in_the_bucket(run: Run, tmp_path: Path) -> None:
    """Sets through a cache, networks, weights of metrics, the configuration: the run is one."""
    files, lpips = (
        write_files(tmp_path / "files", size=32),
        write_lpips(tmp_path / "files" / "lpips"),
    )
    for name in digests(tmp_path / "files"):
        run.client.upload_file(str(tmp_path / "files" / name), "tests", f"files/{name}")
    run.command[:] = [*TINY, "--max-steps", "1", "--validate-every", "1", "--sampling-steps", "1"]
    options = {**asdict(files), "lpips": str(lpips)}
    del options["regressor"]
    local = [word for name, path in options.items() for word in (f"--{name}", path)]
    run.train("here", *local, output=tmp_path / "local")
    saved = (tmp_path / "local" / "config.json").read_text()
    config = saved.replace(f"{tmp_path}/files", "s3://tests/files")
    run.client.put_object(Bucket="tests", Key="files/config.json", Body=config.encode())
    run.command[:] = ["trainers.flow", "--config", "s3://tests/files/config.json"]
    ended = run.train("here", "--cache", tmp_path / "cache", output=tmp_path / "there")

    assert ended.code == 0, ended.said
    assert "lpips" in ended.said
    assert log(tmp_path / "there") == log(tmp_path / "local")
    assert_equal(saved_weights(tmp_path / "there", 1), saved_weights(tmp_path / "local", 1))


@pytest.mark.parametrize("name", ["vae", pytest.param("predictor", marks=pytest.mark.slow)])
def test_the_other_trainers_leave_their_networks_in_the_bucket(
    name: str, run: Run, tmp_path: Path
) -> None:
    """Where `--vae` and `--predictor` of the flow take them from, and with their pictures."""
    images, option = write_image_set(tmp_path / "images", size=64), {"vae": "--data"}
    run.command[:] = [f"trainers.{name}", *SMOKE, "--workers", "0", "--max-steps", "1"]
    run.command += ["--validate-every", "1", option.get(name, "--images"), images]
    ended = run.train("here")
    config = FlowConfig(**{name: f"{run.uri}/{name}"})

    assert ended.code == 0, ended.said
    assert load_networks(config, torch.device("cpu")).digests.keys() == {name}
    assert "samples/step-00000001.png" in run.stored()


def test_the_log_and_what_waits_for_mlflow_go_along(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    """To another machine, and away again once it has arrived; only a longer log here stays."""
    s3_proxy.harmless()
    there = open_folder("s3://tests/run-files/run")
    one, two = tmp_path / "one", tmp_path / "two"
    waiting = Path(".tracking/token/files/1/val/pictures.png")
    for name, data in {"log.jsonl": b"1\n", waiting: b"png", ".tracking/lock": b""}.items():
        write_bytes(one / name, data)
    write_bytes(two / "log.jsonl", b"of an older start\n")
    write_bytes(two / ".tracking" / "other" / "sent.json", b"{}")
    files = RunFiles(one, there)
    files.send()
    RunFiles(two, there).bring()

    assert (two / "log.jsonl").read_bytes() == b"1\n"
    assert [path.relative_to(two) for path in files_below(two / ".tracking")] == [waiting]
    (one / waiting).unlink()
    write_bytes(one / "log.jsonl", b"1\n2\n")
    files.bring()
    assert (one / "log.jsonl").read_bytes() == b"1\n2\n"
    files.send()
    assert [(entry.name, entry.size) for entry in there.list()] == [("log.jsonl", 4)]


def test_the_last_and_the_best_in_the_bucket_are_kept(
    s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """By the numbers in the bucket, on a machine that has none; incomplete ones before them go."""
    s3_proxy.harmless()
    where = path_of("s3://tests/kept/checkpoints")
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.3), (40, None), (50, None)):
        name = f"step-{step:08d}"
        write_bytes(tmp_path / name / "record.json", pretty_json({"step": step}))
        assert seal(tmp_path / name) == ""
        if loss is not None:
            saved = {"metrics": {"loss": loss}, "sha256": digest({"loss": loss})}
            write_bytes(tmp_path / name / METRICS, pretty_json(saved))
        for path in (tmp_path / name).iterdir():
            write_bytes(where / name / path.name, path.read_bytes())
    (where / "step-00000030" / MANIFEST).unlink()
    store = CopiedStore(where, tmp_path / "empty", everyone())
    Checkpoints(store, keep_last=2, keep_best=1, best="-loss").prune()

    assert [path.name for path in where.iterdir()] == [
        "step-00000020",
        "step-00000040",
        "step-00000050",
    ]


@pytest.mark.slow
def test_machines_that_share_nothing_but_the_bucket_are_one_run(run: Run, finished: Path) -> None:
    """Two, each with a disk of its own, save, and go on with other disks, which are empty.

    The curve is that of one process, up to the order of sums; each uploads what it alone has.
    """

    def train_on(disks: Sequence[str], *more: str) -> list[str]:
        group = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = str(free_port())
        options = [*run.command[1:], "--zero-stage", "2", "--no-track", *more, "--output", run.uri]
        started = []
        for number, disk in enumerate(disks):
            own = {"RANK": str(number), "XDG_CACHE_HOME": str(run.folder / disk)}
            (run.folder / disk).mkdir()
            started.append(Preloaded("trainers.flow", options, run.folder, **group, **own))
        said = ["".join(one.communicate()) for one in started]
        assert [one.returncode for one in started] == [0, 0], said
        return said

    train_on("ab", *FOUR)
    parts = [run.work(disk).glob(f"{FOURTH}/engine/state/*") for disk in "ab"]
    mine, other = [sorted(path.name for path in found) for found in parts]
    said = train_on("cd")
    local = run.fetched()

    assert "zero_pp_rank_0_mp_rank_00_optim_states.pt" in mine
    assert other == ["zero_pp_rank_1_mp_rank_00_optim_states.pt"]
    assert f"resumed from {run.uri}/{FOURTH} to the bit" in said[0]
    assert damage(local / EIGHTH) == damage(local / FOURTH) == ""
    same_curve(log(local), log(finished), rel=1e-4)


def test_machines_upload_what_each_has_and_get_what_each_lacks(
    s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Two with a disk each: a checkpoint counts when both have stored their files, not before.

    What one of them was refused to store, both store at their next start; if a disk is gone
    meanwhile, the checkpoint is left out, and the user is told.
    """
    s3_proxy.harmless()
    for step in (8, 12):
        path = f"step-{step:08d}/engine/rank-1"
        s3_proxy.faults.append(
            Fault(times=2, method="PUT", path=path, status=400, code="ExpiredToken")
        )
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = ["s3://tests/two-machines/run", tmp_path]
    started = [
        Preloaded("tests.support.two_machines", words, tmp_path, RANK=str(number), **group)
        for number in range(2)
    ]
    outputs = [one.communicate() for one in started]
    s3_proxy.harmless()
    said = [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    assert [one.returncode for one in started] == [0, 0], outputs
    for number, (first, failed, old, sent, whole, again, left, local) in enumerate(said):
        four = {"model": 7, "rank-0": 4, "rank-1": 4, "manifest.json": old[2]["manifest.json"]}
        eight = {"model": 7, "rank-0": 8, "rank-1": 8, "manifest.json": sent[2]["manifest.json"]}
        assert first == ["", ["step-00000004"]]
        assert "step-00000008 could not be uploaded" in failed
        assert f"is kept in {tmp_path}/first-" in failed
        assert old == ["step-00000004", "", four]
        assert sent == whole == ["step-00000008", "", eight]
        assert "step-00000012 could not be uploaded" in again
        assert left == ["step-00000008", "", eight]
        assert "not all ranks see this folder; give one that all machines share, or" in local
        assert ("is not whole on the machines of this run" in outputs[number][1]) == (number == 0)
