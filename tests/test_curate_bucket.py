"""A curation whose output is in a bucket: the same set, and nothing of it on the machine's disk."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets import shards
from infra.config import pretty_json, to_dict
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, glob, path_of, sha256, write_bytes
from infra.s3 import retries
from infra.s3.retries import Patience
from pipelines.curate import __main__ as command
from pipelines.curate import pack
from pipelines.curate.estimate import estimate
from pipelines.curate.job import Curation
from pipelines.curate.verify import problems
from tests.conftest import PATIENCE, free_port, picture, program
from tests.support import elsewhere
from tests.support.curation_jobs import InProcess, config, published, run
from tests.support.faulty_proxy import FaultyProxy
from tests.support.leaks import is_in, leaks
from tests.support.s3_server import OWNER, READER, S3Server, use

pytest_plugins = ["tests.support.tracking_stores"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("room_on_disk"),  # with little, no PNGs are kept
]
IMAGES = 3
JOB = {"samples_per_shard": 12}
SPEAKS_OF_TIME = {"report.html", ".curate/times.json"}
KILLS = (  # before which request the job is killed, one after the other, each on another machine
    "1 PUT *.curate/lock/* HTTP/1.1",
    "1 PUT *.curate/candidates.json *",
    "1 PUT *.curate/attempts/* *",
    "1 PUT *.curate/kept-*.pngs *",
    "1 PUT *.curate/scores-*part-*",
    "2 DELETE *.curate/attempts/*",
    "1 PUT *.curate/cut-*/plan.parquet *",
    "2 PUT *.curate/cut-*.tar *",
    "2 PUT *.curate/cut-*.done.json *",
    "1 PUT *.curate/cut-*/index.parquet *",
    "1 PUT *.curate/cut-*/manifest.json *",
    "1 PUT *.curate/held_out.json *",
    "1 PUT *.curate/published.json *",
    "1 DELETE */set/manifest.json *",
    "1 PUT */set/scores.parquet *",
    "1 DELETE *.curate/cut-*",
    "1 PUT */set/manifest.json *",
    "1 DELETE *.curate/cut-*/manifest.json *",
    "2 DELETE *.curate/cut-*.done.json *",
    "1 DELETE *.curate/kept-*",
    "1 PUT */set/report.html *",
    "1 PUT *.curate/finished.json *",
    "1 PUT *.curate/lock/* HTTP/1.1",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(IMAGES):
        picture(number, 160, 128).save(folder / f"photo-{number}.png")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of the set that is made on a disk."""
    output = tmp_path_factory.mktemp("disk") / "set"
    run(source, output, **JOB)
    return published(output)


@pytest.fixture
def output(
    tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AnyPath]:
    """A folder in the bucket; nothing is written to this machine but caches and temporary files."""
    s3_proxy.harmless()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    yield path_of(f"s3://tests/{tmp_path.name}/set")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "machines", "disk"}


def objects(server: S3Server, output: AnyPath) -> dict[str, bytes]:
    """Return everything in the bucket below an output, but for leases and the output's own name."""
    client, prefix = server.client(), f"{str(output).removeprefix('s3://tests/')}/"
    there = client.list_objects_v2(Bucket="tests", Prefix=prefix).get("Contents", [])
    names = [one["Key"] for one in there if "/.curate/lock/" not in one["Key"]]
    contents = [client.get_object(Bucket="tests", Key=name)["Body"].read() for name in names]
    return {
        name.removeprefix(prefix): content.replace(str(output).encode(), b"OUTPUT")
        for name, content in zip(names, contents, strict=True)
    }


def timeless(found: dict[str, bytes]) -> dict[str, bytes]:
    """Return what does not depend on when it was made; of the rest the names."""
    return {name: b"" if name in SPEAKS_OF_TIME else data for name, data in found.items()}


@pytest.fixture(scope="module")
def made(source: Path, s3_server: S3Server) -> AnyPath:
    """Make the set in the bucket, undisturbed; tests leave it as it is."""
    output = path_of("s3://tests/undisturbed/set")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, s3_server.endpoint)
        run(source, output, **JOB)
    return output


@pytest.fixture(scope="module")
def undisturbed(made: AnyPath, s3_server: S3Server) -> dict[str, bytes]:
    """Return all objects of the job that nothing disturbed."""
    return objects(s3_server, made)


def test_the_set_is_the_one_that_is_made_on_a_disk(
    source: Path, expected: dict[str, bytes], output: AnyPath, s3_server: S3Server, tmp_path: Path
) -> None:
    """Byte for byte, also after another cut; a rerun makes nothing; --overwrite makes it anew."""
    assert run(source, output, **JOB).count("score") == IMAGES
    assert published(output) == expected
    assert list(problems(output)) == []
    assert run(source, output, **JOB).units == []
    other = run(source, output, **JOB, threshold=45.0)
    assert other.count("score") == 0
    assert published(output) != expected
    assert run(source, output, **JOB, overwrite=True).count("score") == IMAGES
    assert published(output) == expected
    left = {
        name.split("/")[1].partition("-")[0] for name in objects(s3_server, output) if "/" in name
    }
    assert left == {
        *("candidates.json", "finished.json", "held_out.json", "listing.json", "published.json"),
        *("scores", "times.json"),
    }
    assert not any(OWNER[1].encode() in data for data in objects(s3_server, output).values())
    page = (output / "report.html").read_text()
    assert "data:image" in page
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize("kills", [KILLS[4::5], pytest.param(KILLS, marks=pytest.mark.slow)])
def test_a_killed_job_is_finished_by_another_machine(
    source: Path,
    undisturbed: dict[str, bytes],
    expected: dict[str, bytes],
    output: AnyPath,
    s3_server: S3Server,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    kills: tuple[str, ...],
) -> None:
    """SIGKILL at every kind of write, each time on a machine whose disk is empty."""
    use(monkeypatch, s3_server.endpoint)
    for number, event in enumerate(kills):
        machine = tmp_path / "machines" / str(number)
        ended = elsewhere.done(lambda: run(source, output, **JOB), machine, event)
        assert ended == -signal.SIGKILL, f"{event}: {(machine / 'log').read_text()[-2000:]}"
        assert shards.read_manifest(output) is None or published(output) == expected, event
    last = tmp_path / "machines" / "last"
    assert elsewhere.done(lambda: run(source, output, **JOB), last) == 0

    assert timeless(objects(s3_server, output)) == timeless(undisturbed)


@pytest.mark.slow
def test_a_killed_server_ends_the_job_with_a_sentence_and_the_next_one_finishes(
    source: Path,
    expected: dict[str, bytes],
    output: AnyPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server dies in mid-job and comes back, twice: once too late, once in time."""
    real, patience = pack.write_shard, Patience(unreachable=0.3)
    with S3Server(tmp_path / "disk") as server:
        use(monkeypatch, server.endpoint)

        def killing(*arguments: object) -> object:
            server.kill()
            monkeypatch.setattr(pack, "write_shard", real)
            return real(*arguments)  # type: ignore[arg-type]

        def waited(seconds: float) -> None:
            server.start()

        monkeypatch.setattr(pack, "write_shard", killing)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retries, "patience", lambda: patience)
            with pytest.raises(UserError) as stopped:
                run(source, output, **JOB)
        assert "cannot be reached; check that the store is up" in str(stopped.value)
        assert str(stopped.value).startswith(str(output))
        server.start()
        monkeypatch.setattr(pack, "write_shard", killing)
        monkeypatch.setattr(retries, "wait", waited)
        run(source, output, **JOB)

        assert published(output) == expected
        assert list(problems(output)) == []


@pytest.mark.usefixtures("output")
def test_files_that_are_damaged_in_the_bucket_are_made_again(
    source: Path, expected: dict[str, bytes], made: AnyPath, s3_server: S3Server
) -> None:
    """A shard with another byte, a shortened table, a manifest that is gone; and nothing else."""
    output, client, key = made, s3_server.client(), str(made).removeprefix("s3://tests/")
    shard = bytearray(expected["train-000000.tar"])
    shard[600] ^= 1
    client.put_object(Bucket="tests", Key=f"{key}/train-000000.tar", Body=bytes(shard))
    table = expected["index.parquet"][:-9]
    client.put_object(Bucket="tests", Key=f"{key}/index.parquet", Body=table)
    job = config(source, output, **JOB)

    assert command.verify([str(output)]) == 1
    client.delete_object(Bucket="tests", Key=f"{key}/manifest.json")
    assert sorted(Curation(job).repair(InProcess())) == [
        "index.parquet",
        "manifest.json",
        "train-000000.tar",
    ]
    assert published(output) == expected
    assert command.verify([str(output)]) == 0


def test_scores_are_exported_into_the_bucket_and_read_from_it(
    source: Path, made: AnyPath, output: AnyPath, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later set takes them by their URI; a set in the bucket can be excluded by its own."""
    scores = str(output.parent / "scores.json")
    assert command.main(["export-scores", str(made), scores]) == 0
    assert capsys.readouterr().out == f"{scores}: 27 scores\n"
    run(source, output, **JOB, scorer=scores, threshold=60.0)
    assert published(output).keys() == published(made).keys()
    with pytest.raises(UserError, match=r"no candidate was kept: .*excluded"):
        run(source, output.parent / "none", **JOB, exclude=(str(made),))


@pytest.mark.usefixtures("output")
def test_who_may_only_read_can_verify(
    made: AnyPath, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is told which permission a repair needs; a bucket that is not there is named."""
    use(monkeypatch, s3_server.endpoint, READER)
    assert command.main(["verify", str(made)]) == 0
    with pytest.raises(UserError, match=r"PutObject was refused; .* the permission s3:PutObject"):
        command.main(["verify", str(made), "--repair"])
    use(monkeypatch, s3_server.endpoint)
    with pytest.raises(UserError, match=r"^s3://no-bucket/x/manifest.json: there is no bucket"):
        command.main(["verify", "s3://no-bucket/x"])


@pytest.mark.usefixtures("output")
def test_another_set_or_other_files_are_refused_by_the_uri(source: Path, made: AnyPath) -> None:
    """As on a disk."""
    output = made
    with pytest.raises(UsageError, match=f"--output {output} holds a set of another config"):
        run(source, output, **JOB, size=32, stride=32)
    with pytest.raises(UsageError, match=f"--output {output.parent}: not empty and not a curated"):
        run(source, output.parent)


@pytest.mark.parametrize("is_trial", [False, True])
@pytest.mark.parametrize(
    ("uri", "credentials", "code", "said"),
    [
        ("s3:/tests/x", OWNER, 2, r"^s3:/tests/x: give a local path, or s3://bucket/prefix"),
        ("s3://x/set", OWNER, 2, r"^s3://x/set: 'x' is no name of a bucket"),
        ("s3://tests/x//y", OWNER, 2, "a part of the prefix is empty"),
        ("s3://no-bucket/x", OWNER, 1, r"^s3://no-bucket/x: there is no bucket no-bucket at http"),
        ("s3://tests/refused", READER, 1, "PutObject was refused.* permission s3:PutObject here"),
        ("s3://tests/refused", None, 1, "^s3://tests/refused: no AWS credentials were found; set"),
        ("s3://tests/refused", ("A", "B"), 1, "does not accept the access key"),
        ("down", OWNER, 1, "cannot be reached; check that the store is up and that AWS_ENDPOINT"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_refused_before_any_work(
    source: Path,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    uri: str,
    credentials: tuple[str, str] | None,
    code: int,
    said: str,
    is_trial: bool,
) -> None:
    """In one sentence, by a dry run too; nothing is written, nothing is read of the inputs."""
    use(monkeypatch, s3_server.endpoint, credentials)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if uri == "down":
        use(monkeypatch, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setattr(retries, "patience", lambda: Patience(unreachable=0.1))
        uri = "s3://tests/refused"
    job = ["--input", str(source / "nowhere"), "--output", uri, *["--dry-run"] * is_trial]
    with pytest.raises(UserError, match=said) as refused:
        command.main(job)

    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == code
    listed = s3_server.client().list_objects_v2(Bucket="tests", Prefix="refused")
    assert listed["KeyCount"] == 0
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_nothing(
    source: Path, made: AnyPath, output: AnyPath, s3_server: S3Server
) -> None:
    """Neither in the bucket nor on the disk; a set that is there stays as it is."""
    before = objects(s3_server, made)
    for place in (output, made):
        assert "nothing was written" in estimate(config(source, place), InProcess())

    assert objects(s3_server, output) == {}
    assert objects(s3_server, made) == before


def test_the_number_of_requests(source: Path, output: AnyPath, s3_proxy: FaultyProxy) -> None:
    """As pipelines/README.md says it: so many for a job, for each unit, and for each shard."""
    for samples in (12, 3):  # the second job cuts again
        s3_proxy.harmless()
        engine = run(source, output, samples_per_shard=samples)
        units, packed = engine.count("score"), engine.count("pack")
        assert packed >= 3
        assert len(s3_proxy.seen) <= 110 + 11 * units + 15 * packed
    s3_proxy.harmless()
    run(source, output, samples_per_shard=3)
    assert len(s3_proxy.seen) <= 20


def test_a_run_that_other_machines_finish_is_one_run(
    source: Path,
    output: AnyPath,
    s3_server: S3Server,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before MLflow hears of it, in the midst, when all was sent, and before the mark."""
    from mlflow import MlflowClient

    use(monkeypatch, s3_server.endpoint)
    (tmp_path / "machines").mkdir()
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'machines')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    kills = (
        "1 PUT *.curate/tracking/log.jsonl *",
        "1 PUT */set/report.html *",
        "2 PUT *.curate/tracking/log.jsonl *",
        "1 PUT *.curate/finished.json *",
        "",
    )
    for number, event in enumerate(kills):
        machine = tmp_path / "machines" / str(number)
        ended = elsewhere.done(lambda: run(source, output, **JOB, track=True), machine, event)
        assert ended == (-signal.SIGKILL if event else 0), (machine / "log").read_text()[-2000:]
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'latent-pmrf/curate'")
    (found,) = client.search_runs([experiment.experiment_id])
    (data,) = found.inputs.dataset_inputs

    assert (found.info.status, found.info.run_name) == ("FINISHED", "set")
    assert sha256(output / shards.MANIFEST).startswith(data.dataset.digest)
    assert json.loads(data.dataset.source)["uri"] == str(output)
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names == {"report.html", "manifest.json"}


@pytest.mark.slow
def test_the_command_killed_in_mid_job_is_finished_elsewhere_by_ray(
    source: Path,
    expected: dict[str, bytes],
    output: AnyPath,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers on this machine take the AWS settings of the driver; no key is in any output."""
    use(monkeypatch, s3_server.endpoint)
    options = config(source, output, **JOB)
    job = ["--config", tmp_path / "machines" / "job.json", "--workers", "2", "--no-track"]
    write_bytes(tmp_path / "machines" / "job.json", pretty_json(to_dict(options)))
    said = ""
    for machine in ("first", "second"):
        disk = tmp_path / "machines" / machine
        disk.mkdir(parents=True)
        places = {"XDG_CACHE_HOME": str(disk), "TMPDIR": str(disk), "RAY_TMPDIR": "/tmp"}
        process = program("pipelines.curate", job, disk, **places)
        if machine == "first":
            while not glob(output / ".curate", "scores-*/part-*"):
                assert process.poll() is None, process.communicate()
            process.kill()
        said += "".join(process.communicate(timeout=PATIENCE))
    assert process.returncode == 0, said

    assert published(output) == expected
    assert list(problems(output)) == []
    assert not is_in(OWNER[1], said)
    assert leaks(OWNER[1], [tmp_path]) == []
    assert not any(OWNER[1].encode() in data for data in objects(s3_server, output).values())
