"""Writes the reference of the `pretrack` command from the command line itself, where a page has the line `<!-- commands -->`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[2]))

from typer.models import ArgumentInfo

from pipeline.cli import app

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return markdown.replace(_MARK, "\n".join(commands_page())) if _MARK in markdown else markdown


def commands_page() -> Iterator[str]:
    """A section for each command, in the order of their use: what it does, and a table of its arguments and options."""
    for registered in app.registered_commands:
        assert registered.callback
        yield from _section(registered.callback)


def _section(command: Callable[..., Any]) -> Iterator[str]:
    """One command."""
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(command).parameters.items()
    }
    hints = get_type_hints(command, include_extras=True)
    parameters = [(name, *get_args(hints[name])[:2]) for name in defaults]
    arguments = [
        (_argument(name), info.help)
        for name, _, info in parameters
        if isinstance(info, ArgumentInfo)
    ]
    name = command.__name__
    yield f"\n## {name}\n\n`pretrack {' '.join([name, *(shown for shown, _ in arguments)])}`\n\n{inspect.getdoc(command)}\n"
    yield "| | |\n|---|---|"
    for shown, said in arguments:
        yield f"| `{shown}` | {_cell(said)} |"
    for name, kind, info in parameters:
        if not isinstance(info, ArgumentInfo):
            value = (
                ""
                if defaults[name] is None or defaults[name] is False
                else f" By default {defaults[name]}."
            )
            yield f"| `{_option(name, kind, info)}` | {_cell(info.help)}{value} |"


def _argument(name: str) -> str:
    return {"overrides": "[key=value ...]", "where": "CONFIG_OR_OUT"}.get(name, name.upper())


def _option(name: str, kind: Any, info: Any) -> str:
    """ "--keep NUMBER", "--json"."""
    given = [
        word
        for word in (info.default, *(info.param_decls or ()))
        if isinstance(word, str) and word.startswith("--")
    ]
    flag = (
        given[0] if given else f"--{name.replace('_', '-')}"
    )  # an Annotated option keeps its first name as a default
    kinds = {bool: "", int: " NUMBER", Path: " PATH"}
    return flag + next(
        (word for one, word in kinds.items() if one in (kind, *get_args(kind))), " TEXT"
    )


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
