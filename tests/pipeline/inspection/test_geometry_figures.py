"""What `pretrack report` and the gallery say about scores of tracks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.snapshot import Snapshot
from pipeline.inspection.gallery.write import write_gallery
from pipeline.inspection.report import charts_of, page, write_report
from pipeline.inspection.report_figures import measure
from pipeline.monitoring.progress import Progress
from shards.clip import Tracks
from tests.helpers.browser import chromium_browser, visit
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import (
    SIZE,
    StaticScene,
    static_scene,
    stored_scene,
    with_drift,
    with_positions,
)


def small_scene(seed: int, **changes: Any) -> StaticScene:
    return static_scene(seed, frames=12, anchors=(0, 6), grid=6, noise=0.1, **changes)


def half_off() -> StaticScene:
    """A scene whose lower half is 40 px too low from frame 6 on, so far off its lines."""
    scene = small_scene(1, turn=22.0)
    positions = scene.truth.copy()
    positions[:, 6:, 18:, 1] += 40
    anchors = scene.tracks.anchors
    rows = np.arange(len(anchors))
    positions[rows, anchors] = scene.truth[rows, anchors]
    return with_positions(scene, positions)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Clips of static scenes, one right and one half off, and one clip without cameras."""
    grey = grey_clip("grey", source="walks")
    clips = [
        stored_scene(small_scene(0, turn=22.0), "right", "scenes"),
        stored_scene(half_off(), "off", "scenes"),
        replace(grey, info=replace(grey.info, cameras=None)),
    ]
    return publish_clips(tmp_path_factory.mktemp("scores") / "out", clips, scored=True)


def test_scores_are_summarised_by_source(snapshot: Snapshot) -> None:
    scenes, walks = measure(snapshot).geometry.sources
    assert (scenes.source, scenes.clips, scenes.scored, scenes.posed) == ("scenes", 2, 2, 2)
    assert scenes.turn == pytest.approx(22.0, abs=0.2)
    assert (walks.clips, walks.scored, walks.posed) == (1, 1, 0)
    assert (walks.turn, walks.epipolar_px, walks.epipolar_inliers) == (None, None, None)
    assert walks.cycle_px == pytest.approx(0, abs=0.01)


def test_videos_whose_tracks_and_poses_disagree_come_first(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    (video,) = figures.geometry.suspicious
    assert (video.source, video.video_id, video.clips) == ("scenes", "off", 1)
    assert 0.5 < video.epipolar_inliers < 0.9
    assert figures.geometry.suspicious_videos == 1
    assert [
        line
        for line in figures.concerns
        if "disagree in 1 video, or many points move there; the worst is off" in line
    ]


def test_videos_whose_poses_are_exact_are_not_listed(tmp_path: Path) -> None:
    off = stored_scene(half_off(), "off", "scenes")
    rendered = replace(off, info=replace(off.info, dataset="scenes"))
    figures = measure(publish_clips(tmp_path / "out", [rendered], scored=True))
    assert (figures.geometry.sources[0].epipolar_inliers or 1) < 0.9
    assert (figures.geometry.suspicious, figures.geometry.suspicious_videos) == ((), 0)


def test_inliers_are_counted_by_gap_and_by_angle(snapshot: Snapshot) -> None:
    geometry = measure(snapshot).geometry
    assert (geometry.by_gap[0].low, geometry.by_gap[-1].high) == (1, 12)
    # 12 frames turn by 22 degrees, which is a little more than 2 degrees per frame with the nod
    angles = [(it.low, it.high) for it in geometry.by_angle]
    assert angles == [(2, 5), (5, 10), (10, 20), (20, 40)]
    assert sum(it.points for it in geometry.by_gap) == sum(it.points for it in geometry.by_angle)
    assert geometry.by_gap[-1].inliers < 0.9


def test_the_page_shows_them_and_escapes_names(snapshot: Snapshot, tmp_path: Path) -> None:
    figures, files = write_report(snapshot, tmp_path)
    written = (tmp_path / "index.html").read_text()
    assert "Tracks checked by cameras" in written
    assert "Videos whose tracks and poses disagree" in written
    assert {"inliers_by_gap.png", "inliers_by_angle.png"} <= {file.name for file in files}
    (worst,) = figures.geometry.suspicious
    hostile = replace(figures.geometry, suspicious=(replace(worst, video_id="<script>x"),))
    shown = page(replace(figures, geometry=hostile), charts_of(figures))
    assert "<script>x" not in shown
    assert "&lt;script&gt;x" in shown


def test_a_snapshot_without_scores_has_no_section(tmp_path: Path) -> None:
    write_report(publish_clips(tmp_path / "out", [grey_clip("grey")]), tmp_path / "page")
    assert "Tracks checked by cameras" not in (tmp_path / "page" / "index.html").read_text()


def hue_of(red: int, green: int, blue: int) -> float:
    """Return the hue of a colour in degrees."""
    high, low = max(red, green, blue), min(red, green, blue)
    span = max(high - low, 1)
    if high == red:
        return 60 * ((green - blue) / span % 6)
    return 60 * ((blue - red) / span + 2) if high == green else 60 * ((red - green) / span + 4)


@pytest.mark.slow
def test_the_gallery_colours_points_by_error_and_sorts_by_it(tmp_path: Path) -> None:
    """A right point is blue, one 40 px off is red; the worst clip is listed first."""
    snapshot = publish_clips(
        tmp_path / "out",
        [
            stored_scene(with_drift(small_scene(2), part=0.2), "b-drifting"),
            stored_scene(small_scene(0), "a-right"),
            stored_scene(half_off(), "c-off"),
        ],
        scored=True,
    )
    made = write_gallery(snapshot, tmp_path / "page", Progress(quiet=True))
    assert isinstance(made.page, Path)
    with chromium_browser() as browser:
        opened = visit(browser, made.page.as_uri())
        opened.page.wait_for_selector(".card")
        opened.page.select_option("#sort", "epipolar_inliers+")
        assert opened.page.locator(".card .name").all_text_contents()[0] == "c-off"
        assert opened.page.locator(".card .facts").first.text_content().count("inliers") == 1
        opened.page.locator(".card").first.click()
        opened.page.wait_for_selector("canvas")
        opened.page.locator("#colours button", has_text="error").click()
        assert opened.page.locator("#scale").is_visible()
        # frame 6, the middle, is shown; anchor 0 is chosen
        tracks = half_off().tracks
        right, wrong = (hue_at(opened.page, tracks, n) for n in (2, 26))
        assert 170 < right < 230
        assert wrong < 20 or wrong > 340
        assert opened.faults == []


def hue_at(page: Any, tracks: Tracks, point: int) -> float:
    """Return the hue of the canvas where a point of the first anchor is in frame 6."""
    place = (tracks.positions[0, 6, point] + 0.5) / np.array(SIZE)
    pixel = page.locator("canvas").evaluate(
        """(canvas, [x, y]) => {
            const at = [x * canvas.width, y * canvas.height].map(Math.floor);
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
        }""",
        place.tolist(),
    )
    return hue_of(*pixel[:3])
