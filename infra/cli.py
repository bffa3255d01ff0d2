"""Command lines from configuration dataclasses, with presets, saved configs and exit codes."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from infra.config import from_dict, to_dict
from infra.errors import UsageError, UserError
from infra.storage import explained, local_path

T = TypeVar("T")


def parse(
    cls: type[T], presets: Mapping[str, T], arguments: Sequence[str], prog: str, description: str
) -> T:
    """Read a command line into a configuration.

    ``--preset NAME`` starts from a line of the table, ``--config FILE`` from a saved configuration
    (both: the file's fields over the preset's), and every field is an option over that.

    Raises:
        UsageError: an unknown preset, an unreadable config file, a value the class refuses.
        SystemExit: 2 for an unknown option, 0 after ``--help``.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=next(iter(presets)))
    first.add_argument("--config")
    known, rest = first.parse_known_args(list(arguments))
    if known.preset not in presets:
        raise UsageError(f"--preset {known.preset}: unknown; choose one of {', '.join(presets)}")
    base = presets[known.preset]
    if known.config is not None:
        base = from_dict(cls, {**to_dict(base), **_saved(known.config)})
    usage = (
        f"{description}\n\nBesides the options below: --preset {{{','.join(presets)}}} "
        f"(default {next(iter(presets))}); --config FILE, as an earlier run saved it."
    )
    try:
        parsed = tyro.cli(
            cls,
            args=rest,
            default=base,
            prog=prog,
            description=usage,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return parsed


def _saved(path: str) -> dict[str, Any]:
    try:
        saved = json.loads(local_path(path).read_text())
    except OSError as error:
        raise UsageError(str(explained(error, path))) from error
    except ValueError as error:
        raise UsageError(f"--config {path}: not a JSON file ({error})") from error
    if not isinstance(saved, dict):
        raise UsageError(f"--config {path}: holds a {type(saved).__name__}, expected an object")
    return saved


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a program's ``main`` on the command line and exit with its code.

    A user's error ends as one readable message; anything else is a defect and keeps its trace.
    """
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: {explained(error, error.filename or 'input or output')}\n")
        code = 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to resume\n")
        code = 130
    sys.exit(code)
