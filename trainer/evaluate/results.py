"""Results as numbers and files: means, JSON and pictures."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.files import atomic_write


def finite_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Average the values that are finite; NaN if none is."""
    numbers = np.array(values, np.float64)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if len(finite) else math.nan


def write_results(
    folder: Path, evaluation: str, values: dict[str, Any], pictures: dict[str, bytes] | None = None
) -> Path:
    """Write FOLDER/EVALUATION.json, and FOLDER/EVALUATION-NAME.png per picture.

    Returns the path of the JSON. NaN becomes null, since JSON has no NaN. Pictures of an earlier
    evaluation of this name are removed. The JSON is removed first and written last, so that it
    never lies beside pictures of another run.
    """
    results = folder / f"{evaluation}.json"
    results.unlink(missing_ok=True)
    for old in folder.glob(f"{evaluation}-*.png"):
        old.unlink()
    for name, png in (pictures or {}).items():
        atomic_write(folder / f"{evaluation}-{name}.png", png)
    document = {"evaluation": evaluation, **plain(values)}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(results, text.encode())
    return results


def plain(value: Any) -> Any:
    """Convert to JSON's types: arrays to lists, NumPy's numbers to Python's, NaN to None."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def result_json(dataset: str, result: Any, **means: Any) -> dict[str, Any]:
    """Describe a benchmark's result: its dataset, some means, and all fields of its dataclass."""
    document: dict[str, Any] = plain(
        {
            "dataset": dataset,
            **means,
            **asdict(result),
            "settings": result.settings.model_dump(),
        }
    )
    return document


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    installed = {"python": platform.python_version()}
    for name in ("pretrack", "torch", "timm", "numpy"):
        # pretrack itself has no version when it runs from a folder that is not installed.
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
