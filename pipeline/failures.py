"""Why a build leaves something out: the reasons, and the error that decoders raise."""

from __future__ import annotations

from enum import StrEnum

from shards.errors import PretrackError


class Reason(StrEnum):
    """Why something is left out: a short phrase to count by.

    The phrases are stored in receipts and in the table `failures`. A changed phrase separates new
    rows from old ones in every count, and changes which failures are retried.
    """

    # Listing a source and planning its clips (stage "catalog").
    UNUSABLE_NAME = "unusable name"
    TOO_SHORT = "too short"
    UNREADABLE_FILE = "unreadable file"
    UNREADABLE_FOLDER = "unreadable folder"
    UNREADABLE_ZIP = "unreadable zip"
    NOT_UNPACKED = "not unpacked"
    MISSING_SEQUENCES = "missing sequences"
    MISSING_VIDEOS = "missing videos"
    MISSING_IMAGES = "missing images"
    MISSING_FRAMES = "missing frames"
    NO_IMAGES = "no images"
    IMAGES_WITHOUT_ANNOTATION = "images without annotation"
    IMAGES_WITHOUT_FRAME_NUMBER = "images without a frame number"
    OTHER_PICTURES = "other kinds of pictures"
    TRANSPARENT_IMAGES = "transparent images"
    SCALED_TO_EIGHT_BITS = "scaled to eight bits"
    IGNORED_FILES = "ignored files"
    STRAY_IMAGES = "stray images"
    UNREADABLE_META_JSON = "unreadable meta.json"
    TIMESTAMPS_MISSING = "timestamps missing"
    POSES_MISSING = "poses missing"
    POSES_MISSING_FOR_SOME_FRAMES = "poses missing for some frames"
    NO_DEPTH = "no depth"
    NO_MASKS = "no masks"
    LOW_VIEWPOINT_QUALITY = "low viewpoint quality"
    FLAGGED_AS_A_PROBLEM = "flagged as a problem"

    # Reading video files (stages "scan" and "decode").
    MISSING_VIDEO = "missing video"
    UNREADABLE_VIDEO = "unreadable video"
    DAMAGED_VIDEO = "damaged video"
    NO_VIDEO_STREAM = "no video stream"
    NO_FRAMES = "no frames"
    VIDEO_CHANGED = "video changed"
    DAMAGED_FRAMES = "damaged frames"
    FROZEN_FRAMES = "frozen frames"
    TIMES_INVENTED = "times invented"
    UNREAD_PART = "unread part"
    WRONG_FRAME = "wrong frame"
    DECORD_MISCOUNTS = "decord miscounts"
    TORCHCODEC_MISCOUNTS = "torchcodec miscounts"
    DECODER_STALLED = "decoder stalled"
    DECODER_CRASHED = "decoder crashed"
    DECODER_FAILED = "decoder failed"

    # Reading image files (stage "decode").
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    IMAGE_TOO_LARGE = "image too large"
    BLACK_IMAGE = "black image"
    FURTHER_PAGES = "further pages"
    TOO_FEW_IMAGES = "too few images"
    MIXED_IMAGE_SIZES = "mixed image sizes"
    DEPTH_UNKNOWN = "depth unknown"
    MASK_UNKNOWN = "mask unknown"

    # Rendering frames (stage "decode").
    NOT_RENDERED = "not rendered"

    # Tracking (stage "track").
    TRACKER_FAILED = "tracker failed"
    TRACKER_CRASHED = "tracker crashed"

    # Scoring tracks by cameras (stage "score"). The clip is stored all the same.
    POSES_UNUSABLE = "poses unusable"
    POSES_WRONG = "poses wrong"
    POSES_DISAGREE = "poses and tracks disagree"

    @property
    def transient(self) -> bool:
        """Whether the next build may succeed, and therefore retries: the machine was overloaded or
        the file system unavailable.

        A crashed tracker is transient: from outside, a clip that crashes the tracker cannot be told
        from a machine that ran out of memory or was taken away.
        """
        return self in (
            Reason.DECODER_STALLED,
            Reason.DECODER_CRASHED,
            Reason.TRACKER_CRASHED,
            Reason.MISSING_VIDEO,
            Reason.MISSING_IMAGE,
            Reason.NOT_RENDERED,
        )


TRANSIENT_REASONS = tuple(reason for reason in Reason if reason.transient)
"""The transient reasons, to filter tables by."""


class DecodeError(PretrackError):
    """A video or an image cannot be read. `reason` is what to count by."""

    def __init__(self, message: str, reason: Reason = Reason.UNREADABLE_VIDEO) -> None:
        super().__init__(message)
        self.reason = reason


class MachineError(PretrackError):
    """This machine lacks what every clip needs, such as a GPU or OpenGL: all would fail alike."""
