"""Find the frames of a video file that its source names by their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.rows import Failure
from manifests.wording import pluralise
from pipeline.failures import Reason


def choose_frames(
    row: dict[str, Any], times: Sequence[float], size: tuple[int, int]
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Limit a video file's row of the videos table to the frames nearest to `times`.

    row:  as after the scan: `timestamps` and `cuts` are of all frames of the file, but `cameras`,
          `depth` and `mask_files` have an entry per time
    size: (width, height) of the frames that the cameras are for, (0, 0) if it is not known

    Times beyond the end of the file are left out. Returns None if no frame is left, and failures
    for what is left out.
    """
    in_file = np.asarray(row["timestamps"], np.float64)
    numbers, kept = _nearest(in_file, np.asarray(times, np.float64))
    failures = []
    if len(kept) < len(times):
        detail = (
            f"{len(times) - len(kept)} of {len(times)} frames with annotations have no frame of "
            f"their own in {row['file']}, whose {pluralise(len(in_file), 'frame')} end at "
            f"{in_file[-1]:.2f} s, and are left out"
        )
        failures.append(_failure(row, Reason.MISSING_FRAMES, detail))
    if not len(kept):
        return None, failures
    changed = {
        "frame_numbers": numbers.tolist(),
        "timestamps": in_file[numbers].tolist(),
        "frames": len(numbers),
        "cuts": _cuts(row["cuts"] or [], numbers),
        "mask_files": _taken(row["mask_files"], kept),
        "cameras": _taken(row["cameras"], kept),
    }
    if row["depth"]:
        lists = {name: _taken(row["depth"][name], kept) for name in ("files", "scales", "masks")}
        changed["depth"] = {**row["depth"], **lists}
    actual = (row["width"], row["height"])
    if changed["cameras"] and size not in ((0, 0), actual):
        detail = (
            "all frames have no pose: those of the source are for frames of "
            f"{size[0]}x{size[1]} pixels, and {row['file']} has {actual[0]}x{actual[1]}"
        )
        failures.append(_failure(row, Reason.POSES_MISSING, detail))
        changed["cameras"] = None
    return {**row, **changed}, failures


def _nearest(
    in_file: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the index in the file of each time's frame, and the indices of these times.

    A time has none if it is more than a frame's duration after the last frame, or if an earlier
    time has the same frame.
    """
    after = np.searchsorted(in_file, times).clip(1, max(len(in_file) - 1, 1))
    after = np.minimum(after, len(in_file) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(times - in_file[before] < in_file[after] - times, before, after)
    duration = np.median(np.diff(in_file)) if len(in_file) > 1 else 0.0
    present = times <= in_file[-1] + duration
    numbers, kept = np.unique(nearest[present], return_index=True)
    return numbers, np.flatnonzero(present)[kept]


def _cuts(cuts: Sequence[int], numbers: NDArray[np.int64]) -> list[int]:
    """Return the frames that begin a new shot, among those with these indices in the file."""
    first = np.unique(np.searchsorted(numbers, np.asarray(cuts, np.int64)))
    return first[(first > 0) & (first < len(numbers))].tolist()


def _taken(values: Sequence[Any] | None, kept: NDArray[np.int64]) -> list[Any] | None:
    """Return the values that are kept. None, and a list that is empty, stay as they are."""
    return [values[index] for index in kept] if values else values  # type: ignore[return-value]


def _failure(row: dict[str, Any], reason: Reason, detail: str) -> Failure:
    return Failure(
        source=row["source"],
        video_id=row["video_id"],
        stage="scan",
        reason=reason,
        detail=detail,
    )
