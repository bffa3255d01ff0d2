"""Command lines from configuration dataclasses, with presets, saved configs and exit codes."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from infra.config import from_dict, read_object, to_dict
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
        saved = read_object(local_path(known.config), f"--config {known.config}")
        base = from_dict(cls, {**to_dict(base), **saved})
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
