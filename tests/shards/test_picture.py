"""A notebook shows a clip's own frames, with its tracks where they are."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from pipeline.inspection.draw import draw_clip
from shards.picture import thin_grid
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip


def shown(clip: StoredClip) -> ET.Element:
    """Parse the clip's HTML, which is well formed."""
    return ET.fromstring(clip._repr_html_().replace("<br>", "<br/>"))


def test_a_clip_shows_its_own_frames_with_points_where_its_tracks_are() -> None:
    clip = make_clip(frames=6)
    pictures = shown(clip).findall(".//svg")
    assert [picture.get("aria-label") for picture in pictures] == [
        "frame 0",
        "frame 2",
        "frame 3",
        "frame 5",
    ]
    for picture, t in zip(pictures, (0, 2, 3, 5), strict=True):
        image = picture.find("image")
        assert image is not None
        assert base64.b64decode((image.get("href") or "").split(",")[1]) == clip.jpegs[t]
        dots = picture.findall("circle")
        placed = np.array([[float(dot.get("cx") or 0), float(dot.get("cy") or 0)] for dot in dots])
        np.testing.assert_allclose(placed, clip.tracks.positions[0, t] + 0.5, atol=0.051)
        filled = [dot.get("fill") != "none" for dot in dots]
        assert filled == (clip.tracks.visibility[0, t] >= 128).tolist()


def test_names_are_only_text() -> None:
    clip = make_clip()
    clip = replace(
        clip, info=replace(clip.info, video_id="<script>alert(1)</script>", source='"><img src=x>')
    )
    page = clip._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert "<script>alert(1)</script>" in "".join(shown(clip).itertext())


def test_a_visible_point_has_a_tail_of_its_last_seven_positions() -> None:
    clip = make_clip(frames=12, points=1)
    tracks = replace(clip.tracks, visibility=np.full_like(clip.tracks.visibility, 128))
    pictures = shown(replace(clip, tracks=tracks)).findall(".//svg")
    for picture, t in zip(pictures, (0, 4, 7, 11), strict=True):
        (tail,) = picture.findall("polyline")
        places = [place.split(",") for place in (tail.get("points") or "").split()]
        expected = tracks.positions[0, max(0, t - 6) : t + 1, 0] + 0.5
        np.testing.assert_allclose(np.array(places, float), expected, atol=0.051)


@pytest.mark.parametrize(
    ("points", "most", "indices"),
    [
        (16, 16, list(range(16))),
        (16, 9, [0, 2, 8, 10]),
        (17, 9, [0, 2, 4, 10, 12, 14]),
        (49, 9, [0, 3, 6, 21, 24, 27, 42, 45, 48]),
    ],
)
def test_of_a_dense_grid_every_second_or_third_row_and_column_is_drawn(
    points: int, most: int, indices: list[int]
) -> None:
    assert thin_grid(points, most) == indices


@pytest.mark.parametrize(
    ("points", "most"), [(0, 9), (1, 9), (5, 9), (8, 9), (9, 9), (16, 9), (17, 9), (1024, 100)]
)
def test_of_any_number_of_points_some_are_drawn(points: int, most: int) -> None:
    indices = thin_grid(points, most)
    assert len(indices) <= most
    assert indices == sorted({index for index in indices if index < points})
    assert len(indices) == points or points > most


def test_clips_whose_points_are_no_grid_are_drawn() -> None:
    clip = make_clip(points=8)
    frames = draw_clip(clip)
    assert len(frames) == clip.info.frames
    assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_it_needs_nothing_from_elsewhere_and_stays_small() -> None:
    clip = make_clip(points=32 * 32)
    page = clip._repr_html_()
    assert not re.search(r'(href|src)="(?!data:)', page)
    assert len(shown(clip).findall(".//circle")) <= 400
    one = make_clip(frames=1, points=1)
    assert len(shown(replace(one, tracks=one.tracks)).findall(".//svg")) == 1
