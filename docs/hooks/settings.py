"""Writes the settings reference from the typed models themselves: each field with its type, default and docstring.

A page asks for a model by a line `<!-- settings: pipeline.config.BuildSettings -->`.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

sys.path.insert(0, str(Path(__file__).parents[2]))

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shards.bucket import Url

_ASKED = re.compile(r"^<!-- settings: ([\w.]+)\.(\w+) -->$", re.MULTILINE)
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
_PLAIN = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
    Any: "anything",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return _ASKED.sub(
        lambda asked: "\n".join(settings_page(getattr(import_module(asked[1]), asked[2]))), markdown
    )


def settings_page(model: type[BaseModel]) -> Iterator[str]:
    """A model and those inside it as Markdown: a section each, with a table of its fields."""
    yield from _section(model, "", set())


def _section(model: type[BaseModel], key: str, above: set[type[BaseModel]]) -> Iterator[str]:
    """A model under a dotted key ("" for the outermost)."""
    yield f"\n## {_title(model, key)}\n\n{cleandoc(model.__doc__ or '')}\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        said = field.description or (
            cleandoc(inner[0].__doc__ or "").splitlines()[0] if inner else ""
        )
        yield f"| `{name}` | {_cell(_type(field.annotation, field))} | {_cell(_default(field))} | {_cell(said)} |"
    for name, field in model.model_fields.items():
        for inner_model in _models(field.annotation):
            if inner_model not in above:
                yield from _section(inner_model, f"{key}.{name}" if key else name, {*above, model})


def _title(model: type[BaseModel], key: str) -> str:
    """The dotted key; where there is a choice of models, with the field that chooses and its value."""
    choice = next(
        (
            f"{name}: {get_args(f.annotation)[0]}"
            for name, f in model.model_fields.items()
            if name in ("dataset", "tracker")
        ),
        "",
    )
    return f"{key}, {choice}" if choice else key or "The whole"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings models that a type has in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words, with the bounds that a field has."""
    bounds = [
        words.format(f"{getattr(limit, name):g}")
        for limit in (field.metadata if field else ())
        for name, words in _BOUNDS.items()
        if hasattr(limit, name)
    ]
    return " ".join([_words(annotation), *bounds])


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], FieldInfo.from_annotation(annotation))
    if _models(annotation) and origin is not tuple:
        return "part, below"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType) and inner == (Path, Url):
        return "folder or URL"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner))
    if origin is tuple:
        return (
            f"list of {_words(inner[0])}"
            if inner[-1] is ...
            else f"{len(inner)} times {_words(inner[0])}"
        )
    if origin is dict:
        return f"mapping of {_words(inner[0])} to {_words(inner[1])}"
    return _PLAIN.get(annotation, annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return "its defaults"
    if value == "":
        return "empty"
    shown = list(value) if isinstance(value, tuple) else value
    return (
        f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else shown}`"
    )


def _cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|")
