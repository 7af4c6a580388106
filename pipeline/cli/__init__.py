"""The `pretrack` command line. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from pipeline.cli.build_commands import build, catalog, gc, plan, verify
from pipeline.cli.inspect_commands import diff, export, report, show, snapshots, stats, status
from shards.errors import PretrackError, describe_os_error

app = typer.Typer(
    help="Turn video datasets into shards of frames and point tracks, once; then train on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that a user can act on become one sentence and exit status 1; Ctrl-C says what is kept."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PretrackError as error:
            print(f"pretrack: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            print(f"pretrack: {describe_os_error(error)}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print(
                "pretrack: stopped. What is done is kept; the same command goes on from there.",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None

    return run


for _command in (
    catalog,
    plan,
    build,
    status,
    verify,
    show,
    report,
    stats,
    export,
    snapshots,
    diff,
    gc,
):  # the order of their use
    app.command()(_clear_errors(_command))
