"""The program `pretrack`: its commands in the order of their use, and how they report errors.

`train` and `evaluate` belong to `trainer`, which no other module in `pipeline` imports. Its command
modules import only typer, so `--help` needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli.build_commands import build, catalog, gc, plan, verify
from pipeline.cli.inspect_commands import diff, snapshots, stats, status
from pipeline.cli.picture_commands import export, report, show
from pipeline.cli.publish_commands import card, publish
from shards.errors import exit_on_errors
from shards.standard_streams import accept_any_text


class CommandsInOrder(TyperGroup):
    """The group of all commands, listed in the order of their use (typer puts groups first)."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program; its help, too, must print where the encoding is not UTF-8."""
        accept_any_text()
        return super().main(*args, **options)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, with `evaluate` after `train`."""
        names = [name for name in super().list_commands(ctx) if name != "evaluate"]
        names.insert(names.index("train") + 1, "evaluate")
        return names


app = typer.Typer(
    cls=CommandsInOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_versions(asked: bool) -> None:
    """Print the version of pretrack and of the formats it writes, and exit."""
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    from pipeline.config import FRAMES_VERSION
    from shards.clip import FORMAT_VERSION
    from shards.codec import TRACKS_VERSION

    try:
        name = f"pretrack {version('pretrack')}"
    except PackageNotFoundError:  # run from a folder without an installation
        name = "pretrack (not installed)"
    print(
        f"{name}: shard format {FORMAT_VERSION}, tracks {TRACKS_VERSION}, frames {FRAMES_VERSION}"
    )
    raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the version and those of the formats it writes.",
        ),
    ] = False,
) -> None:
    """Turn video datasets into shards of frames and point tracks, once; then train on them."""


_INTERRUPTED = "stopped. What is finished is kept; the same command continues from there."


def _add(*commands: Callable[..., None], extra: str = "pipeline") -> None:
    """Add commands that need an extra."""
    for command in commands:
        errors = exit_on_errors("pretrack", extra=extra, interrupted=_INTERRUPTED)
        app.command()(errors(command))


def _add_training() -> None:
    """Add the commands that need the extra `train`."""
    from trainer.cli import INTERRUPTED, train
    from trainer.evaluate.command import app as evaluations

    app.command()(exit_on_errors("pretrack", extra="train", interrupted=INTERRUPTED)(train))
    app.add_typer(evaluations, name="evaluate")


_add(catalog, plan, build, status, verify, show, report, stats, export)
_add_training()
_add(snapshots, diff, gc, card)
_add(publish, extra="pipeline,hub")
