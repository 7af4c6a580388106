"""The command that trains: `python -m trainer`, `torchrun -m trainer` and `pretrack train`.

Only typer is imported here; pyarrow waits until a config is read, torch until its keys are checked.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import exit_on_errors

if TYPE_CHECKING:
    from trainer.config import TrainSettings

INTERRUPTED = "stopped. Checkpoints are kept; the same command continues from the newest."
"""What the command says after Ctrl-C."""

Config = Annotated[Path, typer.Argument(help="A YAML config, such as configs/train/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change: key=value, such as data.out=out/mixed."),
]


def train(config: Config, overrides: Overrides = None) -> None:
    """Train a vision transformer on stored tracks, or resume the run in `run.out`.

    On several GPUs: `torchrun --nproc-per-node 4 -m trainer CONFIG`. SIGTERM saves a checkpoint
    and ends the run with status 143; the same command continues from there.
    """
    from trainer.config import TrainSettings

    run_training(TrainSettings, config, overrides or [])


def make_app(kind: type[TrainSettings] | None = None) -> typer.Typer:
    """Make the program `python -m trainer`; `kind` adds settings to those of pretrack."""

    @exit_on_errors("trainer", extra="train", interrupted=INTERRUPTED)
    def command(config: Config, overrides: Overrides = None) -> None:
        if kind is None:
            train(config, overrides)
        else:
            run_training(kind, config, overrides or [])

    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )
    app.command(help=train.__doc__)(command)
    return app


def run_training(kind: type[TrainSettings], config: Path, overrides: list[str]) -> None:
    """Train with the settings of a config; only the first rank logs and prints.

    Raises PretrackError for settings or data that cannot be used, and typer.Exit with status 143
    after a run that was stopped by SIGTERM.
    """
    from manifests.settings import load_settings

    first = os.environ.get("RANK", "0") == "0"
    _log_to_stdout(first)
    settings = load_settings(kind, config, overrides)
    # torch and timm take seconds to import: a wrong key is reported before
    from trainer.train import Stopped, train

    try:
        weights = train(settings)
    except Stopped as stopped:
        logging.getLogger(__name__).info("%s", stopped)
        raise typer.Exit(128 + signal.SIGTERM) from None
    if first:
        print(f"trained weights: {weights}")


def _log_to_stdout(first: bool) -> None:
    """Log the first rank's progress, and only errors of the other ranks."""
    level = logging.INFO if first else logging.ERROR
    # A closed output (`| head`, a lost terminal) must not end a run or fill the log with errors.
    logging.raiseExceptions = False
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    # each rank reads other clips, so each names the damaged ones that it leaves out
    loader_level = logging.INFO if first else logging.WARNING
    logging.getLogger("trainer.data.loader").setLevel(loader_level)
