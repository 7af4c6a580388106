"""Define the settings of a build: what a file such as `configs/co3d.yaml` may contain."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from manifests.settings import LocationSetting, Settings
from pipeline.sources import Source
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.geometry import GeometrySettings
from pipeline.trackers.ground_truth import GroundTruthSettings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from pipeline.trackers.tapir import TapirSettings
from shards.track_scores import scores_version

AnyTrackerSettings = Annotated[
    CoTracker3Settings
    | TapirSettings
    | LucasKanadeSettings
    | GroundTruthSettings
    | GeometrySettings,
    Field(discriminator="tracker"),
]

FRAMES_VERSION = 2
"""Raised by hand when the same frame settings give other pixels, so that old shards are rebuilt."""

Side = Annotated[int, Field(ge=16, le=65500)]
"""Pixels of a side of a stored frame; JPEG allows at most 65500."""


class FrameSettings(Settings):
    """Which frames are stored, and how."""

    clip_frames: int = Field(48, ge=2, le=999)
    """Frames per full clip. `pretrack plan` says which tracks of such clips training cannot use."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the source is stored. A clip spans clip_frames x stride source
    frames. Clips do not overlap."""
    min_frames: int = Field(8, ge=2)
    """The rest of a shot after its full clips becomes a shorter clip if it has at least this many
    frames (counted after `stride`); otherwise it is left out. Training never uses a clip with fewer
    frames than a sample (`data.frames`, 4 by default)."""
    short_side: int = Field(256, ge=16, le=65500)
    """Pixels of a stored frame's shorter side. Larger frames are shrunk to it, with their aspect
    ratio; smaller ones keep their size."""
    size: tuple[Side, Side] | None = None
    """[width, height] in pixels: resize every frame to exactly this size instead, whatever its
    aspect ratio."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """JPEG quality of the stored frames."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """The decoder that reads clips of video files. `pyav` is exact on every odd file tried
    (benchmarks/decoders.py). PyAV always counts the frames and finds the shot cuts. Every frame is
    compared with what PyAV decoded there before it is stored."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where clips of video files are decoded, shrunk and encoded. `cuda` uses a GPU's NVDEC and
    nvJPEG instead of `decoder`, by torchcodec and torchvision (`pip install
    'pretrack[torchcodec]'`); pixels then differ a little, and chroma is stored as 4:4:4. A clip
    that the GPU cannot decode, or whose frames differ from what the scan found, is decoded on the
    CPU, and the log says so. Image files are always read on the CPU."""
    square_pixels: bool = True
    """Resample frames whose pixels are not square (as on DVDs) to square pixels."""
    depth: bool = False
    """Store the depth maps of sources that have them (CO3D, rendered scenes), beside the frames."""
    masks: bool = False
    """Store the masks of sources that have them, beside the frames."""
    deinterlace: bool = True
    """Deinterlace frames that are flagged as interlaced, each by itself (FFmpeg's estdif)."""
    shot_cuts: bool = True
    """Find shot cuts in video files, so that no clip contains one."""
    max_megapixels: float = Field(200.0, gt=0)
    """The largest image file that is read, in millions of pixels. Larger ones are left out and
    named: decoding takes 4 bytes or more of memory per pixel."""
    decode_timeout_s: float = Field(60.0, gt=0)
    """Seconds after which a decoder that delivers no new frame is killed. The video, or the clip
    that is being read, is left out; the next builds try it again."""

    @model_validator(mode="after")
    def _check(self) -> FrameSettings:
        if self.min_frames > self.clip_frames:
            raise ValueError(
                f"min_frames ({self.min_frames}) is larger than clip_frames ({self.clip_frames})"
            )
        return self

    def of_content(self) -> dict[str, Any]:
        """Return the settings that determine what is stored: part of a shard's fingerprint."""
        irrelevant = {"decode_timeout_s", "max_megapixels"}
        if self.device == "cpu":  # shards from before there was a choice stay as they are
            irrelevant.add("device")
        irrelevant |= {name for name in ("depth", "masks") if not getattr(self, name)}
        return {**self.model_dump(mode="json", exclude=irrelevant), "version": FRAMES_VERSION}

    def of_scan(self) -> str:
        """Return, as text, the settings that determine what a scan of a video file finds.

        A stored scan is reused while this text is the same.
        """
        return f"{'shots' if self.shot_cuts else 'no shots'}, version {FRAMES_VERSION}"


class ShardSettings(Settings):
    """How clips are packed into shards."""

    clips_per_shard: int = Field(64, ge=1)
    """Clips per full shard. Shards of 200 MB to 1 GB suit a cluster."""


class SplitSettings(Settings):
    """Which videos are held out."""

    eval_fraction: float = Field(0.05, ge=0, le=1)
    """The fraction of all sequences that goes to the split `eval`, chosen by a hash of the
    sequence's name."""
    salt: str = Field("", coerce_numbers_to_str=True)
    """Part of that hash: another text draws other sequences."""


class RaySettings(Settings):
    """Where the work runs."""

    address: str | None = None
    """A running Ray cluster ("auto", "ray://host:10001"). Default: Ray is started on this
    machine."""
    cpus: int | None = Field(None, ge=1)
    """Cores to use on this machine. Default: all. Ignored with `address`."""
    trackers: int | None = Field(None, ge=1)
    """Number of tracker workers. Default: as many as fit on the GPUs if `tracker_gpus` is above 0,
    otherwise one per two cores."""
    tracker_cpus: float = Field(1.0, ge=0)
    """Cores that each tracker worker reserves."""
    tracker_gpus: float = Field(0.0, ge=0)
    """GPUs that each tracker worker reserves. 0.5 lets two workers share one."""
    decoder_gpus: float = Field(0.1, gt=0, le=1)
    """With `frames.device: cuda`, the share of a GPU that each decoding task reserves, beside one
    core. Leave as much of a GPU free of trackers: with 0.1, set `tracker_gpus` to 0.9 at most."""


class BuildSettings(Settings):
    """Everything that a build needs."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """The datasets to read."""
    frames: FrameSettings = FrameSettings()
    """Which frames are stored, and how."""
    tracks: AnyTrackerSettings = LucasKanadeSettings()
    """Which tracker follows which points."""
    shards: ShardSettings = ShardSettings()
    """How clips are packed into shards."""
    split: SplitSettings = SplitSettings()
    """Which videos are held out."""
    scores: bool = True
    """Whether tracks are scored by cameras and by cycles. The next build scores the shards that
    have no scores: it copies their frames and tracks, and tracks nothing."""
    ray: RaySettings = RaySettings()
    """Where the work runs."""
    out: LocationSetting
    """The output folder: on a disk that all workers see, or on a bucket (s3://bucket/folder)."""
    max_failed_videos: float = Field(0.2, ge=0, le=1)
    """The build stops without publishing if more than this fraction of all videos yields no
    clip."""
    max_missing_videos: float = Field(0.5, ge=0, le=1)
    """The build stops before it makes a shard if a source does not find more than this fraction of
    its videos in the current snapshot any more, unless `--allow-fewer` is given."""

    @property
    def decoder_gpus(self) -> float:
        """GPUs that each decoding task reserves."""
        return self.ray.decoder_gpus if self.frames.device == "cuda" else 0.0

    def scores_version(self, source: str) -> int:
        """Return the version of the scores of a source's tracks."""
        return next(scores_version(it.dataset) for it in self.sources if it.name == source)

    @field_validator("sources")
    @classmethod
    def _check_names(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in sources]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called '{duplicates[0]}': give each its own 'name'")
        return sources

    @model_validator(mode="after")
    def _check_depth(self) -> BuildSettings:
        if self.tracks.needs_depth and not self.frames.depth:
            raise ValueError(
                f"tracks.tracker {self.tracks.tracker} needs depth maps: set frames.depth to true"
            )
        return self

    @model_validator(mode="after")
    def _check_anchors(self) -> BuildSettings:
        if "anchors" not in self.tracks.model_fields_set:
            inside = tuple(a for a in self.tracks.anchors if a < self.frames.clip_frames)
            if inside != self.tracks.anchors:
                fitting = self.tracks.model_copy(update={"anchors": inside})
                object.__setattr__(self, "tracks", fitting)  # frozen, but not yet validated
        if self.tracks.anchors[-1] >= self.frames.clip_frames:
            raise ValueError(
                f"tracks.anchors {list(self.tracks.anchors)} go beyond "
                f"the {self.frames.clip_frames} frames of a clip"
            )
        if self.tracks.anchors[0] >= self.frames.min_frames:
            raise ValueError(
                "tracks.anchors needs a frame below frames.min_frames "
                f"({self.frames.min_frames}), or short clips have none"
            )
        self._check_directions()
        return self

    def _check_directions(self) -> None:
        """Raise ValueError if the shortest clips have no frame in the direction that is tracked."""
        shortest, directions = self.frames.min_frames, self.tracks.directions
        first, last = (1, shortest - 1) if directions == "backward" else (0, shortest - 2)
        if directions != "both" and not any(first <= a <= last for a in self.tracks.anchors):
            raise ValueError(
                f"tracks.directions {directions} needs an anchor from {first} to {last} "
                f"(frames.min_frames is {shortest}), or nothing is tracked in short clips: add one "
                "to tracks.anchors"
            )
