"""Typed settings: YAML plus `key=value` overrides → pydantic models, with errors that name the file, the key and the near one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError

from shards.bucket import Url
from shards.errors import PretrackError, SettingsError
from shards.files import Location, absolute, parse_location


class Settings(BaseModel):
    """Base of every settings model: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def _place(value: Any) -> Location:
    """A path or a URL from a config."""
    if not isinstance(value, str | Path | Url) or not str(value) or value == Path():
        raise ValueError("should name a folder")
    try:
        return absolute(parse_location(value))
    except PretrackError as error:
        raise ValueError(str(error)) from error


LocationSetting = Annotated[Path | Url, PlainValidator(_place), PlainSerializer(str)]
"""A folder on this machine (made absolute, since workers have another current folder) or on a bucket, as a setting."""

S = TypeVar("S", bound=Settings)

_LARGEST_CONFIG = 1 << 20
_MOST_VALUES = 100_000


def load_settings(model: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Reads `path` (YAML), applies overrides such as `tracks.grid=24` or `sources.0.root=/data`, and checks the result.

    Raises SettingsError, in one sentence, for a missing file, broken YAML, an unknown key or a value that does not fit.
    """
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name,
            [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [],
            1,
        )
        hint = f" (did you mean {path.parent / near[0]}?)" if near else ""
        raise SettingsError(f"there is no config file {path}{hint}")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise SettingsError(
            f"{path} has more than {_LARGEST_CONFIG} bytes: that is no config of pretrack's"
        )
    try:
        values = _read_yaml(path.read_text())
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deep to be a config") from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: not UTF-8, or a date that does not exist
        mark, problem = (
            getattr(error, "problem_mark", None),
            getattr(error, "problem", None) or str(error),
        )
        raise SettingsError(
            f"{path} is not valid YAML{f', line {mark.line + 1}' if mark else ''}: {problem}"
        ) from error
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} holds no settings: it should be a YAML mapping such as 'out: shards/'"
        )
    for override in overrides:
        _override(values, override)
    return check_settings(model, values, str(path))


def _read_yaml(text: str) -> Any:
    """Plain values from YAML. Raises yaml.YAMLError, ValueError, RecursionError.

    Aliases are followed before anything is made of them: a few lines of aliases of aliases would unfold to fill any memory.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        nodes, count = [root] if root else [], 0
        while nodes:
            value = nodes.pop().value
            inner = value if isinstance(value, list) else []
            count += len(inner)
            if count > _MOST_VALUES:
                raise yaml.YAMLError(f"it unfolds to more than {_MOST_VALUES} values")
            nodes += [
                part for entry in inner for part in (entry if isinstance(entry, tuple) else [entry])
            ]
        return loader.construct_document(root) if root else None
    finally:
        loader.dispose()


def check_settings(model: type[S], values: dict[str, Any], where: str) -> S:
    """Validates a mapping as `model`; `where` names it in the SettingsError raised otherwise."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = list(_keys(model))
        problems = error.errors()
        # A list is also called too short where its only entry is wrong: the entry's own problem says it all.
        inner = {
            problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))
        }
        telling = [
            _sentence(problem, _written(problem["loc"], values), known)
            for problem in problems
            if problem["loc"] not in inner
        ]
        raise SettingsError(f"{where}: " + "; ".join(telling)) from None


def _override(values: Any, override: str) -> None:
    """Sets one dotted key in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(
            f"'{override}' is not an override: write key=value, such as tracks.grid=24"
        )
    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"the value of '{override}' is not valid YAML") from error
    node, parts = values, key.split(".")
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        index: Any = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise SettingsError(
                    f"'{override}': '{part}' is not one of the {len(node)} entries (0 to {len(node) - 1})"
                )
            index = int(part)
        elif not isinstance(node, dict):
            raise SettingsError(f"'{override}': there is nothing below '{part}'")
        if following is None:
            node[index] = value
        elif isinstance(node, list):
            node = node[index]
        else:
            node[index] = node = {} if node.get(index) is None else node[index]


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Every key that a model and the models inside it know, as (the key above it or "", the key)."""
    seen: set[type[BaseModel]] = set()

    def walk(annotation: Any, above: str) -> Iterator[tuple[str, str]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation in seen:
                return
            seen.add(annotation)
            for name, field in annotation.model_fields.items():
                yield above, name
                yield from walk(field.annotation, name)
        for inner in getattr(annotation, "__args__", ()):
            yield from walk(inner, above)

    yield from walk(model, "")


def _written(location: tuple[int | str, ...], values: Any) -> list[str]:
    """A key as it stands in the config: pydantic's place without the names of a union's members, such as a source's dataset."""
    parts = []
    for number, part in enumerate(location):
        there = (
            part in values
            if isinstance(values, dict)
            else isinstance(values, list) and isinstance(part, int)
        )
        if there or number == len(location) - 1:
            parts.append(str(part))
        if there:
            values = values[part]
    return parts


def _near(location: list[str], known: list[tuple[str, str]]) -> list[str]:
    """The known key most like the last of `location`: of those at the same place if one there is like it, or of all."""
    place = next(
        (part for part in reversed(location[:-1]) if any(part == above for above, _ in known)), ""
    )
    here = [key for above, key in known if above == place]
    return difflib.get_close_matches(location[-1], here, 1) or difflib.get_close_matches(
        location[-1], {key for _, key in known}, 1
    )


def _sentence(problem: Any, location: list[str], known: list[tuple[str, str]]) -> str:
    """One pydantic problem, of the key at `location`, in words."""
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        near = _near(location, known)
        return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "union_tag_invalid":
        given, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"'{key}' names '{given}', and the choices are {allowed}"
    if problem["type"] == "union_tag_not_found":
        return f"'{key}' lacks {problem['ctx']['discriminator']}"
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if isinstance(problem["input"], dict):  # a rule over several keys, which names them itself
        return message
    return f"'{key}': {message} (got {problem['input']!r})"
