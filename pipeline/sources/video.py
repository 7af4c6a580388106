"""What a source finds: videos, and what it could not use."""

from __future__ import annotations

from dataclasses import dataclass

from shards.clip import Camera


@dataclass(frozen=True)
class Video:
    """One video of a source: a video file, or a sequence of image files in order.

    video_id:      stable within the source, readable, unique ("apple/189_20393_38136", "trips/rome.mp4")
    sequence:      what the train/eval split hashes. Two releases of the same footage name the same sequence, so that it never
                   lands in both splits ("youtube_vos/3f1c0a92be", for any of its folders)
    root:          the source's folder; files below are relative to it
    file:          the video file, or "" for a sequence of images
    image_files:   one a frame, or () for a video file; "some.zip!member/name.jpg" lies in an archive
    frame_numbers: the source's own number of each image, increasing, gaps allowed; () for a video file (its indices count)
    timestamps:    seconds from the start, one a frame, or None. For a video file they come from the scan, not from here
    cameras:       one a frame (None where there is no pose) in pixels of the source frame, or None
    identity:      digest of what the content depends on: names, sizes and modification times of the files
    terms:         what may be done with the footage, in a sentence
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


@dataclass(frozen=True)
class Scan:
    """What decoding a video file from end to end showed. `timestamps` has one entry a decoded frame (seconds, increasing); `cuts`
    are the indices of frames that begin a new shot (never 0); `width` and `height` are in display orientation."""

    width: int
    height: int
    timestamps: tuple[float, ...]
    cuts: tuple[int, ...]
