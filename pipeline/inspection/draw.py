"""Draw tracks over frames.

A track has one colour and a tail of its last positions; its dot is filled while the point is
visible and hollow while it is hidden.
"""

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

_TAIL = 6  # frames
_SUBPIXEL = 16  # OpenCV takes coordinates in units of 1/16 px with shift=4
_SHOWN_SHORT_SIDE = 256  # pixels; smaller frames are enlarged by a whole number
_MOST_POINTS = 144
_STRIP_HEIGHT = 22  # pixels of the caption above a frame


def draw_clip(clip: StoredClip, anchor: int = 0) -> list[Picture]:
    """Draw every frame of a clip with the tracks of its `anchor`-th anchor: RGB, [H, W, 3] each.

    Small frames are enlarged, and a caption is added above. A dense grid is thinned to every second
    or third row and column, so that the picture stays visible.
    """
    drawn = _draw_frames(clip, anchor, range(len(clip.jpegs)))
    return [_add_caption(frame, clip, t, anchor) for t, frame in enumerate(drawn)]


def thumbnail(clip: StoredClip, anchor: int = 0, width: int = 320) -> bytes:
    """Return a clip's middle frame with its tracks as JPEG, at most `width` pixels wide."""
    (frame,) = _draw_frames(clip, anchor, [len(clip.jpegs) // 2])
    if frame.shape[1] > width:
        size = (width, max(1, round(frame.shape[0] * width / frame.shape[1])))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return jpeg.encode(frame, 82)


def _draw_frames(clip: StoredClip, anchor: int, times: Iterable[int]) -> Iterator[Picture]:
    """Draw some frames with tracks, without a caption."""
    tracks = clip.tracks
    shown = thin_grid(tracks.positions.shape[2], _MOST_POINTS)
    scale = max(1, round(_SHOWN_SHORT_SIDE / min(clip.info.width, clip.info.height)))
    colours = [colour(number, len(shown)) for number in range(len(shown))]
    # pixel centres lie at integers before and after the enlargement
    positions = (tracks.positions[anchor][:, shown] + 0.5) * scale - 0.5
    visible = tracks.visibility[anchor][:, shown] >= VISIBLE_THRESHOLD
    for t in times:
        decoded = jpeg.decode(clip.jpegs[t])
        enlarged = cv2.resize(decoded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        frame = enlarged.astype(np.uint8)
        recent = slice(max(0, t - _TAIL), t + 1)
        for n, track_colour in enumerate(colours):
            _draw_track(frame, positions[recent, n], visible[recent, n], track_colour)
        yield frame


def write_sheet(
    path: Path, clip: StoredClip, anchor: int = 0, columns: int = 4, most_frames: int = 12
) -> None:
    """Write a contact sheet (PNG) of up to `most_frames` frames, the anchor frame among them."""
    frames = draw_clip(clip, anchor)
    shown = _spread_frames(len(frames), int(clip.tracks.anchors[anchor]), most_frames)
    tiles = [frames[t] for t in shown]
    blank = np.full_like(tiles[0], 24)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    atomic_write(path, cv2.imencode(".png", sheet)[1].tobytes())


def _spread_frames(frames: int, anchor_frame: int, most: int) -> list[int]:
    """Choose up to `most` frames, spread evenly, with the anchor frame among them."""
    spread = np.linspace(0, frames - 1, min(most, frames)).round().astype(int)
    chosen = np.unique(np.append(spread, anchor_frame))
    if len(chosen) > most:  # the anchor frame replaces its nearest neighbour
        others = chosen[chosen != anchor_frame]
        nearest = others[np.abs(others - anchor_frame).argmin()]
        chosen = chosen[chosen != nearest]
    return chosen.tolist()


def write_video(path: Path, clip: StoredClip, anchor: int = 0, frames_per_second: int = 10) -> None:
    """Write the drawn clip as an H.264 MP4 that browsers play."""
    frames = draw_clip(clip, anchor)
    # yuv420p needs even sides
    height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        # faststart puts the index first, so that a browser plays before it has read everything
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
                cropped = np.ascontiguousarray(frame[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(cropped, format="rgb24")))
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def colour(number: int, count: int) -> tuple[int, int, int]:
    """Return the colour of point `number` of `count`: RGB.

    Hues follow the order of the grid: neighbours look alike, so a point that strays stands out.
    """
    red, green, blue = colorsys.hsv_to_rgb(number / max(count, 1) * 0.9, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_track(
    frame: Picture,
    path: NDArray[np.float32],
    visible: NDArray[np.bool_],
    colour: tuple[int, int, int],
) -> None:
    """Draw a track's last positions [t, 2] with visibility [t] into a frame; the last is now."""
    # far outside the frame, fixed-point coordinates would overflow
    points = np.rint(np.clip(path, -1000, 10000) * _SUBPIXEL).astype(int)
    centre = (int(points[-1, 0]), int(points[-1, 1]))
    if visible[-1]:
        tail = [points.reshape(-1, 1, 2).astype(np.int32)]
        cv2.polylines(frame, tail, False, colour, 1, cv2.LINE_AA, shift=4)
        cv2.circle(frame, centre, 4 * _SUBPIXEL, (0, 0, 0), -1, cv2.LINE_AA, shift=4)
        cv2.circle(frame, centre, 3 * _SUBPIXEL, colour, -1, cv2.LINE_AA, shift=4)
    else:
        cv2.circle(frame, centre, 3 * _SUBPIXEL, colour, 1, cv2.LINE_AA, shift=4)


def caption(clip: StoredClip, t: int, anchor: int) -> str:
    """Return the caption of frame `t`: its number, source frame and time; ANCHOR on the anchor."""
    role = "  ANCHOR" if t == clip.tracks.anchors[anchor] else ""
    seconds = f"  {clip.info.timestamps[t]:.2f} s" if clip.info.timestamps else ""
    return f"{t}  (source frame {clip.info.frame_numbers[t]}{seconds}){role}"


def _add_caption(frame: Picture, clip: StoredClip, t: int, anchor: int) -> Picture:
    """Return the frame below a strip with its caption."""
    strip = np.full((_STRIP_HEIGHT, frame.shape[1], 3), 24, np.uint8)
    text, font = caption(clip, t, anchor), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, text, (6, 15), font, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([strip, frame])
