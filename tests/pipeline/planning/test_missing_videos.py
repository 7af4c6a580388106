"""A source that suddenly finds far fewer videos: nothing is published before someone says yes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manifests.snapshot import current_snapshot, open_snapshot
from pipeline.cli import app
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.missing_videos import missing_videos
from shards.errors import PretrackError
from tests.helpers.pictures import settings_for, write_images

QUIET = Progress(quiet=True)


def remove(root: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(root / "videos" / name)


def test_a_source_that_lost_most_videos_publishes_nothing_without_consent(root: Path) -> None:
    remove(root, "a", "b", "c")
    settings = settings_for(root)
    with pytest.raises(PretrackError) as error:
        build(settings, QUIET)
    assert str(error.value) == (
        "source pans finds 1 of its 4 videos of snapshot 000001 (first missing: a): check its "
        f"root {root / 'videos'}, or use --allow-fewer if that is meant (max_missing_videos=0.5)"
    )
    assert current_snapshot(root / "out") == "000001"
    snapshot = build(settings, QUIET, allow_fewer=True).snapshot
    assert snapshot.name == "000002"
    assert snapshot.videos["video_id"].to_pylist() == ["d"]


def test_half_of_the_videos_may_be_missing_or_what_the_setting_says(root: Path) -> None:
    remove(root, "a", "b")
    assert build(settings_for(root), QUIET).snapshot.name == "000002"
    remove(root, "c")
    with pytest.raises(PretrackError, match="finds 1 of its 2 videos of snapshot 000002"):
        build(settings_for(root, max_missing_videos=0.4), QUIET)


def test_each_source_is_compared_with_its_own_videos(root: Path) -> None:
    """Many new videos of one source do not hide that those of another are gone."""
    for number in range(4):
        write_images(root / "more" / f"m{number}", 10 + number, 10)
    remove(root, "b", "c", "d")
    sources = [
        {"dataset": "video_folder", "name": name, "root": str(root / folder)}
        for name, folder in (("more", "more"), ("pans", "videos"))
    ]
    settings = settings_for(root, sources=sources)
    catalog = make_catalog(settings, QUIET)
    (missing,) = missing_videos(settings, catalog, open_snapshot(root / "out"))
    assert (missing.source, missing.before, missing.missing, missing.first) == ("pans", 4, 3, "b")


def test_a_video_that_is_found_and_too_short_is_not_missing(root: Path) -> None:
    """Its failure is counted by `max_failed_videos`."""
    for name in ("a", "b", "c"):
        for image in sorted((root / "videos" / name).iterdir())[2:]:
            image.unlink()
    settings = settings_for(root)
    catalog = make_catalog(settings, QUIET)
    assert missing_videos(settings, catalog, open_snapshot(root / "out")) == []


def test_plan_says_that_the_build_will_ask(root: Path) -> None:
    remove(root, "a", "b", "c")
    config = root / "config.yaml"
    config.write_text(json.dumps(settings_for(root).model_dump(mode="json")))
    said = CliRunner().invoke(app, ["plan", str(config)])
    assert "source pans finds 1 of its 4 videos of snapshot 000001" in said.output
    assert "--allow-fewer" in said.output
    planned = json.loads(CliRunner().invoke(app, ["plan", str(config), "--json"]).stdout)
    assert [row["missing"] for row in planned["missing_videos"]] == [3]
    refused = CliRunner().invoke(app, ["build", str(config)])
    assert refused.exit_code == 1
    allowed = CliRunner().invoke(app, ["build", str(config), "--allow-fewer"])
    assert allowed.exit_code == 0
    assert "snapshot 000002" in allowed.stdout
