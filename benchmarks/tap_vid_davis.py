"""Read TAP-Vid-DAVIS (`tapvid_davis.pkl`) safely: unpickle only arrays and plain containers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tap_vid import TapClip
from shards.errors import PretrackError

_ALLOWED = {
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    ("_codecs", "encode"): ("_codecs", "encode"),  # pickle protocols up to 2 write bytes so
    **{
        (f"numpy.{core}.{module}", name): (f"numpy._core.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
}
"""The functions and classes that pickled arrays refer to: older and newer names → present names."""


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that refuses every name that arrays do not need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read")
        return super().find_class(*_ALLOWED[module, name])


def read_tap_davis(path: Path) -> Iterator[TapClip]:
    """Yield the clips of the file, in its order.

    The file is a dict from names to {"video": uint8 [T, H, W, 3], "points": float [N, T, 2],
    "occluded": bool [N, T]}. Its points are fractions of the frame's width and height, from border
    to border: x in pixels = fraction * width - 0.5.

    Raises PretrackError for a file that is missing or damaged, contains anything but arrays, or has
    another layout.
    """
    try:
        with open(path, "rb") as file:
            videos = _ArraysOnly(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise PretrackError(
            f"there is no file {path}: download TAP-Vid-DAVIS and name its tapvid_davis.pkl"
        ) from error
    except Exception as error:  # a damaged pickle may raise any exception
        raise PretrackError(f"{path} cannot be read as TAP-Vid-DAVIS ({error})") from error
    if not isinstance(videos, dict) or not videos:
        raise PretrackError(f"{path} is not TAP-Vid-DAVIS: expected a dict of videos by name")
    for name, video in videos.items():
        yield _clip(str(name), video, path)


def _clip(name: str, video: Any, path: Path) -> TapClip:
    """Check one entry of the file and convert it to a clip."""
    arrays = (
        [video[key] for key in ("video", "points", "occluded") if key in video]
        if isinstance(video, dict)
        else []
    )
    if len(arrays) < 3 or not all(isinstance(array, np.ndarray) for array in arrays):
        raise PretrackError(
            f"{path} is not TAP-Vid-DAVIS: '{name}' lacks one of the arrays "
            "video, points and occluded"
        )
    frames, points, occluded = arrays
    n, t = occluded.shape if occluded.ndim == 2 else (-1, -1)
    fits = frames.ndim == 4 and frames.shape[::3] == (t, 3) and points.shape == (n, t, 2)
    if not fits or (frames.dtype, points.dtype.kind, occluded.dtype) != (np.uint8, "f", np.bool_):
        shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)
        raise PretrackError(
            f"{path} is not TAP-Vid-DAVIS: '{name}' has video, points and occluded of {shapes}"
        )
    height, width = frames.shape[1:3]
    return TapClip(name, frames, points * (width, height) - 0.5, ~occluded)
