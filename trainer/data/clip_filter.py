"""Filters over the clips table: `visible_fraction > 0.5 and dataset in ('co3d', 'dl3dv')`.

The grammar is a part of Python's: columns, numbers and strings; + - * /; comparisons, also chained
ones, and `in`; columns that are true or false, such as `posed`; and, or, not. Python's own parser
reads it, and it becomes a pyarrow expression: `docs/architecture.md` says why not SQL.

A comparison with a null, such as a score that a clip lacks, is neither true nor false, and a clip
for which a filter is not true is left out.
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
"""The columns that a filter may name: those with one value per clip."""

_COMPARISONS = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">="}


def parse_filter(text: str) -> pc.Expression:
    """Parse a filter into an expression for `pyarrow.Table.filter`.

    Raises SettingsError, in one sentence, for what the grammar lacks, for an unknown column, and
    for a comparison of different types.
    """
    try:
        expression = _condition(ast.parse(text.strip(), mode="eval").body)
        # Binding to the schema finds comparisons of different types.
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


def _condition(node: ast.expr) -> pc.Expression:
    """Convert a node that is true or false for a clip."""
    match node:
        case ast.BoolOp(op=operator, values=[first, *others]):
            condition = _condition(first)
            for other in others:
                condition = (
                    condition & _condition(other)
                    if isinstance(operator, ast.And)
                    else condition | _condition(other)
                )
            return condition
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return ~_condition(inner)
        case ast.Name(id=name) if pa.types.is_boolean(_column(name)[1]):
            return _column(name)[0]
        case ast.Compare(left=left, ops=operators, comparators=rights):
            # a < b < c means a < b and b < c.
            lefts = [left, *rights[:-1]]
            first, *others = (
                _comparison(a, o, b) for a, o, b in zip(lefts, operators, rights, strict=True)
            )
            condition = first
            for other in others:
                condition = condition & other
            return condition
    raise SettingsError(f"'{ast.unparse(node)}' is not a condition: compare it with a value")


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
    """Convert one comparison, or `in` or `not in` with a list of constants."""
    if isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not all(
            isinstance(e, ast.Constant) for e in right.elts
        ):
            raise SettingsError(
                f"'in' needs a list such as ('co3d', 'dl3dv'), not '{ast.unparse(right)}'"
            )
        is_in = _value(left).isin([element.value for element in right.elts])  # type: ignore[attr-defined]
        return ~is_in if isinstance(operator, ast.NotIn) else is_in
    symbol = _COMPARISONS.get(type(operator).__name__)
    if symbol is None:
        raise SettingsError("'is' is not supported: write '=='")
    a, b = _value(left), _value(right)
    if symbol in ("==", "!="):
        return a == b if symbol == "==" else a != b
    if symbol in ("<", "<="):
        return a < b if symbol == "<" else a <= b
    return a > b if symbol == ">" else a >= b


def _value(node: ast.expr) -> Any:
    """Convert a number, a string, a column, or arithmetic over them."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | str) and not isinstance(
            value, bool
        ):
            return pc.scalar(value)
        case ast.Name(id=name):
            return _column(name)[0]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return pc.scalar(0) - _value(inner)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            # Arrow divides integers without remainder; here 3 / 2 is 1.5, as in Python.
            return _value(left).cast(pa.float64()) / _value(right).cast(pa.float64())
    raise SettingsError(
        f"'{ast.unparse(node)}' is not supported: use columns, numbers, strings, + - * / and "
        "comparisons"
    )


def _column(name: str) -> tuple[pc.Expression, pa.DataType]:
    """Convert a column's name: the expression and its type.

    Raises SettingsError, with a suggestion, for an unknown one.
    """
    if name not in COLUMNS:
        near = difflib.get_close_matches(name, COLUMNS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COLUMNS)}"
        raise SettingsError(f"the clips table has no column '{name}' ({hint})")
    return pc.field(name), CLIPS.field(name).type
