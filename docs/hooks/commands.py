"""Write the reference of the `pretrack` command from the command line itself.

It takes the place of the line `<!-- commands -->` of a page.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[2]))

from typer.main import get_command
from typer.models import ArgumentInfo

from pipeline.cli import app
from trainer.evaluate.command import app as evaluations

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page; MkDocs calls this for every page."""
    return markdown.replace(_MARK, "\n".join(commands_page())) if _MARK in markdown else markdown


def commands_page() -> Iterator[str]:
    """Yield a section per command, in the order of their use."""
    for registered in app.registered_commands:
        assert registered.callback
        yield from _section(registered.callback)
        if registered.callback.__name__ == "train":
            yield from _evaluations()


def _section(command: Callable[..., Any]) -> Iterator[str]:
    """Yield a command's usage, its docstring, and a table of its arguments and options."""
    name = command.__name__
    hints = get_type_hints(command, include_extras=True)
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(command).parameters.values()
    }
    parameters = [(name, *get_args(hints[name])[:2]) for name in defaults]
    arguments = [
        (_argument(name), info.help)
        for name, _, info in parameters
        if isinstance(info, ArgumentInfo)
    ]
    usage = " ".join([name, *(shown for shown, _ in arguments)])
    yield f"\n## {name}\n\n`pretrack {usage}`\n\n{inspect.getdoc(command)}\n"
    yield "| | |\n|---|---|"
    for shown, help_text in arguments:
        yield f"| `{shown}` | {_cell(help_text)} |"
    for name, kind, info in parameters:
        if not isinstance(info, ArgumentInfo):
            default = defaults[name]
            value = "" if default is None or default is False else f" By default {default}."
            yield f"| `{_option(name, kind, info)}` | {_cell(info.help)}{value} |"


def _evaluations() -> Iterator[str]:
    """Yield the section of `evaluate`: a table of its evaluations."""
    group: Any = get_command(evaluations)
    about = f"{group.help} `pretrack evaluate EVALUATION --help` shows the options of one."
    yield f"\n## evaluate\n\n`pretrack evaluate EVALUATION ...`\n\n{about}\n"
    yield "| | |\n|---|---|"
    for name in group.list_commands(None):
        summary = group.get_command(None, name).help.split("\n\n")[0]
        yield f"| `{name}` | {_cell(summary)} |"


def _argument(name: str) -> str:
    """Return an argument as the usage line shows it."""
    return {"overrides": "[key=value ...]", "where": "CONFIG_OR_OUT"}.get(name, name.upper())


def _option(name: str, kind: Any, info: Any) -> str:
    """Return an option with the kind of its value: "--keep NUMBER", "--json"."""
    # typer stores the first name of an Annotated option as its default
    flags = [
        word
        for word in (info.default, *(info.param_decls or ()))
        if isinstance(word, str) and word.startswith("--")
    ]
    flag = flags[0] if flags else f"--{name.replace('_', '-')}"
    value_names = {bool: "", int: " NUMBER", Path: " PATH"}
    kinds = (kind, *get_args(kind))
    return flag + next((word for one, word in value_names.items() if one in kinds), " TEXT")


def _cell(text: str | None) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join((text or "").split()).replace("|", "\\|")
