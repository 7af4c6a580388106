"""The commands of the trainer: `train` and `evaluate`. Nothing else in `pipeline` imports it."""

from __future__ import annotations

import typer

from trainer.cli import INTERRUPTED, train

__all__ = ["INTERRUPTED", "evaluate", "train"]


def evaluate(context: typer.Context) -> None:
    """Compare trained models on held-out clips or on public benchmarks.

    `pretrack evaluate --help` lists the evaluations; `pretrack evaluate EVALUATION --help` shows
    the options of one.
    """
    from trainer.evaluate.__main__ import main

    raise typer.Exit(main(context.args))
