"""Define one dataclass per table row: a video, a stored clip, a shard, a failure.

The columns of the Parquet tables are derived from these classes (see `manifests.tables`), so each
column is written down once, here. This module does not import pyarrow: dataset sources use it, and
the command line imports them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from shards.clip import Camera, ClipInfo
from shards.errors import PretrackError
from shards.track_scores import ClipScores
from shards.writer import ByteRange, ClipMembers

Int32 = Annotated[int, "int32"]
Int64 = Annotated[int, "int64"]
Float32 = Annotated[float, "float32"]
Float64 = Annotated[float, "float64"]

DepthEncoding = Literal["linear", "float16", "float"]

FailureStage = Literal["catalog", "scan", "decode", "track", "score"]


@dataclass(frozen=True)
class DepthFiles:
    """Depth maps of a video's frames: PNG files of one 16-bit channel, or datasets of HDF5 files.

    PNG files are as large as the frames; datasets [H, W] may have another resolution. Depth is
    measured along the optical axis, in the world units of the cameras.

    encoding: "linear": a pixel's value times the scale; "float16": the 16 bits are a float16, times
              the scale (CO3D); "float": the files are datasets of HDF5, whose values are times the
              scale (uCO3D). 0, negative, infinite and NaN mean that the depth is unknown
    files:    one per frame, relative to the video's root as image files are; "" for a frame
              without; "a.h5!7" is the dataset "7" of an HDF5 file
    scales:   one per frame
    masks:    images that are 0 where the depth is unknown, one per frame ("" for none), or ()
    """

    encoding: DepthEncoding
    files: tuple[str, ...]
    scales: tuple[Float64, ...]
    masks: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> DepthFiles:
        """Read depth files given as plain data, such as an entry of `Table.to_pylist()`."""
        lists = {name: tuple(fields[name] or ()) for name in ("files", "scales", "masks")}
        return cls(encoding=fields["encoding"], **lists)


@dataclass(frozen=True)
class VideoRow:
    """One usable video: a row of the `videos` table.

    video_id:      unique within the source
    sequence:      the name that the train/eval split hashes
    split:         "train" or "eval"
    root:          the source's folder; `file` and `image_files` are relative to it
    file:          the video file, or "" for a sequence of images
    image_files:   one per frame, or () for a video file
    frame_numbers: the source's own number of each image; of a video file, the index in the file of
                   each frame that is used, () for all of them
    timestamps:    seconds from the start, one per frame, or None
    cameras:       one per frame (None for a frame without a pose) in pixels of the source frame,
                   or None
    width, height: in pixels, in display orientation; 0 for images, which are measured when decoded
    cuts:          indices of the frames that begin a new shot, never 0
    frames:        number of frames that can be decoded
    identity:      digest of everything in the source that the video's clips depend on
    scan:          the scan settings that counted the frames; "" for images
    terms:         what may be done with the footage, in one sentence
    viewpoint_quality: the source's own score of its poses (CO3D's viewpoint_quality_score), or None
    parts:         names of what the video was put together from and other videos may share, such as
                   textures and shapes of a rendered scene; None where it is footage
    depth:         its depth maps, None if it has none or `frames.depth` is false
    mask_files:    its masks as `pipeline.sources.video.Video` has them, None if it has none or
                   `frames.masks` is false
    """

    source: str
    dataset: str
    video_id: str
    sequence: str
    split: str
    root: str
    file: str
    image_files: tuple[str, ...]
    frame_numbers: tuple[Int64, ...]
    timestamps: tuple[Float64, ...] | None
    cameras: tuple[Annotated[Camera, "float32"] | None, ...] | None
    width: Int32
    height: Int32
    cuts: tuple[Int32, ...]
    frames: Int32
    identity: str
    scan: str
    terms: str
    viewpoint_quality: Float32 | None = None
    parts: tuple[str, ...] | None = None
    depth: DepthFiles | None = None
    mask_files: tuple[str, ...] | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> VideoRow:
        """Read a row given as plain data, such as an entry of `Table.to_pylist()`."""
        lists = ("image_files", "frame_numbers", "cuts")
        times, cameras, parts = fields["timestamps"], fields["cameras"], fields.get("parts")
        depth, masks = fields.get("depth"), fields.get("mask_files")
        return cls(
            **{
                **fields,
                **{name: tuple(fields[name] or ()) for name in lists},
                "timestamps": None if times is None else tuple(times),
                "cameras": None
                if cameras is None
                else tuple(camera and Camera.read(camera) for camera in cameras),
                "parts": None if parts is None else tuple(parts),
                "depth": None if depth is None else DepthFiles.from_fields(depth),
                "mask_files": None if masks is None else tuple(masks),
            }
        )


@dataclass(frozen=True)
class TrackSummary:
    """Describe a clip's tracks in its row.

    anchors:          anchor frames, as indices within the clip
    points:           number of points N per anchor
    visible_fraction: mean visibility of all points over all anchors and tracked frames, 0..1
    motion:           median over tracks of a point's largest distance from its anchor position
                      while visible, as a fraction of the frame's diagonal
    """

    anchors: tuple[int, ...]
    points: int
    visible_fraction: float
    motion: float


@dataclass(frozen=True)
class ClipRow:
    """One stored clip: a row of the `clips` table.

    It has the byte offset and size of each member in the shard. `anchors`, `points`,
    `visible_fraction` and `motion` are those of `TrackSummary`. `anchor_sizes` has the bytes of
    each anchor's part of the tracks member. `checksum` is that of `ClipMembers`.

    Columns from `scores_offset` on are None for clips without scores, and absent from tables of
    earlier versions. `posed` to `cycle_px` are those of `ClipScores`, `viewpoint_quality` and
    `parts` those of the video. Those from `depth_offsets` on are None for clips without depth maps
    or without masks.
    """

    key: str
    source: str
    dataset: str
    video_id: str
    sequence: str
    split: str
    shard: str
    frames: Int32
    width: Int32
    height: Int32
    anchors: list[Int32]
    points: Int32
    visible_fraction: Float32
    motion: Float32
    json_offset: Int64
    json_size: Int64
    tracks_offset: Int64
    tracks_size: Int64
    anchor_sizes: list[Int64]
    frame_offsets: list[Int64]
    frame_sizes: list[Int64]
    checksum: str
    scores_offset: Int64 | None = None
    scores_size: Int64 | None = None
    posed: bool | None = None
    turn: Float32 | None = None
    baseline: Float32 | None = None
    epipolar_px: Float32 | None = None
    epipolar_inliers: Float32 | None = None
    reprojection_px: Float32 | None = None
    cycle_px: Float32 | None = None
    viewpoint_quality: Float32 | None = None
    parts: list[str] | None = None
    depth_offsets: list[Int64] | None = None
    depth_sizes: list[Int64] | None = None
    mask_offsets: list[Int64] | None = None
    mask_sizes: list[Int64] | None = None
    maps_checksum: str | None = None


@dataclass(frozen=True)
class ShardRow:
    """One shard file: a row of the `shards` table.

    group:        the shard's name without its content's checksum; it stays while settings change
    clips, bytes: number of clips; size of the tar file
    checksum:     xxh3-64 of the tar file, hex
    *_settings:   the settings behind each fingerprint, as canonical JSON
    *_seconds:    seconds that a worker spent in each stage
    tries:        how often it was built again in the hope that transient failures pass
    scores:       the version of its tracks' scores, None if they have none
    """

    shard: str
    group: str
    source: str
    split: str
    clips: Int32
    bytes: Int64
    checksum: str
    frames_fingerprint: str
    tracks_fingerprint: str
    frames_settings: str
    tracks_settings: str
    decode_seconds: Float64
    track_seconds: Float64
    write_seconds: Float64
    tries: Int32
    scores: Int32 | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that was left out, and why: a row of the `failures` table.

    video_id: "" where no single video is concerned
    clip:     the clip's key, "" where the whole video is left out
    reason:   a short fixed phrase to count by, such as "unreadable image": a
              `pipeline.failures.Reason`, or a phrase of a source that is not part of pretrack
    detail:   one sentence: what is wrong, where, and what to do if something can be done
    shard:    the shard that lacks it, "" for failures before any shard

    The clips that a shard was planned to hold are those of its rows in `clips` and of its failures.
    """

    source: str
    video_id: str
    clip: str = ""
    stage: FailureStage
    reason: str
    detail: str
    shard: str = ""


def clip_row(
    shard: str,
    info: ClipInfo,
    members: ClipMembers,
    tracks: TrackSummary,
    scores: ClipScores | None = None,
) -> ClipRow:
    """Make the row of a clip stored in `shard`; `members_of` gives its members back."""
    return ClipRow(
        key=info.key,
        source=info.source,
        dataset=info.dataset,
        video_id=info.video_id,
        sequence=info.sequence,
        split=info.split,
        shard=shard,
        frames=info.frames,
        width=info.width,
        height=info.height,
        anchors=list(tracks.anchors),
        points=tracks.points,
        visible_fraction=tracks.visible_fraction,
        motion=tracks.motion,
        json_offset=members.info.offset,
        json_size=members.info.size,
        tracks_offset=members.tracks.offset,
        tracks_size=members.tracks.size,
        anchor_sizes=list(members.anchors),
        frame_offsets=[frame.offset for frame in members.frames],
        frame_sizes=[frame.size for frame in members.frames],
        checksum=members.checksum,
        scores_offset=members.scores.offset if members.scores else None,
        scores_size=members.scores.size if members.scores else None,
        depth_offsets=[part.offset for part in members.depths] or None,
        depth_sizes=[part.size for part in members.depths] or None,
        mask_offsets=[part.offset for part in members.masks] or None,
        mask_sizes=[part.size for part in members.masks] or None,
        maps_checksum=members.maps_checksum or None,
        **(vars(scores) if scores else {}),
    )


def members_of(row: dict[str, Any]) -> ClipMembers:
    """Locate a clip's members, from its row of the clips table as plain data.

    Raises PretrackError for a row that contradicts itself.
    """
    offsets, sizes, anchors = row["frame_offsets"], row["frame_sizes"], row["anchor_sizes"]
    if any(values is None or None in values for values in (offsets, sizes, anchors)):
        raise PretrackError(
            f"the clips table is damaged: {row['key']} lacks offsets or sizes of its members"
        )
    if len(offsets) != len(sizes):
        raise PretrackError(
            f"the clips table is damaged: {row['key']} has {len(offsets)} offsets "
            f"and {len(sizes)} sizes of frames"
        )
    return ClipMembers(
        info=ByteRange(row["json_offset"], row["json_size"]),
        tracks=ByteRange(row["tracks_offset"], row["tracks_size"]),
        anchors=tuple(anchors),
        frames=tuple(map(ByteRange, offsets, sizes)),
        checksum=row["checksum"],
        # rows that do not need the scores leave their columns out
        scores=ByteRange(row["scores_offset"], row["scores_size"])
        if row.get("scores_size") is not None
        else None,
        depths=_ranges(row, "depth"),
        masks=_ranges(row, "mask"),
        maps_checksum=row.get("maps_checksum") or "",
    )


def _ranges(row: dict[str, Any], kind: str) -> tuple[ByteRange, ...]:
    """Return the ranges of a clip's depth maps or masks; () for a row without them.

    Raises PretrackError for a row that contradicts itself.
    """
    offsets, sizes = (row.get(f"{kind}_{part}") or [] for part in ("offsets", "sizes"))
    if len(offsets) != len(sizes) or None in (*offsets, *sizes):
        raise PretrackError(
            f"the clips table is damaged: {row['key']} has {len(offsets)} offsets "
            f"and {len(sizes)} sizes of {kind} members"
        )
    return tuple(map(ByteRange, offsets, sizes))
