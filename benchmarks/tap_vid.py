"""Metrics of TAP-Vid (Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video, NeurIPS 2022, section 3.3).

The benchmark resizes every video to 256x256 and measures there; its own evaluation code decides every detail here. Each query gives
one row: a point at one frame, its true positions and visibility, and those that a tracker says. Mode "first" asks for each point
once, in the first frame that shows it, and judges the frames after; mode "strided" asks in every fifth frame that shows it, and
judges all frames but that of the query.

    occlusion accuracy    part of the judged frames in which "visible" or "not" is right
    delta_t               part of the truly visible positions that are predicted less than t pixels away, said visible or not
    Jaccard_t             true positives / (truly visible positions + false positives): a true positive is visible, said so and less
                          than t pixels away; a false positive is said visible, and is not, or is t or more pixels away

delta_avg and average Jaccard are means over t = 1, 2, 4, 8, 16. Over several videos, each metric is the mean over videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo
from shards.geometry import FrameTransform

SIDE = 256
"""Width and height at which distances are measured, in pixels."""
THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0)
STRIDE = 5

Mode = Literal["first", "strided"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TapClip:
    """A clip with true tracks.

    frames:    [T, H, W, 3] uint8, RGB
    positions: [N, T, 2] (x, y) in pixels of the frames, centres at integers; arbitrary where a point is not visible
    visible:   [N, T]
    """

    name: str
    frames: NDArray[np.uint8]
    positions: NDArray[np.floating]
    visible: Bools

    def resized(self, width: int = SIDE, height: int = SIDE) -> TapClip:
        """The same clip with frames of another size."""
        view = FrameTransform.whole(self.frames.shape[2], self.frames.shape[1], width, height)
        frames = np.stack([view.frame(frame) for frame in self.frames])
        return TapClip(
            self.name, frames, view.points(self.positions.astype(np.float32)), self.visible
        )


@dataclass(frozen=True)
class TapMetrics:
    """What the benchmark reports, each from 0 to 1."""

    average_jaccard: float
    delta_avg: float
    occlusion_accuracy: float


def queries(visible: Bools, mode: Mode) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The queries of tracks with this true visibility [N, T]: (track [Q], frame [Q]). A track that is never visible has none."""
    if mode == "first":
        tracks = np.flatnonzero(visible.any(axis=1))
        return tracks, visible[tracks].argmax(axis=1)
    frames, tracks = np.nonzero(visible.T[::STRIDE])
    return tracks, frames * STRIDE


def tap_metrics(
    true: NDArray[np.floating],
    true_visible: Bools,
    predicted: NDArray[np.floating],
    predicted_visible: Bools,
    query_frames: NDArray[np.intp],
    mode: Mode,
) -> TapMetrics:
    """The metrics of one video's queries.

    true, predicted:                 [Q, T, 2] in pixels of a frame of SIDE x SIDE
    true_visible, predicted_visible: [Q, T]
    query_frames:                    [Q]

    A metric of nothing (no frame to judge, or no visible point in them) is NaN. Raises ValueError where shapes disagree.
    """
    q, t = true_visible.shape
    if not (
        true.shape == predicted.shape == (q, t, 2)
        and predicted_visible.shape == (q, t)
        and query_frames.shape == (q,)
    ):
        raise ValueError(
            f"tracks disagree in shape: true {true.shape} and {true_visible.shape}, "
            f"predicted {predicted.shape} and {predicted_visible.shape}, queries {query_frames.shape}"
        )
    frame = np.arange(t)
    judged = frame > query_frames[:, None] if mode == "first" else frame != query_frames[:, None]
    distance = np.linalg.norm(predicted.astype(np.float64) - true, axis=-1)
    shown, said = true_visible & judged, predicted_visible & judged
    delta, jaccard = [], []
    for threshold in THRESHOLDS:
        near = distance < threshold
        delta.append(_part((near & shown).sum(), shown.sum()))
        hits = near & shown & said
        jaccard.append(_part(hits.sum(), shown.sum() + (said & ~hits).sum()))
    right = (true_visible == predicted_visible) & judged
    return TapMetrics(
        float(np.mean(jaccard)), float(np.mean(delta)), _part(right.sum(), judged.sum())
    )


def evaluate(tracker: Tracker, clip: TapClip, mode: Mode, visible_from: float = 0.5) -> TapMetrics:
    """The metrics of a tracker on a clip, seen at SIDE x SIDE. A point counts as said visible from this probability on."""
    clip = clip.resized()
    tracks, frames = queries(clip.visible, mode)
    true, true_visible = clip.positions[tracks], clip.visible[tracks]
    predicted, visibility = np.empty(true.shape, np.float32), np.empty(true_visible.shape, np.uint8)
    for frame in np.unique(frames).tolist():
        asked = frames == frame
        found = tracker.track(
            [clip.frames], [_info(clip)], [frame], true[asked, frame].astype(np.float32)
        )[0]
        predicted[asked], visibility[asked] = (
            found.positions[0].swapaxes(0, 1),
            found.visibility[0].T,
        )
    return tap_metrics(
        true, true_visible, predicted, visibility >= 255 * visible_from, frames, mode
    )


def mean_metrics(videos: Sequence[TapMetrics]) -> TapMetrics:
    """The mean over videos; one in which a metric is NaN does not count towards that metric."""
    values = np.array([astuple(video) for video in videos], np.float64).reshape(-1, 3)
    known = np.isfinite(values)
    means = [_part(values[known[:, i], i].sum(), known[:, i].sum()) for i in range(3)]
    return TapMetrics(*means)


def _part(some: np.number | np.bool_, whole: np.number | np.bool_) -> float:
    return float(some) / float(whole) if whole else float("nan")


def _info(clip: TapClip) -> ClipInfo:
    """The description of a clip that lies in no shard."""
    frames, height, width = clip.frames.shape[:3]
    return ClipInfo(
        key=clip.name,
        source="tap",
        dataset="tap",
        video_id=clip.name,
        sequence=clip.name,
        split="eval",
        width=width,
        height=height,
        source_width=width,
        source_height=height,
        frame_numbers=tuple(range(frames)),
        timestamps=None,
        cameras=None,
        terms="",
        frames_settings="",
        tracks_settings="",
    )
