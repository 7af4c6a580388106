"""Define the parts of a stored clip: description, camera and tracks.

Pixel convention, here and everywhere in pretrack: (x, y) with x to the right and y down, and the
*centre* of the top-left pixel at (0, 0). A frame of width W covers x from -0.5 to W - 0.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from shards.errors import ShardError

FORMAT_VERSION = 1
"""Increased by hand whenever the members of a shard change in a way that readers must know."""

LARGEST_DESCRIPTION = 1 << 26
"""Most bytes of a description that a reader accepts: hundreds of times a long clip with cameras."""

VISIBLE_THRESHOLD = 128
"""Visibility from which a point is drawn and counted as visible; training has its own setting."""

RENDERED_DATASETS = ("scenes", "synthetic")
"""Datasets that pretrack renders itself: their cameras are exact."""

Directions = Literal["both", "forward", "backward"]
"""The directions in time in which points are tracked, away from their anchor frame."""

_LONGEST_KEY = 100
_TEXTS = (
    "source",
    "dataset",
    "video_id",
    "sequence",
    "split",
    "terms",
    "frames_settings",
    "tracks_settings",
)
_SIZES = ("width", "height", "source_width", "source_height")
_PER_FRAME: dict[str, tuple[type, ...]] = {
    "frame_numbers": (int,),
    "timestamps": (int, float),
    "cameras": (dict, type(None)),
}
"""Fields with one entry per frame, and the types that an entry may have."""


def is_key(key: object) -> bool:
    """Tell whether a text may be a clip's key.

    A key becomes part of file names and of member names in tars, so it must not contain a path.
    """
    return (
        isinstance(key, str)
        and 0 < len(key) <= _LONGEST_KEY
        and all(c.isalnum() or c in "-_" for c in key)
    )


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in OpenCV axes: x right, y down, z forward.

    Intrinsics are in pixels of the frame that the camera belongs to. `world_to_camera` is a
    row-major 3x4 matrix: X_camera = M[:, :3] @ X_world + M[:, 3], in the source's world units.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: Annotated[tuple[float, ...], 12]

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Camera:
        """Read a camera from JSON data. Raises ValueError, TypeError or KeyError for other data."""
        camera = cls(**{**fields, "world_to_camera": tuple(fields["world_to_camera"])})
        numbers = (camera.fx, camera.fy, camera.cx, camera.cy, *camera.world_to_camera)
        if len(numbers) != 16 or any(type(number) not in (int, float) for number in numbers):
            raise ValueError("a camera should have 4 numbers and a matrix of 12")
        return camera


@dataclass(frozen=True)
class ClipInfo:
    """Describe a clip except for its pixels and tracks: the content of `KEY.json`.

    Per-frame tuples have one entry per stored frame:
    frame_numbers: the source's own numbers (a video's frame index, or the number in a file name)
    timestamps:    seconds from the start of the source, or None if it has none
    cameras:       in pixels of the *stored* size, or None if the source has none

    depth_scale: world units per value of the depth maps, None for a clip without; not in the JSON
                 text then
    """

    key: str
    source: str
    dataset: str
    video_id: str
    sequence: str
    split: str
    width: int
    height: int
    source_width: int
    source_height: int
    frame_numbers: tuple[int, ...]
    timestamps: tuple[float, ...] | None
    cameras: tuple[Camera | None, ...] | None
    terms: str
    frames_settings: str
    tracks_settings: str
    format: int = FORMAT_VERSION
    depth_scale: float | None = None

    @property
    def frames(self) -> int:
        """Number of stored frames, T."""
        return len(self.frame_numbers)

    def to_json(self) -> bytes:
        """Give the bytes of `KEY.json`: UTF-8, keys sorted, identical for identical clips."""
        fields = asdict(self)
        if self.depth_scale is None:  # clips without depth are described as before there was any
            del fields["depth_scale"]
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ClipInfo:
        """Read `KEY.json`.

        Raises ShardError for anything else, and for a format that this version does not know.
        """
        if len(data) > LARGEST_DESCRIPTION:
            raise ShardError(
                f"its description has {len(data)} bytes, "
                f"more than the {LARGEST_DESCRIPTION} allowed"
            )
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT_VERSION:
                raise ShardError(
                    f"this clip has shard format {fields['format']}, "
                    f"and this version of pretrack reads format {FORMAT_VERSION}"
                )
            _check(fields)
            if fields["cameras"] is not None:
                fields["cameras"] = [
                    None if camera is None else Camera.read(camera) for camera in fields["cameras"]
                ]
            return cls(
                **{**fields, **{name: fields[name] and tuple(fields[name]) for name in _PER_FRAME}}
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"not a clip description ({error})") from error


def read_cameras(data: bytes, frames: Sequence[int]) -> list[Camera | None]:
    """Read only the cameras of some frames from `KEY.json`; None for those without.

    Nothing else of it is checked. Raises ShardError for other data, and for a frame that the clip
    does not have.
    """
    try:
        # A trainer does this for every sample, and json takes several times as long.
        cameras = from_json(data)["cameras"]
        if cameras is None:
            return [None] * len(frames)
        return [None if cameras[t] is None else Camera.read(cameras[t]) for t in frames]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"not a clip description ({error})") from error


def _check(fields: dict[str, Any]) -> None:
    """Check the fields' types and lengths; a shard may come from anyone. Raises ValueError."""
    if not is_key(fields["key"]):
        raise ValueError(f"{fields['key']!r:.80} cannot be a clip's key")
    if wrong := [name for name in _TEXTS if not isinstance(fields[name], str)]:
        raise ValueError(f"'{wrong[0]}' should be a text")
    scale = fields.get("depth_scale", 1.0)
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise ValueError("'depth_scale' should be a positive number")
    if wrong := [name for name in _SIZES if type(fields[name]) is not int or fields[name] < 1]:
        raise ValueError(f"'{wrong[0]}' should be a number of pixels")
    for name, kinds in _PER_FRAME.items():
        values = fields[name]
        if values is None and name != "frame_numbers":
            continue
        if (
            not isinstance(values, list)
            or not values
            or any(type(value) not in kinds for value in values)
        ):
            raise ValueError(f"'{name}' should be a list with one entry per frame")
        if len(values) != len(fields["frame_numbers"]):
            raise ValueError(
                f"'{name}' has {len(values)} entries for {len(fields['frame_numbers'])} frames"
            )


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point tracks of one clip.

    Per anchor frame, a grid of N points is followed over all T frames, forwards and backwards. In
    frames of a direction that was not tracked (`tracks.directions`), points are at their queries,
    with visibility and confidence 0.

    anchors:    int32   [A]           frame indices within the clip
    positions:  float32 [A, T, N, 2]  (x, y) in pixels of the stored frame; may lie outside it
    visibility: uint8   [A, T, N]     probability that the point is visible, 255 = certain
    confidence: uint8   [A, T, N]     probability that the position is right, 255 = certain

    Raises ValueError if the arrays disagree in shape.
    """

    anchors: NDArray[np.int32]
    positions: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    confidence: NDArray[np.uint8]

    def __post_init__(self) -> None:
        a, t, n, two = self.positions.shape
        if (
            two != 2
            or self.anchors.shape != (a,)
            or self.visibility.shape != (a, t, n)
            or self.confidence.shape != (a, t, n)
        ):
            raise ValueError(
                f"tracks disagree in shape: anchors {self.anchors.shape}, "
                f"positions {self.positions.shape}, visibility {self.visibility.shape}, "
                f"confidence {self.confidence.shape}"
            )


def tracked_frames(
    anchors: Sequence[int] | NDArray[np.int32], frames: int, directions: Directions
) -> NDArray[np.bool_]:
    """Tell in which of T frames the points of each anchor are tracked: [A, T].

    The anchor frame itself is one of them.
    """
    since = np.arange(frames) - np.asarray(anchors)[:, None]
    if directions == "both":
        return np.ones(since.shape, np.bool_)
    return since >= 0 if directions == "forward" else since <= 0
