"""Columns of the clips table that say something about each clip's video."""

from __future__ import annotations

from manifests.tables import CLIPS, VIDEOS, table_of
from pipeline.execution.build import _with_columns_of_videos


def test_clips_have_what_their_own_video_was_put_together_from() -> None:
    videos = [
        {"source": "scenes", "video_id": "0", "viewpoint_quality": None, "parts": ("cup", "oak")},
        {"source": "co3d", "video_id": "0", "viewpoint_quality": 0.5, "parts": None},
    ]
    order = ("co3d", "scenes", "co3d")
    clips = [{"key": f"c{i}", "source": source, "video_id": "0"} for i, source in enumerate(order)]
    filled = _with_columns_of_videos(table_of(clips, CLIPS), table_of(videos, VIDEOS))
    assert filled.schema.equals(CLIPS)
    assert filled["parts"].to_pylist() == [None, ["cup", "oak"], None]
    assert filled["viewpoint_quality"].to_pylist() == [0.5, None, 0.5]
