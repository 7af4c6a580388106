"""Define a video as its source describes it, and the scan of a video file."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.rows import DepthFiles
from shards.clip import Camera


@dataclass(frozen=True)
class Video:
    """One video of a source: a video file, or an ordered sequence of image files.

    source:        the name of the source in the settings
    dataset:       the kind of dataset, such as "co3d"
    video_id:      unique and stable within the source, readable: "apple/189_20393_38136", "a/b.mp4"
    sequence:      what the train/eval split hashes. Releases of the same footage have the same
                   sequence ("youtube_vos/3f1c0a92be" in any folder), so it is never in both splits
    root:          the source's folder; `file` and `image_files` are relative to it
    file:          the video file, or "" for a sequence of images
    image_files:   one per frame, or () for a video file; "a.zip!b/c.jpg" is a member of an archive
    frame_numbers: the source's own number of each image, increasing, with or without gaps; () for a
                   video file, whose frames are numbered by their index
    timestamps:    seconds from the start, one per frame, or None. For a video file, None means all
                   of its frames, whose times its scan finds; otherwise only the frames nearest to
                   these times are used, and what there is one per frame belongs to them
    cameras:       one per frame, in pixels of the source frame, None for frames without a pose; or
                   None if no frame has one
    identity:      digest of what the content depends on: the files' names, sizes and modification
                   times
    terms:         what may be done with the footage, in one sentence
    size:          (width, height) of the frames that the cameras are for, or None if the source
                   does not say. A video file of another size is used without cameras
    viewpoint_quality: the source's own score of its poses, or None
    parts:         names of what the video was put together from and other videos may share, such as
                   textures and shapes of a rendered scene; None where it is footage
    depth:         the depth maps of a sequence of images, or None. A source only names the files:
                   they are read, and are a part of what clips depend on, with `frames.depth`
    mask_files:    8-bit grey images as large as the frames, such as masks of objects or instances:
                   one per frame, "" for none; or None. "a.mkv!1.5" is the frame of a video nearest
                   to 1.5 s. Read with `frames.masks`
    """

    source: str
    dataset: str
    video_id: str
    sequence: str
    root: str
    file: str
    image_files: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    timestamps: tuple[float, ...] | None
    cameras: tuple[Camera | None, ...] | None
    identity: str
    terms: str
    size: tuple[int, int] | None = None
    viewpoint_quality: float | None = None
    parts: tuple[str, ...] | None = None
    depth: DepthFiles | None = None
    mask_files: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ScanNote:
    """A note for the user about a scanned file: a reason to count by, and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Scan:
    """The result of decoding a video file from end to end.

    width, height: of the first frame in its own pixels, in display orientation
    timestamps:    one per decoded frame, in seconds from the first, increasing
    cuts:          indices of the frames that begin a new shot, never 0; every damaged frame is a
                   shot by itself
    notes:         about damage, and about times and pictures that may not be as intended
    ledger:        the packed `Ledger` of all frames
    """

    width: int
    height: int
    timestamps: tuple[float, ...]
    cuts: tuple[int, ...]
    notes: tuple[ScanNote, ...] = ()
    ledger: bytes = b""
