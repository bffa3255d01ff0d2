"""Secrets on the disk: files that their owner alone may read."""

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path

from infra.errors import UserError


def write_private(path: Path, text: str) -> None:
    """Write a whole file of mode 600; no moment shows it to others, or a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def write_exports(path: Path, variables: Mapping[str, str], note: str) -> None:
    """Write variables as a private file that a shell can source; ``note`` is a comment in it."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    write_private(path, "".join([f"# {note}\n", *lines]))


def read_exports(path: Path) -> dict[str, str]:
    """Read the variables of :func:`write_exports`; of a file that is not there, none.

    Raises:
        UserError: it is no such file.
    """
    if not path.exists():
        return {}
    variables = {}
    for line in path.read_text().splitlines():
        match shlex.split(line, comments=True):
            case []:
                continue
            case ["export", setting] if "=" in setting:
                name, _, value = setting.partition("=")
                variables[name] = value
            case _:
                raise UserError(
                    f"{path}: a line that is not `export NAME=VALUE`; take it out, or delete the "
                    "file to have new keys made"
                )
    return variables
