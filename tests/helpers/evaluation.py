"""Run `evaluate` in this process, so that tests can read what it prints."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluate.command import app


def evaluate(arguments: Sequence[str]) -> int:
    """Run `python -m trainer.evaluate ARGUMENTS` and return its exit status."""
    try:
        app(list(arguments), prog_name="python -m trainer.evaluate")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    raise AssertionError("a command ends with its exit status")
