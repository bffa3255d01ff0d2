"""Command lines from configuration dataclasses, with presets, saved configs and exit codes."""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from infra.config import from_dict, merged, read_object, refusal, to_dict
from infra.errors import UsageError, UserError
from infra.paths import path_of
from infra.storage import explained

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
        name = f"--config {known.config}"
        saved = read_object(path_of(known.config), name)
        base = from_dict(cls, merged(to_dict(base), saved), name)
    usage = (
        f"{description}\n\nBesides the options below: --preset {{{','.join(presets)}}} "
        f"(default {next(iter(presets))}); --config FILE, as an earlier run saved it."
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                cls,
                args=rest,
                default=base,
                prog=prog,
                description=usage,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if (invalid := _validation_error(exit_)) is not None:
            raise refusal(invalid, cls) from invalid
        sys.stderr.write(said.getvalue())
        raise


def choices(*names: str) -> object:
    """Return the mark, for `Annotated`, of an option whose values ``--help`` lists by name.

    What is no such name is refused by the configuration, not by the command line, so that a saved
    configuration is read in the same way.
    """
    from tyro.conf import arg

    return arg(metavar=f"{{{','.join(names)}}}")


def _validation_error(error: BaseException | None) -> ValidationError | None:
    """Return pydantic's error behind tyro's exit, to say it in our words instead of a box."""
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    return error


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
