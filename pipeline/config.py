"""The settings of a build: what `configs/*.yaml` may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from manifests.settings import LocationSetting, Settings
from pipeline.sources import Source
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.ground_truth import GroundTruthSettings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings

AnyTrackerSettings = Annotated[
    CoTracker3Settings | LucasKanadeSettings | GroundTruthSettings, Field(discriminator="tracker")
]

FRAMES_VERSION = 1
"""Raised by hand when the same frame settings give other pixels, so that old shards are made again."""


Side = Annotated[int, Field(ge=16, le=65500)]


class FrameSettings(Settings):
    """Which frames are stored, and how."""

    clip_frames: int = Field(24, ge=2, le=999)
    """Frames of a full clip."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the source is stored. A clip spans clip_frames x stride source frames; clips do not overlap."""
    min_frames: int = Field(8, ge=2)
    """The rest of a shot becomes a shorter clip if it has this many frames."""
    short_side: int = Field(256, ge=16, le=65500)
    """Stored size of the shorter side, in pixels. Smaller sources keep their size."""
    size: tuple[Side, Side] | None = None
    """(width, height): squash every frame to this size instead, whatever its shape."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """JPEG quality of stored frames."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """What reads the clips of video files; `pyav` is exact on every odd file tried (benchmarks/decoders.py). Frames are counted
    and shots found by PyAV always."""
    shot_cuts: bool = True
    """Find shot cuts in video files, so that no clip spans one."""
    decode_timeout_s: float = Field(60.0, gt=0)
    """A decoder that gives no new frame for this long is stopped, and its video fails."""

    @model_validator(mode="after")
    def _check(self) -> FrameSettings:
        if self.min_frames > self.clip_frames:
            raise ValueError(
                f"min_frames ({self.min_frames}) is larger than clip_frames ({self.clip_frames})"
            )
        return self

    def of_content(self) -> dict[str, Any]:
        """The settings that decide what is stored."""
        return {
            **self.model_dump(mode="json", exclude={"decode_timeout_s"}),
            "version": FRAMES_VERSION,
        }

    def of_scan(self) -> str:
        """The settings that decide what a scan of a video file finds."""
        return f"{'shots' if self.shot_cuts else 'no shots'}, version {FRAMES_VERSION}"


class ShardSettings(Settings):
    """How clips are packed."""

    clips_per_shard: int = Field(64, ge=1)
    """Clips in a full shard. 200 MB to 1 GB a shard suits a cluster."""


class SplitSettings(Settings):
    """Which videos are held out."""

    eval_fraction: float = Field(0.05, ge=0, le=1)
    """The part of all sequences that goes to the split `eval`, by a hash of the sequence's name."""
    salt: str = Field("", coerce_numbers_to_str=True)
    """Change it to draw other sequences."""


class RaySettings(Settings):
    """Where the work is done."""

    address: str | None = None
    """A running cluster ("auto", "ray://host:10001"); without it this machine alone."""
    cpus: int | None = Field(None, ge=1)
    """Cores to use on this machine; all by default. Not for a cluster."""
    trackers: int | None = Field(None, ge=1)
    """Tracker workers; by default one a GPU, or one for every two cores where there is none."""
    tracker_cpus: float = Field(1.0, ge=0)
    """Cores a tracker worker holds."""
    tracker_gpus: float = Field(0.0, ge=0)
    """GPUs a tracker worker holds; 0.5 lets two share one."""


class BuildSettings(Settings):
    """Everything a build needs."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """The datasets to read."""
    frames: FrameSettings = FrameSettings()
    """Which frames are stored, and how."""
    tracks: AnyTrackerSettings = LucasKanadeSettings()
    """Which tracker follows which points."""
    shards: ShardSettings = ShardSettings()
    """How clips are packed."""
    split: SplitSettings = SplitSettings()
    """Which videos are held out."""
    ray: RaySettings = RaySettings()
    """Where the work is done."""
    out: LocationSetting
    """The output folder, on a disk that all workers see or on a bucket (s3://bucket/folder)."""
    max_failed_videos: float = Field(0.2, ge=0, le=1)
    """If more than this part of all videos yields nothing, the build stops without publishing."""

    @field_validator("sources")
    @classmethod
    def _check_names(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in sources]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called '{double[0]}': give each its own 'name'")
        return sources

    @model_validator(mode="after")
    def _check_anchors(self) -> BuildSettings:
        if self.tracks.anchors[-1] >= self.frames.clip_frames:
            raise ValueError(
                f"tracks.anchors {list(self.tracks.anchors)} go beyond the {self.frames.clip_frames} frames of a clip"
            )
        if self.tracks.anchors[0] >= self.frames.min_frames:
            raise ValueError(
                f"tracks.anchors needs a frame below frames.min_frames ({self.frames.min_frames}), or short clips have none"
            )
        return self
