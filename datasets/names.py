"""Names of files: as text that every table can hold, and as the keys of images.

A file system and a tar hold names as bytes, which Python hands out as text with a lone surrogate
for each byte that is no UTF-8. Neither JSON nor parquet takes those, so they are escaped first.
"""

import re
from pathlib import PurePath, PurePosixPath

DRIVE = re.compile(r"^([A-Za-z]):")
NAME_RULE = (
    "a NAME has no dot, backslash, '=' or control character, no empty part, and no '/' at its ends"
)


def shown(name: str) -> str:
    r"""Return a name as text; a byte that is no UTF-8 is shown as ``\xNN``, in hex."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sample_key(path: PurePath, prefix: str = "") -> str:
    r"""Make a key from a path inside an input, whatever bytes its name has.

    The extension and a leading "/" go; dots, backslashes, the colon of a Windows drive and control
    characters become "_", so that no key leaves the folder it is unpacked in. A byte that is no
    UTF-8 becomes ``_xNN``.
    """
    stem = shown(PurePosixPath(path).with_suffix("").as_posix()).lstrip("/")
    stem = DRIVE.sub(r"\1_", stem)
    safe = "".join("_" if c in ".\\" or not c.isprintable() else c for c in stem)
    return f"{prefix}/{safe}" if prefix else safe


def is_own_name(name: str) -> bool:
    """Tell whether a name needs nothing but the loss of its extension and its dots to be a key.

    A name for which this is False (absolute, with "..", not UTF-8, ...) gives a key that says less.

    Args:
        name: as text, from `shown`.
    """
    plain = not name.startswith("/") and ".." not in name.split("/") and not DRIVE.match(name)
    return plain and "\\" not in name and "//" not in name and name.isprintable()


def is_valid_prefix(name: str) -> bool:
    """Tell whether a NAME of ``NAME=PATH`` may stand before keys: see `NAME_RULE`."""
    letters = all(c not in ".\\=" and c.isprintable() for c in name)
    return letters and all(name.split("/")) and not DRIVE.match(name)
