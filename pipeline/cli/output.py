"""Print tables for people, and JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN_FAILURES = 50


def print_json(value: Any) -> None:
    """Print plain data on standard output."""
    print(json.dumps(value, indent=1))


class _Console(Console):
    """A console whose closed output is an error like that of `print`; rich's ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; in a log, wide enough not to break lines."""
    (_Console() if sys.stdout.isatty() else _Console(width=160)).print(table)


def print_failures(failures: list[dict[str, Any]], command: str) -> None:
    """Print the first rows of a failures table, and which command lists them all."""
    table = Table("source", "video or clip", "reason", "detail", title="Left out or incomplete")
    for row in failures[:_SHOWN_FAILURES]:
        table.add_row(row["source"], row["clip"] or row["video_id"], row["reason"], row["detail"])
    print_table(table)
    if (more := len(failures) - _SHOWN_FAILURES) > 0:
        print(f"… and {more:,} more: 'pretrack {command} --json' lists them all")
