"""Compute TAP-Vid's metrics of a point tracker.

Source: Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video, NeurIPS 2022,
section 3.3. Where the paper is silent, this follows the benchmark's own evaluation code.

Every video is resized to 256x256 pixels and distances are measured there. Each query is a point at
one frame, with its true and predicted positions and visibility in all frames. Mode "first" queries
each point once, in the first frame that shows it, and evaluates the frames after it. Mode "strided"
queries it in every fifth frame, if that frame shows it, and evaluates all frames but the query's.

    occlusion accuracy    share of evaluated frames whose visibility is predicted correctly
    delta_t               share of truly visible positions that are predicted less than t pixels
                          away, whatever the predicted visibility
    Jaccard_t             true positives / (truly visible positions + false positives)
                          true positive: visible, predicted visible, and less than t pixels away
                          false positive: predicted visible, but hidden or t or more pixels away

delta_avg and average Jaccard are means over t = 1, 2, 4, 8, 16. A metric of several videos is the
mean over videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo
from shards.geometry import FrameTransform

FRAME_SIDE = 256
"""Width and height of the frames in which distances are measured, in pixels."""
THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Distances t in pixels."""
QUERY_STRIDE = 5
"""Frames between queries of the same point in mode "strided"."""
ANGLES = (0, 10, 20, 40, 70, 180)
"""Limits between the groups of viewing angles, in degrees."""

Mode = Literal["first", "strided"]
Probability = Literal["visibility", "visibility x confidence"]
"""What must reach the threshold for a point to count as predicted visible."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TapClip:
    """A clip with true tracks.

    frames:    [T, H, W, 3] uint8, RGB
    positions: [N, T, 2] (x, y) in pixels of the frames, pixel centres at integers; arbitrary where
               a point is not visible
    visible:   [N, T]
    moving:    [N], whether a point moves in space, if that is known
    angles:    [N, T, T], by how many degrees a point's viewing angle differs between two frames, if
               that is known
    """

    name: str
    frames: NDArray[np.uint8]
    positions: NDArray[np.floating]
    visible: Bools
    moving: Bools | None = None
    angles: NDArray[np.floating] | None = None

    def resized(self, width: int = FRAME_SIDE, height: int = FRAME_SIDE) -> TapClip:
        """Return the same clip with frames of another size, and its positions in their pixels."""
        resize = FrameTransform.whole(self.frames.shape[2], self.frames.shape[1], width, height)
        frames = np.stack([resize.frame(frame) for frame in self.frames])
        positions = resize.points(self.positions.astype(np.float32))
        return replace(self, frames=frames, positions=positions)


@dataclass(frozen=True)
class TapMetrics:
    """The benchmark's metrics, each from 0 to 1."""

    average_jaccard: float
    delta_avg: float
    occlusion_accuracy: float


def select_queries(visible: Bools, mode: Mode) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Select the queries of tracks with this true visibility [N, T]: (track [Q], frame [Q]).

    A track that is never visible has no query.
    """
    if mode == "first":
        tracks = np.flatnonzero(visible.any(axis=1))
        return tracks, visible[tracks].argmax(axis=1)
    frames, tracks = np.nonzero(visible.T[::QUERY_STRIDE])
    return tracks, frames * QUERY_STRIDE


def tap_metrics(
    *,
    true: NDArray[np.floating],
    true_visible: Bools,
    predicted: NDArray[np.floating],
    predicted_visible: Bools,
    query_frames: NDArray[np.intp],
    mode: Mode,
    only: Bools | None = None,
) -> TapMetrics:
    """Compute the metrics of one video's queries.

    true, predicted:                 [Q, T, 2] in pixels of a frame of 256x256
    true_visible, predicted_visible: [Q, T]
    query_frames:                    [Q]
    only:                            [Q, T] the frames to evaluate among the mode's, by default all

    A metric is NaN if there is nothing to evaluate: no frames, or no visible point in them. Raises
    ValueError if shapes disagree.
    """
    q, t = true_visible.shape
    if not (
        true.shape == predicted.shape == (q, t, 2)
        and predicted_visible.shape == (q, t)
        and query_frames.shape == (q,)
    ):
        raise ValueError(
            f"tracks disagree in shape: true {true.shape} and {true_visible.shape}, "
            f"predicted {predicted.shape} and {predicted_visible.shape}, "
            f"queries {query_frames.shape}"
        )
    frame, query_frame = np.arange(t), query_frames[:, None]
    evaluated = frame > query_frame if mode == "first" else frame != query_frame
    distance = np.linalg.norm(predicted.astype(np.float64) - true, axis=-1)
    if only is not None:
        evaluated = evaluated & only
    visible, positive = true_visible & evaluated, predicted_visible & evaluated
    delta, jaccard = [], []
    for threshold in THRESHOLDS:
        near = distance < threshold
        delta.append(_ratio((near & visible).sum(), visible.sum()))
        true_positive = near & visible & positive
        false_positive = positive & ~true_positive
        jaccard.append(_ratio(true_positive.sum(), visible.sum() + false_positive.sum()))
    correct = (true_visible == predicted_visible) & evaluated
    return TapMetrics(
        average_jaccard=float(np.mean(jaccard)),
        delta_avg=float(np.mean(delta)),
        occlusion_accuracy=_ratio(correct.sum(), evaluated.sum()),
    )


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a tracker predicts of a clip's queries, at 256x256.

    rows:         [Q] the tracks that are queried
    query_frames: [Q]
    positions:    [Q, T, 2]
    visible:      [Q, T]
    """

    clip: TapClip
    mode: Mode
    rows: NDArray[np.intp]
    query_frames: NDArray[np.intp]
    positions: NDArray[np.floating]
    visible: Bools

    def metrics(self, only: Bools | None = None) -> TapMetrics:
        """Compute the metrics, of all frames or of those in `only` [Q, T]."""
        return tap_metrics(
            true=self.clip.positions[self.rows],
            true_visible=self.clip.visible[self.rows],
            predicted=self.positions,
            predicted_visible=self.visible,
            query_frames=self.query_frames,
            mode=self.mode,
            only=only,
        )

    def groups(self) -> dict[str, Bools]:
        """Return the frames [Q, T] of each group of points: by motion and by viewing angle.

        The angle is that between a frame and the query's. Groups that are not known are left out.
        """
        groups: dict[str, Bools] = {}
        shape = self.visible.shape
        if self.clip.moving is not None:
            moving = np.broadcast_to(self.clip.moving[self.rows, None], shape)
            groups |= {"static": ~moving, "moving": moving}
        if self.clip.angles is not None:
            angles = self.clip.angles[self.rows, self.query_frames]
            for least, most in pairwise(ANGLES):
                groups[f"{least}-{most}°"] = (angles >= least) & (angles < most)
        return groups


def predict(
    tracker: Tracker,
    clip: TapClip,
    mode: Mode,
    *,
    visible_from: float = 0.5,
    probability: Probability = "visibility",
) -> Predictions:
    """Track a clip's queries, in frames of 256x256.

    visible_from: lowest probability, 0 to 1, at which a point counts as predicted visible
    probability:  what that is: the visibility, or its product with the confidence
    """
    clip = clip.resized()
    rows, query_frames = select_queries(clip.visible, mode)
    true = clip.positions[rows]
    predicted = np.empty(true.shape, np.float32)
    visible = np.empty(true.shape[:2], np.float32)
    # One call per query frame, with all points that are queried in it.
    for frame in np.unique(query_frames).tolist():
        queried = query_frames == frame
        points = true[queried, frame].astype(np.float32)
        tracks = tracker.track([clip.frames], [_clip_info(clip)], [frame], points)[0]
        predicted[queried] = tracks.positions[0].swapaxes(0, 1)
        visible[queried] = tracks.visibility[0].T / 255
        if probability == "visibility x confidence":
            visible[queried] *= tracks.confidence[0].T / 255
    return Predictions(clip, mode, rows, query_frames, predicted, visible >= visible_from)


def evaluate_tracker(
    tracker: Tracker,
    clip: TapClip,
    mode: Mode,
    *,
    visible_from: float = 0.5,
    probability: Probability = "visibility",
) -> TapMetrics:
    """Compute a tracker's metrics on a clip. See `predict`."""
    return predict(
        tracker, clip, mode, visible_from=visible_from, probability=probability
    ).metrics()


def mean_metrics(videos: Sequence[TapMetrics]) -> TapMetrics:
    """Average each metric over videos, leaving out videos in which that metric is NaN."""
    values = np.array([astuple(video) for video in videos], np.float64).reshape(-1, 3)
    finite = np.isfinite(values)
    means = [_ratio(values[finite[:, i], i].sum(), finite[:, i].sum()) for i in range(3)]
    return TapMetrics(*means)


def _ratio(part: np.number | np.bool_, whole: np.number | np.bool_) -> float:
    """Return part / whole, or NaN if the whole is 0."""
    return float(part) / float(whole) if whole else float("nan")


def _clip_info(clip: TapClip) -> ClipInfo:
    """Make a description of a clip that is not in a shard."""
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
