"""Results as files and as text."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import atomic_write


def write_results(
    folder: Path, evaluation: str, values: dict[str, Any], pictures: dict[str, bytes] | None = None
) -> Path:
    """Writes FOLDER/EVALUATION.json and FOLDER/EVALUATION-NAME.png for each picture, the JSON last; returns the JSON's path.

    NaN becomes null, which JSON has. Pictures of an earlier evaluation with the same name go.
    """
    results = folder / f"{evaluation}.json"
    results.unlink(missing_ok=True)
    for old in folder.glob(f"{evaluation}-*.png"):
        old.unlink()
    for name, png in (pictures or {}).items():
        atomic_write(folder / f"{evaluation}-{name}.png", png)
    atomic_write(
        results,
        json.dumps(
            {"evaluation": evaluation, **plain(values)},
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        ).encode(),
    )
    return results


def plain(value: Any) -> Any:
    """The same as JSON has it: lists for tuples and arrays, Python's numbers for NumPy's, null for NaN."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("pretrack", "torch", "timm", "numpy"):
        with suppress(
            PackageNotFoundError
        ):  # pretrack itself, run from a folder that is not installed
            found[name] = version(name)
    return found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text: the first column to the left, the others to the right."""
    widths = [
        max(len(row[column]) for row in rows if column < len(row))
        for column in range(max(map(len, rows)))
    ]
    lines = []
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False)),
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def number(value: float, digits: int = 4) -> str:
    """A figure, or "-" where there is none."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
