"""`pretrack report`: its page, in a browser too, its charts, and the command."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from manifests.snapshot import Snapshot
from manifests.wording import size
from pipeline.cli import app
from pipeline.inspection.report import write_report
from tests.helpers.browser import chromium_browser, visit
from tests.helpers.clips import grey_clip
from tests.helpers.published import HOSTILE, publish_clips, publish_pans


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return publish_pans(tmp_path_factory.mktemp("report") / "out")


def test_percentages_on_the_page(snapshot: Snapshot, tmp_path: Path) -> None:
    write_report(snapshot, tmp_path)
    text = (tmp_path / "index.html").read_text()
    rows = snapshot.clips.to_pylist()
    visible = np.mean([row["visible_fraction"] for row in rows])
    assert f"<b>{visible:.0%}</b><span>mean visibility</span>" in text
    assert 0.5 < visible < 0.95, "the test tells a mean from a sum"
    assert "<b>25.0%</b><span>of clips for evaluation</span>" in text, "1 of 4"
    assert "<b>3</b><span>videos with clips</span>" in text
    # the two training clips of `pans` have motion 0.05 and 0.04
    assert ">4.5%</td>" in text
    assert "keeps 2 of 4 clips" in text
    frame = sum(sum(row["frame_sizes"]) for row in rows) // 36
    tracks = sum(row["tracks_size"] for row in rows) // 4
    assert f"{size(frame)} per frame; {size(tracks)} of tracks per clip." in text
    assert "8.5 s in total" in text
    assert "2.0 s, 18 frames/s" in text


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
            assert page.locator("td", has_text=HOSTILE).count() == 2, (
                "sources, and forward-backward errors"
            )
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


def test_one_anchor_says_why_there_is_no_error(tmp_path: Path) -> None:
    write_report(
        publish_clips(tmp_path / "out", [grey_clip("made-a", anchors=(0,))]), tmp_path / "report"
    )
    assert (
        "No point could be followed forward and backward: that takes two anchors"
        in (tmp_path / "report" / "index.html").read_text()
    )


def test_tracks_that_training_cannot_use_are_named(tmp_path: Path) -> None:
    """In clips of 8 frames a sample steps by 2: before and after frame 4 there are too few."""
    snapshot = publish_clips(tmp_path / "out", [grey_clip("made-a"), grey_clip("made-b")])
    figures, _ = write_report(snapshot, tmp_path / "report")
    assert figures.unused_tracks[0] == "No training sample can start from the anchor 4."
    assert "it can start from frames 0 to 1 or 6 to 7." in figures.unused_tracks[1]
    assert figures.unused_tracks[0] in (tmp_path / "report" / "index.html").read_text()
    done = CliRunner().invoke(app, ["report", str(snapshot.out)])
    assert figures.unused_tracks[0] in done.stdout
    assert "terms: frames NOASSERTION, tracks" in done.stdout
    # steps of 1 need 3 frames: 3 are left after frame 4
    done = CliRunner().invoke(app, ["report", str(snapshot.out), "--train-step", "1"])
    assert "No training sample" not in done.stdout


def test_the_command(snapshot: Snapshot) -> None:
    done = CliRunner().invoke(app, ["report", str(snapshot.out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["clips"] == 4
    assert said["files"][0] == f"{snapshot.out}/pictures/report/index.html"
    assert all(Path(file).is_file() for file in said["files"])
