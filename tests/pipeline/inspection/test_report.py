"""What `pretrack report` says of a snapshot."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from manifests.snapshot import Snapshot
from pipeline.cli import app
from pipeline.inspection import charts
from pipeline.inspection import report_figures as snapshot_figures
from pipeline.inspection.report import write_report
from pipeline.inspection.report_figures import cycle_errors, measure
from shards.clip import Tracks
from tests.helpers.browser import chromium_browser, visit
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips

HOSTILE = "<script>alert(1)</script>"
LOST = {
    "source": "pans",
    "video_id": "bad.mp4",
    "clip": "",
    "stage": "scan",
    "reason": "unreadable video",
    "detail": "",
    "shard": "",
}
DROPPED = {
    **LOST,
    "video_id": "a.mp4",
    "clip": "pans-a-000016",
    "stage": "decode",
    "reason": HOSTILE,
}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    clips = [
        grey_clip("pans-a-000000", video="a.mp4", source="pans", frames=12),
        grey_clip("pans-a-000008", video="a.mp4", source="pans"),
        grey_clip("pans-b-000000", video="b.mp4", source="pans", split="eval", step=(40.0, 0.0)),
        grey_clip("walks-c-000000", video="c.mp4", source=HOSTILE, step=(0.0, 0.0)),
    ]
    return publish_clips(
        tmp_path_factory.mktemp("report") / "out",
        clips,
        motion=(0.05, 0.04, 0.6, 0.0),
        settings={"tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0, 4]}},
        failures=[LOST, LOST, DROPPED],
    )


def test_counts(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    assert (figures.clips, figures.frames, figures.shards) == (4, 36, 1)
    groups = {
        (group.source, group.split): (group.videos, group.clips, group.frames)
        for group in figures.groups
    }
    assert groups == {
        ("pans", "train"): (1, 2, 20),
        ("pans", "eval"): (1, 1, 8),
        (HOSTILE, "train"): (1, 1, 8),
    }
    counts = dict(zip(figures.lengths.edges, figures.lengths.counts, strict=False))
    assert (counts[7.5], counts[11.5]) == (3, 1)
    assert sum(figures.visible.counts) == sum(figures.motion.counts) == 4
    assert figures.motion.edges[-1] == 1.0
    assert figures.failures == (("scan", "unreadable video", 2), ("decode", HOSTILE, 1))
    assert figures.videos_lost == 1, "the other one lost a clip, and has others"


def test_bytes_and_speed(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    assert sum(figures.bytes.values()) == snapshot.shards["bytes"][0].as_py()
    sizes = snapshot.clips.to_pylist()
    assert figures.bytes["frames"] == sum(sum(row["frame_sizes"]) for row in sizes)
    assert [(it.stage, it.seconds, it.frames_per_second) for it in figures.stages] == [
        ("decode", 2.0, 18.0),
        ("track", 6.0, 6.0),
        ("write", 0.5, 72.0),
    ]


def test_visibility_since_the_anchor(snapshot: Snapshot) -> None:
    still, pans = sorted(measure(snapshot).sources, key=lambda source: source.source)
    assert dict(still.since_anchor) == dict.fromkeys(range(-4, 8), 1.0)
    since = dict(pans.since_anchor)
    assert since[0] == 1.0
    assert since[1] < 1.0
    assert (min(since), max(since)) == (-4, 11)


def test_points_that_come_home_have_no_error_and_others_have_theirs() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    errors = cycle_errors(tracks)
    assert len(errors) > 10
    assert errors.max() < 1e-3
    strayed = tracks.positions.copy()
    strayed[1, 0] += (3.0, -4.0)  # what starts at frame 4 is at frame 0 where it does not belong
    back = cycle_errors(replace(tracks, positions=strayed))
    np.testing.assert_allclose(back[: len(back) // 2], 5.0, atol=1e-3)
    one = Tracks(
        tracks.anchors[:1], tracks.positions[:1], tracks.visibility[:1], tracks.confidence[:1]
    )
    assert len(cycle_errors(one)) == 0


def test_hidden_points_are_not_judged() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    hidden = np.zeros_like(tracks.visibility)
    assert len(cycle_errors(replace(tracks, visibility=hidden))) == 0


def test_only_some_clips_are_read_and_always_the_same(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_figures, "SAMPLED", 2)
    first, again = measure(snapshot).sources, measure(snapshot).sources
    assert first == again
    assert [source.clips for source in first] == [1, 1]


def test_what_to_think_about(snapshot: Snapshot, tmp_path: Path) -> None:
    said = measure(snapshot).concerns
    assert "1 video yielded nothing, beside 3 that could be read." in said
    assert '"motion > 0.01 and visible_fraction > 0.5" keeps 2 of 4 clips (50%).' in said
    alone = publish_clips(tmp_path / "out", [grey_clip("made-a", anchors=(0,))])
    row = alone.clips.to_pylist()[0]
    tar = tmp_path / "out" / "shards" / f"{row['shard']}.tar"
    data = bytearray(tar.read_bytes())
    data[row["tracks_offset"] : row["tracks_offset"] + 8] = bytes(8)
    tar.write_bytes(data)
    said = measure(alone).concerns
    assert any(concern.startswith("There is no clip in the split eval") for concern in said)
    assert "The tracks of 1 sampled clip could not be read: run 'pretrack verify'." in said


@pytest.mark.slow
def test_the_page_in_a_browser(snapshot: Snapshot, tmp_path: Path) -> None:
    _, files = write_report(snapshot, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    with chromium_browser() as browser:
        for width in (1280, 390):
            opened = visit(
                browser,
                (tmp_path / "index.html").as_uri(),
                viewport={"width": width, "height": 800},
                color_scheme="dark",
            )
            page = opened.page
            assert page.locator("h1").text_content() == "Snapshot 000001"
            assert page.locator("svg").count() == len(files) - 1
            assert page.locator("td", has_text=HOSTILE).count() == 2, "sources, and there and back"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.locator("button").click()
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
            assert [url for url in opened.requests if not url.startswith("data:")] == [
                (tmp_path / "index.html").as_uri()
            ]
            assert opened.faults == []
            page.context.close()


def test_charts_are_pictures_too(snapshot: Snapshot, tmp_path: Path) -> None:
    _, files = write_report(snapshot, tmp_path)
    pngs = [tmp_path / file.name for file in files[1:]]
    assert len(pngs) == 8
    for file in pngs:
        picture = np.asarray(Image.open(BytesIO(file.read_bytes())))
        assert picture.shape[1] == 880
        assert picture.std() > 5, f"{file.name} is not empty"


def test_what_is_said_behind_a_bar_is_not_cut_off() -> None:
    chart = charts.bars(
        "Left out, and why", [charts.Bar("unreadable video", (1_234_567,), "1,234,567 at catalog")]
    )
    assert np.asarray(Image.open(BytesIO(charts.png(chart))))[:, -4:].min() == 255, (
        "the picture ends in its ground"
    )


def test_one_anchor_says_why_there_is_no_error(tmp_path: Path) -> None:
    write_report(
        publish_clips(tmp_path / "out", [grey_clip("made-a", anchors=(0,))]), tmp_path / "report"
    )
    assert (
        "Points cannot be followed there and back: that takes two anchors"
        in (tmp_path / "report" / "index.html").read_text()
    )


def test_the_command(snapshot: Snapshot) -> None:
    done = CliRunner().invoke(app, ["report", str(snapshot.out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["clips"] == 4
    assert said["files"][0] == f"{snapshot.out}/pictures/report/index.html"
    assert all(Path(file).is_file() for file in said["files"])
