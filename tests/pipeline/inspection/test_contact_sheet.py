"""The choice of clips to draw, and the errors for clips and anchors that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.snapshot import Snapshot
from pipeline.inspection.contact_sheet import ClipChoice, best_clips, show_clips
from shards.errors import PretrackError
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips

CLIPS = (
    ("a-0", "a.mp4", "pans", 0.3),
    ("a-8", "a.mp4", "pans", 0.2),
    ("b-0", "b.mp4", "pans", 0.1),
    ("c-0", "c.mp4", "walks", 0.0),
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    clips = [
        grey_clip(key, video=video, source=source, step=(0.0, 0.0))
        for key, video, source, _ in CLIPS
    ]
    return publish_clips(
        tmp_path_factory.mktemp("show") / "out", clips, motion=[motion for *_, motion in CLIPS]
    )


@pytest.mark.parametrize(
    ("count", "keys"),
    [(1, ["a-0", "c-0"]), (2, ["a-0", "b-0", "c-0"]), (3, ["a-0", "b-0", "a-8", "c-0"])],
)
def test_of_each_source_the_best_clip_of_every_video_comes_first(
    snapshot: Snapshot, count: int, keys: list[str]
) -> None:
    rows = best_clips(snapshot.clips, count)
    assert snapshot.clips["key"].take(rows).to_pylist() == keys


@pytest.mark.parametrize(
    ("names", "anchor", "says"),
    [
        (("nowhere",), 0, "no clip of snapshot 000001 has 'nowhere' in its key"),
        ((), 2, "these clips have up to 2 anchors, and there is no number 2"),
    ],
)
def test_what_cannot_be_shown_is_said_and_makes_no_folder(
    snapshot: Snapshot, tmp_path: Path, names: tuple[str, ...], anchor: int, says: str
) -> None:
    with pytest.raises(PretrackError, match=says):
        show_clips(snapshot, ClipChoice(names, anchor=anchor), tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
