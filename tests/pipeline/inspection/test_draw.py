"""Drawn frames: captions, points where the tracks are, and the frames of a contact sheet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.inspection.draw import _spread_frames, caption, colour, draw_clip, write_sheet
from shards.stored_clip import StoredClip
from tests.helpers.clips import GREY, HEIGHT, WIDTH, grey_clip

STRIP, SCALE = 22, 4
"""Pixels of caption above a frame; a frame of 96x64 is shown four times as large."""


@pytest.fixture
def clip() -> StoredClip:
    """8 frames, source frames from 3 at 10 per second; anchors in frames 0 and 4."""
    return grey_clip("made-a")


@pytest.mark.parametrize(("anchor", "anchor_frame"), [(0, 0), (1, 4)])
def test_the_caption_names_the_anchor_on_its_own_frame_alone(
    clip: StoredClip, anchor: int, anchor_frame: int
) -> None:
    captions = [caption(clip, t, anchor) for t in range(8)]
    assert captions[anchor_frame].endswith(
        "(source frame 3  0.00 s)  ANCHOR" if anchor == 0 else "(source frame 7  0.40 s)  ANCHOR"
    )
    assert [t for t in range(8) if "ANCHOR" in captions[t]] == [anchor_frame]
    assert captions[5] == "5  (source frame 8  0.50 s)"


@pytest.mark.parametrize(("anchor", "anchor_frame"), [(0, 0), (1, 4)])
def test_the_caption_is_drawn_above_its_frame(
    clip: StoredClip, anchor: int, anchor_frame: int
) -> None:
    frames = draw_clip(clip, anchor)
    ends = [np.nonzero(frame[:STRIP].max(axis=(0, 2)) > 200)[0][-1] for frame in frames]
    assert int(np.argmax(ends)) == anchor_frame
    assert ends[anchor_frame] > sorted(ends)[-2] + 40, "it is the longest by one word"


def test_points_are_drawn_where_the_tracks_are(clip: StoredClip) -> None:
    tracks, frames = clip.tracks, draw_clip(clip, anchor=1)
    assert {frame.shape for frame in frames} == {(STRIP + SCALE * HEIGHT, SCALE * WIDTH, 3)}
    for t in (2, 4, 7):
        x, y = ((tracks.positions[1, t, 5] + 0.5) * SCALE - 0.5).round().astype(int)
        assert tuple(frames[t][STRIP + y, x]) == colour(5, 16)
        assert frames[t][STRIP + y + 20, x + 20] == pytest.approx((GREY,) * 3, abs=3)


def test_a_hidden_point_is_hollow(clip: StoredClip) -> None:
    clip.tracks.visibility[0, 1:] = 127
    frame = draw_clip(clip)[1]
    x, y = ((clip.tracks.positions[0, 1, 5] + 0.5) * SCALE - 0.5).round().astype(int)
    assert frame[STRIP + y, x] == pytest.approx((GREY,) * 3, abs=3)
    ring = frame[STRIP + y, x + 3].astype(int)
    assert ring.max() - ring.min() > 60


@pytest.mark.parametrize(
    ("frames", "anchor_frame", "most", "shown"),
    [
        (3, 1, 12, [0, 1, 2]),
        (10, 0, 4, [0, 3, 6, 9]),
        (10, 5, 4, [0, 3, 5, 9]),  # 5 takes the place of 6
        (10, 4, 4, [0, 4, 6, 9]),  # and 4 that of 3
    ],
)
def test_a_contact_sheet_shows_spread_frames_and_the_anchor(
    frames: int, anchor_frame: int, most: int, shown: list[int]
) -> None:
    assert _spread_frames(frames, anchor_frame, most) == shown


def test_a_contact_sheet_has_rows_of_tiles(clip: StoredClip, tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.png", clip, anchor=1, columns=3, most_frames=7)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    height, width = STRIP + SCALE * HEIGHT, SCALE * WIDTH
    assert sheet.shape == (3 * height, 3 * width, 3)
    tiles = [
        sheet[y : y + height, x : x + width, ::-1]
        for y in range(0, 3 * height, height)
        for x in range(0, 3 * width, width)
    ]
    drawn = draw_clip(clip, anchor=1)
    for tile, t in zip(tiles, [0, 1, 2, 4, 5, 6, 7], strict=False):
        assert (tile == drawn[t]).all()
    assert (tiles[7] == 24).all()
    assert (tiles[8] == 24).all()
