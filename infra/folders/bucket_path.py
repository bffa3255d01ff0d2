"""A path in a bucket, with the methods of `pathlib.Path` that programs use.

A bucket has no folders: one is there as long as a key below it is. What a path is asked for is
asked of the server at once, and nothing is remembered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

from infra.folders.contract import Missing

if TYPE_CHECKING:
    from infra.s3.folder import S3Folder

WILD = frozenset("*?[")


@dataclass(frozen=True, order=True)
class BucketPath:
    """A key of a bucket, of an object or of what objects have in common before a slash."""

    bucket: str
    """Name of the bucket."""
    key: str = ""
    """The key, without a slash at its end; empty is the whole bucket."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: object) -> Self:
        parts = [part for part in (self.key, str(name).strip("/")) if part]
        return type(self)(self.bucket, "/".join(parts))

    @property
    def folder(self) -> "S3Folder":
        """The folder of this key."""
        from infra.s3.folder import S3Folder  # boto3 takes 0.2 s to import: only who needs it waits

        return S3Folder(self.bucket, self.key)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    @property
    def name(self) -> str:
        """The last part of the key; of a whole bucket its name."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def suffix(self) -> str:
        """The extension, with its dot."""
        return self._pure.suffix

    @property
    def stem(self) -> str:
        """The name without the extension."""
        return self._pure.stem

    @property
    def parent(self) -> Self:
        """The path above; the bucket's own parent is itself."""
        return type(self)(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Self:
        """Return the path of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> Self:
        """Return the path with another extension."""
        return self.with_name(self._pure.with_suffix(suffix).name)

    def relative_to(self, other: Self) -> PurePosixPath:
        """Return the rest of the key below another path.

        Raises:
            ValueError: this path is not below it.
        """
        if self.bucket != other.bucket:
            raise ValueError(f"{self} is not below {other}")
        return self._pure.relative_to(PurePosixPath(other.key))

    def absolute(self) -> Self:
        """Return the path itself: a URI means the same everywhere."""
        return self

    def resolve(self) -> Self:
        """Return the path itself: a bucket has no links."""
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder of a bucket is there when something is in it."""

    def exists(self) -> bool:
        """Tell whether there is an object of this key, or one below it."""
        return self.is_dir() or self.is_file()

    def is_file(self) -> bool:
        """Tell whether there is an object of this key."""
        return bool(self.key) and self.size() is not None

    def is_dir(self) -> bool:
        """Tell whether there is an object below this key."""
        return next(self.folder.beginning(1), None) is not None

    def is_symlink(self) -> bool:
        """Tell that this is no link: a bucket has none."""
        return False

    def size(self) -> int | None:
        """Return the length in bytes of the object of this key; None if there is none."""
        return self.parent.folder.size(self.name)

    def read_bytes(self) -> bytes:
        """Return all bytes of the object.

        Raises:
            Missing: which is a FileNotFoundError: there is none.
        """
        return self.parent.folder.read(self.name)

    def read_text(self) -> str:
        """Return the object as text, which is UTF-8.

        Raises:
            Missing: there is none.
            UnicodeDecodeError: it is no text.
        """
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object.

        Raises:
            Missing: there is none, unless that is ``missing_ok``.
        """
        if not missing_ok and self.size() is None:
            raise Missing(f"{self}: there is no such object; check the name")
        self.parent.folder.delete(self.name)

    def iterdir(self) -> Iterator[Self]:
        """Yield the objects and folders just below, sorted by name."""
        for name in self.folder.names():
            yield self / name

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yield the paths below that match, part by part, sorted; `**` is not understood."""
        first, _, rest = pattern.partition("/")
        if not WILD & set(first):
            found = iter([self / first])
        else:
            start = first[: min(first.index(sign) for sign in WILD & set(first))]
            names = self.folder.names(start)
            found = (self / name for name in names if fnmatchcase(name, first))
        for path in found:
            if rest:
                yield from path.glob(rest)
            elif WILD & set(first) or path.exists():
                yield path
