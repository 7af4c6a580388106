"""`python -m trainer.evaluate EVALUATION ...`: judges one or several backbones side by side."""

from __future__ import annotations

import argparse
import logging
import sys

from shards.errors import PretrackError, describe_os_error
from trainer.evaluate.benchmarks import command as benchmarks
from trainer.evaluate.heldout import label_free as labelfree

EVALUATIONS = (labelfree, benchmarks)
"""Each has `add_command(commands)`, which adds its parser and sets that parser's `run` to a function of the parsed arguments."""


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 after printing in one sentence what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="EVALUATION")
    for evaluation in EVALUATIONS:
        evaluation.add_command(commands)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        asked.run(asked)
    except PretrackError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"trainer: {describe_os_error(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
