"""Shot cuts, near the ends of a video too."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.decode.scan import scan
from tests.helpers.panning import panning_frames, write_video


@pytest.mark.slow
def test_cuts_of_real_videos_are_found_to_the_frame(shared_data: Path) -> None:
    cuts = {
        path.name: scan(str(path), shot_cuts=True).cuts
        for path in sorted((shared_data / "videos").iterdir())
    }
    assert cuts.pop("bikes.mp4") == (30, 76, 137, 187, 242)
    assert set(cuts.values()) == {()}, f"continuous footage was cut: {cuts}"


@pytest.mark.parametrize("ends", [1, 2, 7])
def test_cuts_near_the_ends_are_found_and_motion_is_not_a_cut(tmp_path: Path, ends: int) -> None:
    first, middle, last = (panning_frames(seed, 12) for seed in range(3))
    path = tmp_path / "all.mp4"
    write_video(path, first[:ends] + middle + last[:ends])
    assert scan(str(path), shot_cuts=True).cuts == (ends, ends + 12)
    assert scan(str(path), shot_cuts=False).cuts == ()
