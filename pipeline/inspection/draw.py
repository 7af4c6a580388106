"""Draws tracks over frames: one colour a track, a tail of where it was, a filled dot while visible, a hollow one while not."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from shards import jpeg
from shards.clip import VISIBLE_THRESHOLD
from shards.files import TEMPORARY, atomic_write
from shards.picture import thin_grid
from shards.stored_clip import StoredClip

Picture = NDArray[np.uint8]

_TAIL = 6
_FIXED = 16  # OpenCV draws at 1/16 px with shift=4
_SHOWN_SHORT_SIDE = 256
_MOST_POINTS = 144


def draw_clip(clip: StoredClip, anchor: int = 0) -> list[Picture]:
    """Every frame of a clip, enlarged if small, with the tracks of its `anchor`-th anchor: [H, W, 3] RGB each.

    With many points only every second or third row and column of the grid is drawn, so that the picture stays visible.
    """
    drawn = _drawn(clip, anchor, range(len(clip.jpegs)))
    return [_captioned(frame, clip, t, anchor) for t, frame in enumerate(drawn)]


def thumbnail(clip: StoredClip, anchor: int = 0, width: int = 320) -> bytes:
    """A clip's middle frame with its tracks, `width` pixels wide at most, as JPEG."""
    (frame,) = _drawn(clip, anchor, [len(clip.jpegs) // 2])
    if frame.shape[1] > width:
        size = (width, max(1, round(frame.shape[0] * width / frame.shape[1])))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return jpeg.encode(frame, 82)


def _drawn(clip: StoredClip, anchor: int, times: Iterable[int]) -> Iterator[Picture]:
    """The frames at some times, with tracks and without a caption."""
    tracks = clip.tracks
    shown = thin_grid(tracks.positions.shape[2], _MOST_POINTS)
    scale = max(1, round(_SHOWN_SHORT_SIDE / min(clip.info.width, clip.info.height)))
    colours = [colour(number, len(shown)) for number in range(len(shown))]
    positions = (tracks.positions[anchor][:, shown] + 0.5) * scale - 0.5
    visible = tracks.visibility[anchor][:, shown] >= VISIBLE_THRESHOLD
    for t in times:
        frame = cv2.resize(
            jpeg.decode(clip.jpegs[t]), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC
        ).astype(np.uint8)
        for n, hue in enumerate(colours):
            _draw_track(
                frame,
                positions[max(0, t - _TAIL) : t + 1, n],
                visible[max(0, t - _TAIL) : t + 1, n],
                hue,
            )
        yield frame


def write_sheet(
    path: Path, clip: StoredClip, anchor: int = 0, columns: int = 4, most_frames: int = 12
) -> None:
    """A contact sheet (PNG) of up to `most_frames` frames spread over the clip, the anchor frame among them."""
    frames = draw_clip(clip, anchor)
    picked = np.unique(
        np.append(
            np.linspace(0, len(frames) - 1, min(most_frames, len(frames))).round().astype(int),
            clip.tracks.anchors[anchor],
        )
    )
    if len(picked) > most_frames:  # the anchor came on top: its nearest neighbour makes room
        others = picked[picked != clip.tracks.anchors[anchor]]
        picked = np.delete(
            picked,
            np.searchsorted(picked, others[np.abs(others - clip.tracks.anchors[anchor]).argmin()]),
        )
    tiles = [frames[i] for i in picked]
    blank = np.full_like(tiles[0], 24)
    rows = [
        np.hstack([*tiles[i : i + columns], *[blank] * (columns - len(tiles[i : i + columns]))])
        for i in range(0, len(tiles), columns)
    ]
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    atomic_write(path, cv2.imencode(".png", sheet)[1].tobytes())


def write_video(path: Path, clip: StoredClip, anchor: int = 0, frames_per_second: int = 10) -> None:
    """The drawn clip as an H.264 MP4 that browsers play."""
    frames = draw_clip(clip, anchor)
    height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with av.open(
            str(temporary), "w", format="mp4", options={"movflags": "faststart"}
        ) as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(frames_per_second),
                options={"crf": "20", "preset": "veryfast"},
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(
                    stream.encode(
                        av.VideoFrame.from_ndarray(
                            np.ascontiguousarray(frame[:height, :width]), format="rgb24"
                        )
                    )
                )
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def colour(number: int, of: int) -> tuple[int, int, int]:
    """Hues in the order of the grid: neighbours look alike, so a point that strays stands out."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(of, 1) * 0.9, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_track(
    frame: Picture,
    path: NDArray[np.float32],
    visible: NDArray[np.bool_],
    colour: tuple[int, int, int],
) -> None:
    points = np.rint(np.clip(path, -1000, 10000) * _FIXED).astype(int)
    centre = (int(points[-1, 0]), int(points[-1, 1]))
    if visible[-1]:
        cv2.polylines(
            frame,
            [points.reshape(-1, 1, 2).astype(np.int32)],
            False,
            colour,
            1,
            cv2.LINE_AA,
            shift=4,
        )
        cv2.circle(frame, centre, 4 * _FIXED, (0, 0, 0), -1, cv2.LINE_AA, shift=4)
        cv2.circle(frame, centre, 3 * _FIXED, colour, -1, cv2.LINE_AA, shift=4)
    else:
        cv2.circle(frame, centre, 3 * _FIXED, colour, 1, cv2.LINE_AA, shift=4)


def _captioned(frame: Picture, clip: StoredClip, t: int, anchor: int) -> Picture:
    """The frame with a strip that says which one it is."""
    strip = np.full((22, frame.shape[1], 3), 24, np.uint8)
    role = "  ANCHOR" if t == clip.tracks.anchors[anchor] else ""
    seconds = f"  {clip.info.timestamps[t]:.2f} s" if clip.info.timestamps else ""
    text = f"{t}  (source frame {clip.info.frame_numbers[t]}{seconds}){role}"
    cv2.putText(
        strip, text, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA
    )
    return np.vstack([strip, frame])
