"""Derive Arrow schemas from the type hints of row dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa


def schema_of(row: type) -> pa.Schema:
    """Derive a table's schema from its row's dataclass: one column per field, in order.

    hint                          Arrow type
    str, or a Literal of texts    string
    bool                          bool
    Annotated[int, "int32"]       the type of that name; a plain `int` or `float` is refused
    list[X], tuple[X, ...]        list of X
    Annotated[tuple[X, ...], 12]  list of X of that fixed size
    dataclass                     struct; in Annotated[Camera, "float32"] of such plain numbers
    X | None                      X

    All columns are nullable. Raises TypeError for any other hint.
    """
    return pa.schema(_columns(row, None))


def _columns(row: type, number: str | None) -> list[tuple[str, pa.DataType]]:
    hints = get_type_hints(row, include_extras=True)
    return [(field.name, _arrow_type(hints[field.name], number)) for field in fields(row)]


def _arrow_type(hint: Any, number: str | None, length: int = -1) -> pa.DataType:
    """Translate a type hint.

    `number` names the Arrow type of plain numbers in it; `length` is that of a fixed-size list.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, note = arguments
        if isinstance(note, int):
            return _arrow_type(inner, number, length=note)
        return _arrow_type(inner, note)
    if origin in (Union, UnionType):
        members = [member for member in arguments if member is not NoneType]
        if len(members) == 1:
            return _arrow_type(members[0], number)
    elif origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return pa.list_(_arrow_type(arguments[0], number), length)
    elif hint is str or origin is Literal:
        return pa.string()
    elif hint is bool:
        return pa.bool_()
    elif is_dataclass(hint):
        return pa.struct(_columns(hint, number))  # type: ignore[arg-type]
    elif hint in (int, float) and number is not None:
        return pa.type_for_alias(number)
    raise TypeError(f"{hint} has no Arrow type: say which, as in Annotated[int, 'int32']")
