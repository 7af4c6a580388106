"""Read datasets of HDF5 files. h5py is imported when a file is read: few builds need it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, MachineError, Reason

_MOST_PIXELS = 200_000_000
"""Numbers that a dataset may have."""


def require_h5py() -> None:
    """Raise MachineError if h5py is not installed."""
    if not find_spec("h5py"):
        raise MachineError(
            "depth maps in HDF5 files are read by h5py, which is not installed here: "
            "pip install 'pretrack[uco3d]', or set frames.depth to false"
        )


def read_dataset(path: Path, name: str) -> NDArray[np.float32]:
    """Read a dataset of numbers [H, W].

    Raises DecodeError if the file or the dataset is missing or cannot be read, or if its numbers
    lie in another file; MachineError if h5py is not installed.
    """
    require_h5py()
    import h5py

    try:
        # Locks are not supported on every read-only or network file system.
        with h5py.File(path, "r", locking=False) as file:
            # A link could lead to another file.
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise DecodeError(f"it has no dataset '{name}'", Reason.DEPTH_UNKNOWN)
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset) or not _is_map(dataset):
                raise DecodeError(
                    f"'{name}' is not a dataset of numbers with two axes", Reason.DEPTH_UNKNOWN
                )
            return dataset[()].astype(np.float32)  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise DecodeError("the file is missing", Reason.DEPTH_UNKNOWN) from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DecodeError(f"it cannot be read ({error})", Reason.DEPTH_UNKNOWN) from error


def _is_map(dataset: Any) -> bool:
    """Tell whether a dataset is an array [H, W] of numbers that lie in its own file."""
    elsewhere = dataset.is_virtual or dataset.external
    return (
        dataset.ndim == 2
        and 0 < dataset.size <= _MOST_PIXELS
        and dataset.dtype.kind in "fiu"
        and not elsewhere
    )
