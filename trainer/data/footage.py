"""What clips show, by name: their sequences, and the parts that rendered ones are made of."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

FOOTAGE_COLUMNS = ("dataset", "sequence", "parts")
"""Columns of the clips table that `footage_of` reads."""


@dataclass(frozen=True)
class Footage:
    """Names of what clips show, distinct and sorted.

    sequences: `DATASET/SEQUENCE`; clips of one sequence show the same footage
    parts:     what rendered videos are put together from, such as shapes and textures
    """

    sequences: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def union(self, other: Footage) -> Footage:
        """Name what either shows."""
        return Footage(
            tuple(sorted({*self.sequences, *other.sequences})),
            tuple(sorted({*self.parts, *other.parts})),
        )


def footage_of(clips: pa.Table) -> Footage:
    """Name what the clips of a table show, from its FOOTAGE_COLUMNS."""
    pairs = clips.select(["dataset", "sequence"]).group_by(["dataset", "sequence"]).aggregate([])
    sequences = {_sequence_name(row["dataset"], row["sequence"]) for row in pairs.to_pylist()}
    parts = pc.list_flatten(clips["parts"]).unique().to_pylist()
    return Footage(
        tuple(sorted(sequences)),
        tuple(sorted({_normal(part) for part in parts if part is not None})),
    )


def _sequence_name(dataset: str, sequence: str) -> str:
    """Name a sequence with its dataset; names of pretrack's sources begin with it already."""
    name = _normal(sequence)
    return name if name.startswith(f"{dataset}/") else f"{_normal(dataset)}/{name}"


def _normal(name: str) -> str:
    """Return a name in Unicode's normal form C: file systems differ in the form of é."""
    return unicodedata.normalize("NFC", name)
