"""Filters over the clips table, written as an expression: `visible_fraction > 0.5 and dataset in ('co3d', 'dl3dv')`.

The grammar is a part of Python's: columns, numbers and strings; + - * /; comparisons, also chained ones, and `in`; and, or, not.
"""

from __future__ import annotations

import ast
import difflib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.tables import CLIPS
from shards.errors import SettingsError, first_line

COLUMNS = [
    field.name
    for field in CLIPS
    if not pa.types.is_list(field.type) and not field.name.startswith("json_")
]
"""What an expression may speak of: the columns with one value a clip."""

_COMPARISONS = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">="}


def parse_filter(text: str) -> pc.Expression:
    """An expression as `pyarrow.Table.filter` takes it. Raises SettingsError, in one sentence, for what it does not understand."""
    try:
        expression = _logical(ast.parse(text.strip(), mode="eval").body)
        CLIPS.empty_table().filter(expression)
    except (pa.ArrowException, TypeError) as error:
        raise SettingsError(
            f"'{text}' compares things of different kinds ({first_line(error)})"
        ) from error
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"'{text}' is not an expression such as \"motion > 0.01 and dataset == 'co3d'\""
        ) from error
    return expression


def _logical(node: ast.expr) -> pc.Expression:
    """A condition: something that is true or false of a clip."""
    match node:
        case ast.BoolOp(op=operator, values=[first, *others]):
            whole = _logical(first)
            for other in others:
                whole = (
                    whole & _logical(other)
                    if isinstance(operator, ast.And)
                    else whole | _logical(other)
                )
            return whole
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return ~_logical(inner)
        case ast.Compare(left=left, ops=operators, comparators=rights):
            terms = [left, *rights]
            parts = [
                _comparison(a, o, b) for a, o, b in zip(terms, operators, rights, strict=False)
            ]
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part
            return whole
    raise SettingsError(f"'{ast.unparse(node)}' is not a condition: compare it with something")


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
    if isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not all(
            isinstance(e, ast.Constant) for e in right.elts
        ):
            raise SettingsError(
                f"'in' wants a list such as ('co3d', 'dl3dv'), not '{ast.unparse(right)}'"
            )
        found = _value(left).isin([element.value for element in right.elts])  # type: ignore[attr-defined]
        return ~found if isinstance(operator, ast.NotIn) else found
    symbol = _COMPARISONS.get(type(operator).__name__)
    if symbol is None:
        raise SettingsError("'is' is not understood: write '=='")
    a, b = _value(left), _value(right)
    if symbol in ("==", "!="):
        return a == b if symbol == "==" else a != b
    if symbol in ("<", "<="):
        return a < b if symbol == "<" else a <= b
    return a > b if symbol == ">" else a >= b


def _value(node: ast.expr) -> Any:
    """A number, a string, a column, or what is computed of them."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | str) and not isinstance(
            value, bool
        ):
            return pc.scalar(value)
        case ast.Name(id=name):
            return _column(name)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return pc.scalar(0) - _value(inner)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(
            left=left, op=ast.Div(), right=right
        ):  # as Python divides, not as whole numbers do
            return _value(left).cast(pa.float64()) / _value(right).cast(pa.float64())
    raise SettingsError(
        f"'{ast.unparse(node)}' is not understood: use columns, numbers, strings, + - * / and comparisons"
    )


def _column(name: str) -> pc.Expression:
    if name not in COLUMNS:
        near = difflib.get_close_matches(name, COLUMNS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COLUMNS)}"
        raise SettingsError(f"the clips table has no column '{name}' ({hint})")
    return pc.field(name)
