"""The verbs for files do the same to a path on a disk and to one in a bucket."""

import hashlib
import io
import os
from pathlib import Path, PurePosixPath

import pytest

from infra import paths
from infra.errors import UsageError, UserError
from infra.folders.bucket_path import BucketPath
from infra.paths import AnyPath, path_of
from infra.s3 import uploading
from infra.s3.folder import S3Folder
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import READER, S3Server, use

DATA = bytes(range(256)) * 16


@pytest.fixture(params=["disk", "bucket"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AnyPath:
    """A folder without anything in it, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    if request.param == "disk":
        return tmp_path / "folder"
    request.getfixturevalue("s3_proxy").harmless()
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    return path_of(f"s3://tests/paths/{name}")


@pytest.fixture
def bucket(tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> BucketPath:
    """The same in a bucket alone."""
    s3_proxy.harmless()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return BucketPath("tests", f"paths/{tmp_path.name}")


def write(folder: AnyPath, *names: str) -> None:
    """Write files that hold their names."""
    for name in names:
        paths.write_bytes(folder / name, name.encode())


def test_what_is_written_is_read(folder: AnyPath) -> None:
    """Whole, by ranges, as text, hashed and measured; the folder above comes with the file."""
    path, digest = folder / "a" / "file.bin", hashlib.sha256(DATA).hexdigest()

    assert paths.write_bytes(path, DATA) == digest == paths.sha256(path)
    assert path.read_bytes() == paths.read_if_there(path) == DATA
    assert paths.size(path) == len(DATA)
    assert paths.has_size(path, len(DATA))
    assert not paths.has_size(path, 1)
    with paths.opened(path, 100) as file:
        assert file.read(3) == DATA[:3]
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:]
        assert file.seek(1000) == 1000
        assert file.read(2000) == DATA[1000:3000]
    with paths.fetched(path) as local:
        assert local.read_bytes() == DATA
    paths.write_bytes(path, b"text")
    assert path.read_text() == "text"


def test_what_is_not_there_is_missing(folder: AnyPath) -> None:
    """By the exception that a disk raises, or by None."""
    path = folder / "none"

    assert paths.read_if_there(path) is None
    assert paths.size(path) is None
    assert [path.exists(), path.is_file(), path.is_dir()] == [False] * 3
    assert paths.sizes(folder) == {}
    assert paths.glob(folder, "*") == []
    path.unlink(missing_ok=True)
    for act in (path.read_bytes, path.unlink, lambda: paths.sha256(path)):
        with pytest.raises(FileNotFoundError):
            act()
    with pytest.raises(FileNotFoundError):
        list(paths.read_all([path]))


def test_a_folder_is_listed_like_one_of_a_disk(folder: AnyPath) -> None:
    """Names just below, of files and folders; patterns part by part; lengths of files."""
    write(folder, "b.tar", "a.tar", "a.json", "more/c.tar", "more/deep/d.tar", "with [x] e\u0301+%")
    names = ["a.json", "a.tar", "b.tar", "more", "with [x] e\u0301+%"]

    assert sorted(path.name for path in paths.children(folder)) == names
    assert paths.sizes(folder) == {name: len(name.encode()) for name in names if name != "more"}
    for pattern, found in {
        "*.tar": ["a.tar", "b.tar"],
        "a.*": ["a.json", "a.tar"],
        "[ab].tar": ["a.tar", "b.tar"],
        "more/?.tar": ["more/c.tar"],
        "*/*.tar": ["more/c.tar"],
        "more": ["more"],
        "none": [],
        "*/none": [],
    }.items():
        assert paths.glob(folder, pattern) == [folder / name for name in found], pattern
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "a.tar").is_file()
    assert not (folder / "a.tar").is_dir()
    assert (folder / "more").exists()
    assert not (folder / "mo").exists()


def test_files_are_read_in_the_order_asked_for(folder: AnyPath) -> None:
    """However many are under way."""
    names = [f"{number:03d}" for number in range(40)]
    write(folder, *names)

    assert [data.decode() for data in paths.read_all([folder / name for name in names])] == names
    assert list(paths.read_all([])) == []


def test_an_unfinished_file_does_not_appear(folder: AnyPath) -> None:
    """An error leaves the old one, and nothing else."""
    path = folder / "file"
    paths.write_bytes(path, b"old")

    def stopped_in_atomic_file() -> None:
        with paths.atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    def stopped_in_written_by_name() -> None:
        with paths.written_by_name(path) as local:
            local.write_bytes(b"new")
            raise RuntimeError

    for stopped in (stopped_in_atomic_file, stopped_in_written_by_name):
        with pytest.raises(RuntimeError):
            stopped()
    assert path.read_bytes() == b"old"
    assert [one.name for one in paths.children(folder)] == ["file"]
    with paths.atomic_file(path) as file:
        file.write(b"newer")
    assert path.read_bytes() == b"newer"
    with paths.written_by_name(path) as local:
        local.write_bytes(b"newest")
    assert path.read_bytes() == b"newest"
    with paths.written_in_place(folder / "below" / "loose") as local:
        local.write_bytes(b"loose")
    assert (folder / "below" / "loose").read_bytes() == b"loose"


def test_files_move(folder: AnyPath) -> None:
    """Those that are there; the same call finishes what a kill left."""
    write(folder, "from/a", "from/b", "to/b")
    paths.move_all(folder / "from", folder / "to", ["a", "b", "none"])
    paths.move_all(folder / "from", folder / "to", ["a", "b", "none"])

    assert not (folder / "from" / "a").exists()
    assert paths.sizes(folder / "from") == {}
    assert (folder / "to" / "a").read_bytes() == b"from/a"
    assert (folder / "to" / "b").read_bytes() == b"from/b"
    paths.move(folder / "to" / "a", folder / "a")
    assert paths.sha256(folder / "a") == hashlib.sha256(b"from/a").hexdigest()


def test_a_file_moves_in_one_place_only(bucket: BucketPath, tmp_path: Path) -> None:
    """From a disk to a bucket it would have to be sent, which `atomic_file` does."""
    with pytest.raises(TypeError, match="not in one place"):
        paths.move(tmp_path / "a", bucket / "a")


def test_a_moved_file_keeps_its_digest(bucket: BucketPath) -> None:
    """The copy of the server has the metadata, by which an equal file is not sent again."""
    write(bucket, "a")
    paths.move(bucket / "a", bucket / "b")
    head = uploading.headed(S3Folder("tests", bucket.key)._of("b"))

    assert head["Metadata"] == {"sha256": hashlib.sha256(b"a").hexdigest()}


def test_a_tree_is_removed_and_its_neighbours_stay(folder: AnyPath) -> None:
    """A name that begins the same is another one."""
    write(folder, "tree/a", "tree/b/c", "tree.json", "tree2/a")
    paths.remove_tree(folder / "tree")
    paths.remove_tree(folder / "none")

    assert not (folder / "tree").exists()
    assert not (folder / "tree" / "b").exists()
    assert paths.sizes(folder) == {"tree.json": 9}
    assert paths.sizes(folder / "tree2") == {"a": 7}


def test_what_killed_processes_left_is_removed(folder: AnyPath, s3_server: S3Server) -> None:
    """On a disk temporary names; in a bucket recorded uploads: what is finished stays."""
    write(folder, "deep/file")
    if isinstance(folder, Path):
        (folder / "deep" / ".file.abc.partial").write_bytes(b"half")
    else:
        place = {"Bucket": "tests", "Key": f"{folder.key}/deep/large"}
        upload = s3_server.client().create_multipart_upload(**place)["UploadId"]
        record = b'{"Bucket": "tests", "Key": "%s", "UploadId": "%s"}'
        mark = record % (place["Key"].encode(), upload.encode())
        paths.write_bytes(folder / "deep" / ".unfinished" / "x", mark)
    paths.remove_partial(folder)
    paths.remove_partial(folder / "none")

    assert [path.name for path in (folder / "deep").iterdir()] == ["file"]
    if isinstance(folder, BucketPath):
        assert [one.name for one in folder.folder.list("deep/.unfinished")] == []
        uploads = s3_server.client().list_multipart_uploads(Bucket="tests", Prefix=folder.key)
        assert uploads.get("Uploads", []) == []


def test_a_trial_of_writing_leaves_nothing(folder: AnyPath) -> None:
    """Not even the folder."""
    paths.check_writable(folder / "deep")

    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    bucket: BucketPath, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the permission that is missing, or the part of the path that is no folder."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: a part of this path is a file"):
        paths.check_writable(tmp_path / "file" / "below")
    use(monkeypatch, s3_server.endpoint, READER)
    with pytest.raises(UserError, match=r"PutObject was refused.*s3:PutObject"):
        paths.check_writable(bucket)


def test_a_twin_on_this_machine_is_one_for_each_uri(bucket: BucketPath, tmp_path: Path) -> None:
    """And a folder of a disk is its own."""
    assert paths.local_twin(tmp_path / "x") == tmp_path / "x"
    assert paths.local_twin(bucket / "x") == paths.local_twin(bucket / "x")
    assert paths.local_twin(bucket / "x") != paths.local_twin(bucket / "y" / "x")
    assert paths.local_twin(bucket / "x").is_relative_to(tmp_path / "latent-pmrf" / "twins")


def test_without_a_home_what_may_be_fetched_again_goes_to_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container whose user has none."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null/home")

    assert paths.cache_folder().name == f"latent-pmrf-{os.getuid()}"


@pytest.mark.parametrize("key", ["a/b/file.tar.gz", "file", "a b/ä+%"])
def test_parts_of_a_path_are_those_of_a_path_on_a_disk(key: str) -> None:
    """Name, extension, folder above; with another name; below another."""
    path, twin = BucketPath("tests", key), PurePosixPath(key)

    assert str(path) == f"s3://tests/{key}"
    assert path_of(str(path)) == path
    assert (path.name, path.stem, path.suffix) == (twin.name, twin.stem, twin.suffix)
    assert str(path.parent / "x").endswith(str(twin.parent / "x").removeprefix("."))
    assert path.with_name("x").key == str(twin.with_name("x"))
    assert path.with_suffix(".x").key == str(twin.with_suffix(".x"))
    assert path.relative_to(path.parent) == PurePosixPath(twin.name)
    assert path.absolute() == path.resolve() == path
    with pytest.raises(ValueError, match="below"):
        path.relative_to(BucketPath("other"))


def test_the_whole_bucket_is_a_path() -> None:
    """Its name is the bucket's, and it is its own parent."""
    whole = path_of("s3://tests")

    assert (str(whole), whole.name, whole.parent) == ("s3://tests", "tests", whole)
    assert str(whole / "a" / "b") == "s3://tests/a/b"


@pytest.mark.parametrize("uri", ["S3://tests/x", "s3:/tests/x", "gs://tests/x", "s3://te", "s3://"])
def test_what_is_no_path_is_refused(uri: str) -> None:
    """And never taken for a folder of the working directory."""
    with pytest.raises(UsageError, match=r"s3://bucket/prefix|no name of a bucket"):
        path_of(uri)


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(bucket: BucketPath) -> None:
    """The reader is told."""
    paths.write_bytes(bucket / "file", DATA)
    with paths.opened(bucket / "file", 512) as file:
        assert file.read(100) == DATA[:100]
        paths.write_bytes(bucket / "file", DATA[::-1])
        with pytest.raises(UserError, match="was replaced while it was read"):
            file.read(2000)


def test_an_absent_file_costs_one_request(bucket: BucketPath, s3_proxy: FaultyProxy) -> None:
    """Once the bucket is known to be there; a refusal is still asked about."""
    write(bucket, "a")
    s3_proxy.harmless()
    assert not (bucket / "none").is_file()
    assert paths.read_if_there(bucket / "none") is None
    assert [seen.method for seen in s3_proxy.seen] == ["HEAD", "GET"]
    s3_proxy.faults.append(Fault(method="HEAD", status=403))
    assert (bucket / "a").is_file()
