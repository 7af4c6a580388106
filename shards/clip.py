"""The types of a stored clip: what lies in a shard, independent of how it was made.

Pixel convention, here and everywhere in pretrack: (x, y) with x to the right and y down, and the *centre* of the top-left pixel
at (0, 0). A frame of width W covers x from -0.5 to W - 0.5.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError

FORMAT_VERSION = 1
"""Raised by hand when the members of a shard change in a way that readers must know."""

LARGEST_DESCRIPTION = 1 << 26
"""Bytes of a description a reader accepts: hundreds of times that of a long clip with cameras."""

VISIBLE_THRESHOLD = 128
"""The visibility from which on a point is drawn and counted as visible; who trains chooses another as needed."""

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
_BY_FRAME: dict[str, tuple[type, ...]] = {
    "frame_numbers": (int,),
    "timestamps": (int, float),
    "cameras": (dict, type(None)),
}
"""What has one entry a frame, and of which kinds."""


def is_key(key: object) -> bool:
    """Whether a clip may be called so: a key is a part of file names, which must not lead elsewhere, and of names in tars."""
    return (
        isinstance(key, str)
        and 0 < len(key) <= _LONGEST_KEY
        and all(c.isalnum() or c in "-_" for c in key)
    )


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in OpenCV axes (x right, y down, z forward), intrinsics in pixels of the frame it belongs to.

    `world_to_camera` is a row-major 3x4 matrix: X_camera = M[:, :3] @ X_world + M[:, 3]. World units are the source's own.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: Annotated[tuple[float, ...], 12]

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Camera:
        """A camera from plain data. Raises ValueError, TypeError or KeyError where that is none."""
        camera = cls(**{**fields, "world_to_camera": tuple(fields["world_to_camera"])})
        numbers = (camera.fx, camera.fy, camera.cx, camera.cy, *camera.world_to_camera)
        if len(numbers) != 16 or any(type(number) not in (int, float) for number in numbers):
            raise ValueError("a camera should have 4 numbers and a matrix of 12")
        return camera


@dataclass(frozen=True)
class ClipInfo:
    """Everything about a clip that is neither pixels nor tracks: the content of `KEY.json`.

    Per-frame tuples all have one entry a stored frame. `frame_numbers` are the source's own numbers (a video's frame index, or the
    number in an image's file name). `timestamps` are seconds from the start of the source, `cameras` belong to the *stored* size;
    both are None where the source does not have them.
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

    @property
    def frames(self) -> int:
        """The number of stored frames, T."""
        return len(self.frame_numbers)

    def to_json(self) -> bytes:
        """The bytes of `KEY.json`: UTF-8, keys sorted, the same for the same clip."""
        return json.dumps(
            asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ClipInfo:
        """Reads `KEY.json`. Raises ShardError if it is not one, or is of a format this version does not know."""
        if len(data) > LARGEST_DESCRIPTION:
            raise ShardError(
                f"its description has {len(data)} bytes, more than the {LARGEST_DESCRIPTION} allowed"
            )
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT_VERSION:
                raise ShardError(
                    f"this clip has shard format {fields['format']}, and this version of pretrack reads format {FORMAT_VERSION}"
                )
            _check(fields)
            if fields["cameras"] is not None:
                fields["cameras"] = [
                    None if camera is None else Camera.read(camera) for camera in fields["cameras"]
                ]
            return cls(
                **{**fields, **{name: fields[name] and tuple(fields[name]) for name in _BY_FRAME}}
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"not a clip description ({error})") from error


def _check(fields: dict[str, Any]) -> None:
    """Raises ValueError for fields of a description that would lead astray those who use them: shards come from other people."""
    if not is_key(fields["key"]):
        raise ValueError(f"{fields['key']!r:.80} cannot be a clip's key")
    if wrong := [name for name in _TEXTS if not isinstance(fields[name], str)]:
        raise ValueError(f"'{wrong[0]}' should be a text")
    if wrong := [name for name in _SIZES if type(fields[name]) is not int or fields[name] < 1]:
        raise ValueError(f"'{wrong[0]}' should be a number of pixels")
    for name, kinds in _BY_FRAME.items():
        values = fields[name]
        if values is None and name != "frame_numbers":
            continue
        if (
            not isinstance(values, list)
            or not values
            or any(type(value) not in kinds for value in values)
        ):
            raise ValueError(f"'{name}' should be a list with an entry a frame")
        if len(values) != len(fields["frame_numbers"]):
            raise ValueError(
                f"'{name}' has {len(values)} entries for {len(fields['frame_numbers'])} frames"
            )


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point tracks of one clip: for each anchor frame a grid of N points, followed over all T frames both ways.

    anchors:    int32   [A]           frame indices within the clip
    positions:  float32 [A, T, N, 2]  (x, y) in pixels of the stored frame; may lie outside it
    visibility: uint8   [A, T, N]     probability of being visible, 255 = certain
    confidence: uint8   [A, T, N]     probability that the position is right, 255 = certain
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
                f"tracks disagree in shape: anchors {self.anchors.shape}, positions {self.positions.shape}, "
                f"visibility {self.visibility.shape}, confidence {self.confidence.shape}"
            )
