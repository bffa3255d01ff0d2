"""Paths in a bucket are what the same paths on a disk would be."""

from infra.paths import path_of, remove_tree, write_bytes
from tests.support.faulty_proxy import FaultyProxy


def test_a_folder_is_gone_with_the_last_file_in_it(s3_proxy: FaultyProxy) -> None:
    """Also where the store still lists its name, as SeaweedFS does."""
    s3_proxy.harmless()
    top = path_of("s3://tests/gone")
    for name in ("first/one", "first/below/two", "second/three", "file"):
        write_bytes(top / name, b"")
    remove_tree(top / "first")

    assert list(top.iterdir()) == [top / "file", top / "second"]
    assert list(top.glob("*/*")) == [top / "second" / "three"]
    assert not (top / "first").exists()
