"""Settings of a build that depend on each other, and what they add to fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from manifests.fingerprint import fingerprint
from pipeline.config import BuildSettings, FrameSettings


def test_the_fingerprint_names_the_device_only_where_a_gpu_decodes() -> None:
    """Shards from before the setting existed are kept."""
    assert fingerprint(FrameSettings().of_content()) == "03558e35d205bb66058256293836df29"
    on_gpu = FrameSettings(device="cuda").of_content()
    assert on_gpu == {**FrameSettings().of_content(), "device": "cuda"}


def build_settings(out: Path, **values: Any) -> BuildSettings:
    source = {"dataset": "video_folder", "root": out}
    return BuildSettings.model_validate({"sources": [source], "out": str(out), **values})


@pytest.mark.parametrize(
    ("clip_frames", "anchors"),
    [(48, (0, 16, 32)), (33, (0, 16, 32)), (32, (0, 16)), (17, (0, 16)), (16, (0,)), (8, (0,))],
)
def test_short_clips_get_the_default_anchors_that_lie_in_them(
    tmp_path: Path, clip_frames: int, anchors: tuple[int, ...]
) -> None:
    frames = {"clip_frames": clip_frames}
    settings = build_settings(tmp_path, frames=frames)
    assert settings.tracks.anchors == anchors
    tracks = {"tracker": "lucas_kanade", "anchors": anchors}
    written_out = build_settings(tmp_path, frames=frames, tracks=tracks)
    assert settings.tracks.of_content() == written_out.tracks.of_content()
    assert build_settings(tmp_path).tracks.anchors == (0, 16, 32)


def test_anchors_that_are_written_out_stay_and_must_fit(tmp_path: Path) -> None:
    tracks = {"tracker": "lucas_kanade", "anchors": [0, 16, 32]}
    with pytest.raises(ValidationError, match="go beyond the 24 frames of a clip"):
        build_settings(tmp_path, frames={"clip_frames": 24}, tracks=tracks)
