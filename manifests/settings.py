"""Load typed settings: YAML plus `key=value` overrides → pydantic models.

Errors name the file, the key, the value at fault, and for an unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from manifests.wording import pluralise
from shards.bucket import Url
from shards.errors import PretrackError, SettingsError
from shards.files import Location, absolute, parse_location


class Settings(BaseModel):
    """Base of every settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ExtendedSettings(Settings):
    """Settings that were extended later: the later ones are not written at their defaults.

    Digests of earlier settings stay so, and runs of earlier versions can be resumed.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    """The fields that came later."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        defaults = {name: type(self).model_fields[name].default for name in self.added}
        return {
            name: value
            for name, value in values.items()
            if name not in defaults or getattr(self, name) != defaults[name]
        }


def _read_location(value: Any) -> Location:
    """Read a path or a URL from a config. Raises ValueError for anything else."""
    if not isinstance(value, str | Path | Url) or not str(value) or value == Path():
        raise ValueError("should name a folder")
    try:
        return absolute(parse_location(value))
    except PretrackError as error:
        raise ValueError(str(error)) from error


LocationSetting = Annotated[Path | Url, PlainValidator(_read_location), PlainSerializer(str)]
"""A setting that names a folder, on this machine or on a bucket.

Paths are made absolute, since workers have another current folder.
"""

S = TypeVar("S", bound=Settings)

_LARGEST_CONFIG = 1 << 20  # bytes
_MOST_VALUES = 100_000
_MOST_PROBLEMS = 10
_LONGEST_VALUE = 80  # characters shown of a value in an error

_PYDANTIC_WORDS = {
    "a valid tuple": "a list",
    "a valid list": "a list",
    "tuple should have": "list should have",
    " after validation": "",
}
"""Pydantic's words for what a config calls a list."""


def load_settings(model: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply overrides (`tracks.grid=24`, `sources.0.root=/data`), validate.

    Raises SettingsError, in one sentence, for a missing file, broken YAML, an unknown key or a
    value that is not allowed.
    """
    if not path.is_file():
        configs = [file.name for file in path.parent.glob("*.yaml")]
        near = difflib.get_close_matches(path.name, configs, 1)
        hint = f" (did you mean {path.parent / near[0]}?)" if near else ""
        raise SettingsError(f"there is no config file {path}{hint}")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise SettingsError(
            f"{path} has more than {_LARGEST_CONFIG} bytes: this is not a config of pretrack"
        )
    try:
        values = _read_yaml(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deeply to be a config") from error
    # ValueError: the file is not UTF-8, or has a date that does not exist.
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path} is not valid YAML{line}: {problem}") from error
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} holds no settings: it should be a YAML mapping such as 'out: shards/'"
        )
    for override in overrides:
        _override(values, override)
    return check_settings(model, values, str(path))


def _read_yaml(text: str) -> Any:
    """Parse YAML to plain values. Raises yaml.YAMLError, ValueError, RecursionError."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        # Count the values before constructing them, with aliases followed: a few lines of aliases
        # of aliases would unfold to fill any memory.
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
    """Validate a mapping as `model`. Raises SettingsError, in which `where` names the mapping."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        all_keys = list(_keys(model))
        problems = error.errors()
        # Pydantic also calls a list too short if its only entry is wrong; only the entry's own
        # problem, further inside, is of use.
        outer = {
            problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))
        }
        sentences = [
            _sentence(problem, _config_key(problem["loc"], values), all_keys)
            for problem in problems
            if problem["loc"] not in outer
        ]
        if len(sentences) > _MOST_PROBLEMS:
            sentences[_MOST_PROBLEMS:] = [f"and {len(sentences) - _MOST_PROBLEMS} more problems"]
        raise SettingsError(f"{where}: " + "; ".join(sentences)) from None


def _override(values: Any, override: str) -> None:
    """Set one dotted key of `values` in place. Raises SettingsError for an impossible key."""
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
                    f"'{override}': '{part}' is not one of the {len(node)} entries "
                    f"(0 to {len(node) - 1})"
                )
            index = int(part)
        elif not isinstance(node, dict):  # a plain value, such as 3 in `tracks.grid.x=1`
            raise SettingsError(f"'{override}': there is nothing below '{part}'")
        if following is None:
            node[index] = value
        elif isinstance(node, list):
            node = node[index]
        else:
            # A key that the file leaves out, or leaves empty, starts as an empty mapping.
            node[index] = node = {} if node.get(index) is None else node[index]


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """List the keys of a model and of the models inside it, as (parent key or "", key)."""
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


def _config_key(location: tuple[int | str, ...], values: Any) -> list[str]:
    """Translate pydantic's location of a problem to the key in the config, in parts.

    Pydantic also puts the names of a union's members into a location, such as a source's dataset.
    """
    parts = []
    for number, part in enumerate(location):
        exists = (
            part in values
            if isinstance(values, dict)
            else isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if exists or number == len(location) - 1:
            parts.append(str(part))
        if exists:
            values = values[part]
    return parts


def _nearest(location: list[str], all_keys: list[tuple[str, str]]) -> list[str]:
    """Find the known key most like the last part of `location`, as a list of one or none.

    A similar key under the same parent is preferred to one elsewhere.
    """
    parents = {parent for parent, _ in all_keys}
    parent = next((part for part in reversed(location[:-1]) if part in parents), "")
    siblings = [key for above, key in all_keys if above == parent]
    return difflib.get_close_matches(location[-1], siblings, 1) or difflib.get_close_matches(
        location[-1], {key for _, key in all_keys}, 1
    )


def _sentence(problem: Any, location: list[str], all_keys: list[tuple[str, str]]) -> str:
    """Put one pydantic problem, of the key at `location`, into words."""
    key, value = ".".join(location), problem["input"]
    if problem["type"] == "extra_forbidden":
        near = _nearest(location, all_keys)
        return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "union_tag_invalid":
        given, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"'{key}' names {_shown(given)}, and the choices are {allowed}"
    if problem["type"] == "union_tag_not_found":
        return f"'{key}' lacks {problem['ctx']['discriminator']}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"'{key}': input should be a mapping (got {_shown(value)})"
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    for theirs, ours in _PYDANTIC_WORDS.items():
        message = message.replace(theirs, ours)
    # A rule of ours over a whole mapping, or over a list of them, names the entry at fault itself.
    if problem["type"] == "value_error" and _has_mappings(value):
        return message if not key or f"'{key}." in message else f"'{key}': {message}"
    return f"'{key}': {message} (got {_shown(value)})"


def _has_mappings(value: Any) -> bool:
    """Tell whether a value is a mapping or a list with one."""
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(entry, dict | BaseModel) for entry in values)


def _shown(value: Any) -> str:
    """Show a value at fault as in YAML; a long or nested one only by its size."""
    if isinstance(value, dict):
        return f"a mapping of {pluralise(len(value), 'key')}"
    if isinstance(value, list | tuple):
        text = f"[{', '.join(_shown(entry) for entry in value[:_LONGEST_VALUE])}]"
        is_short = len(text) <= _LONGEST_VALUE and not _has_mappings(value)
        return text if is_short else f"a list of {pluralise(len(value), 'value')}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and len(value) > _LONGEST_VALUE:
        return f"{value[:_LONGEST_VALUE]!r} and {len(value) - _LONGEST_VALUE:,} more characters"
    return repr(value) if isinstance(value, str) else f"{value!r:.{_LONGEST_VALUE}}"
