"""Write the settings reference from the pydantic models: type, default and docstring per field.

It replaces the line `<!-- settings: pipeline.config.BuildSettings -->` of a page.
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

_MARK = re.compile(r"^<!-- settings: ([\w.]+)\.(\w+) -->$", re.MULTILINE)
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
_UNIONS = (Union, types.UnionType)
_PLAIN = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
    Any: "anything",
}
_PLURALS = {
    "text": "texts",
    "integer": "integers",
    "number": "numbers",
    "path": "paths",
    "folder or URL": "folders or URLs",
    "section, below": "sections, below",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page; MkDocs calls this for every page."""
    return _MARK.sub(
        lambda mark: "\n".join(settings_page(getattr(import_module(mark[1]), mark[2]))), markdown
    )


def settings_page(model: type[BaseModel]) -> Iterator[str]:
    """Yield a section per model, for `model` and all models in it, with a table of its fields."""
    yield from _section(model, "", set())


def _section(model: type[BaseModel], key: str, above: set[type[BaseModel]]) -> Iterator[str]:
    """Yield the section of a model under a dotted key ("" for the outermost), and those below it.

    `above` holds the models that contain this one, so that a recursive model ends.
    """
    yield f"\n## {_title(model, key)}\n\n{cleandoc(model.__doc__ or '')}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        # A section without a docstring of its own is explained by its model's first paragraph.
        meaning = field.description or (
            cleandoc(inner[0].__doc__ or "").partition("\n\n")[0] if inner else ""
        )
        kind = _type(field.annotation, field)
        cells = (f"`{name}`", *map(_cell, (kind, _default(field), meaning)))
        yield f"| {' | '.join(cells)} |"
    for name, field in model.model_fields.items():
        for inner_model in _models(field.annotation):
            if inner_model not in above:
                yield from _section(inner_model, f"{key}.{name}" if key else name, {*above, model})


def _title(model: type[BaseModel], key: str) -> str:
    """Return the dotted key; for one of several models, with the field and value that choose it."""
    choice = next(
        (
            f"{name}: {get_args(f.annotation)[0]}"
            for name, f in model.model_fields.items()
            if name in ("dataset", "tracker")
        ),
        "",
    )
    return f"{key}, {choice}" if choice else key or "Top level"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models that a type contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """Describe a type in words, with the bounds of the field; "or null" comes last."""
    bounds = [
        words.format(f"{getattr(limit, name):g}")
        for limit in (field.metadata if field else ())
        for name, words in _BOUNDS.items()
        if hasattr(limit, name)
    ]
    options = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    values = tuple(option for option in options if option is not type(None))
    nullable = ["or null"] if len(values) < len(options) else []
    return " ".join([_words(Union[values]), *bounds, *nullable])  # noqa: UP007


def _words(annotation: Any) -> str:
    """Describe a type in words, without bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], FieldInfo.from_annotation(annotation))
    if _models(annotation) and origin is not tuple:
        return "section, below"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in _UNIONS and inner == (Path, Url):
        return "folder or URL"
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(_words(option) for option in inner))
    if origin is tuple:
        return (
            f"list of {_plural(_words(inner[0]))}"
            if inner[-1] is ...
            else f"list of {len(inner)} {_plural(_words(inner[0]))}"
        )
    if origin is dict:
        return f"mapping of {_words(inner[0])} to {_words(inner[1])}"
    return _PLAIN.get(annotation, annotation.__name__)


def _plural(words: str) -> str:
    """Return a type's description in the plural: "integers from 1"."""
    for singular, plural in _PLURALS.items():
        if words.startswith(singular):
            return plural + words.removeprefix(singular)
    return words


def _default(field: FieldInfo) -> str:
    """Return a field's default as a config would state it."""
    if field.is_required():
        return "*required*"
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
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
