"""A row dataclass gives its table's schema; a hint without a definite Arrow type is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest

from manifests.arrow_schema import schema_of


@dataclass
class Lens:
    focal: float
    distortion: Annotated[tuple[float, ...], 3]


@dataclass
class Row:
    name: str
    stage: Literal["a", "b"]
    count: Annotated[int, "int16"]
    maybe: Annotated[float, "float64"] | None
    sizes: list[Annotated[int, "int64"]]
    lenses: tuple[Annotated[Lens, "float32"] | None, ...] | None


def test_every_kind_of_hint_has_its_arrow_type() -> None:
    lens = pa.struct([("focal", pa.float32()), ("distortion", pa.list_(pa.float32(), 3))])
    expected = [
        ("name", pa.string()),
        ("stage", pa.string()),
        ("count", pa.int16()),
        ("maybe", pa.float64()),
        ("sizes", pa.list_(pa.int64())),
        ("lenses", pa.list_(lens)),
    ]
    assert schema_of(Row).equals(pa.schema(expected), check_metadata=True)


@dataclass
class Unsized:
    count: int


@dataclass
class Either:
    value: str | Annotated[int, "int32"]


@dataclass
class Pair:
    value: tuple[str, str]


@dataclass
class Anything:
    value: Any


@pytest.mark.parametrize("row", [Unsized, Either, Pair, Anything])
def test_a_hint_without_an_arrow_type_is_refused(row: type) -> None:
    with pytest.raises(TypeError, match="has no Arrow type: say which"):
        schema_of(row)
