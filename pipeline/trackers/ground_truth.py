"""Exact tracks of rendered clips, computed from the geometry that rendered their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import SurfacePoints, cast, follow
from pipeline.sources import synthetic_scene
from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import FrameTransform


class GroundTruthSettings(TrackerSettings):
    """Settings of the exact tracks. Only the points can be chosen."""

    tracker: Literal["truth"]
    """The tracker: exact tracks of the sources `scenes` and `synthetic`."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""

    def load(self) -> GroundTruthTracker:
        """Make the tracker."""
        return GroundTruthTracker(self)


class GroundTruthTracker:
    """Return exact tracks without looking at frames: a clip's description names its scene."""

    def __init__(self, settings: GroundTruthSettings) -> None:
        self._settings = settings

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Return the exact tracks: visibility 0 or 255, confidence 255. See `Tracker.track`.

        Raises PretrackError for a clip that is of neither of the datasets `scenes` and `synthetic`.
        """
        directions = self._settings.directions
        return [leave_untracked(_track(info, anchors, queries), directions) for info in infos]


def _track(info: ClipInfo, anchors: Sequence[int], queries: NDArray[np.float32]) -> Tracks:
    """Return the exact tracks of a clip, in pixels of its stored size."""
    of_dataset = {"scenes": _scene_tracks, "synthetic": _synthetic_tracks}.get(info.dataset)
    if of_dataset is None:
        raise PretrackError(
            f"the clip {info.key} is of the dataset {info.dataset}, "
            "and only clips of scenes and synthetic ones have true tracks"
        )
    # Scenes are defined in pixels of the source; queries and tracks are in pixels of stored frames.
    to_stored = FrameTransform.whole(info.source_width, info.source_height, info.width, info.height)
    to_source = FrameTransform.whole(info.width, info.height, info.source_width, info.source_height)
    scene_positions, visible = of_dataset(info, anchors, to_source.points(queries))
    stored_positions = to_stored.points(scene_positions.astype(np.float32))
    positions = clamp_to_frame(stored_positions, info.width, info.height)
    visibility = np.where(visible, 255, 0).astype(np.uint8)
    for row, anchor in enumerate(anchors):
        # Rounding must not move a point off its query.
        positions[row, anchor] = queries
        visibility[row, anchor] = 255
    confidence = np.full(visibility.shape, 255, np.uint8)
    return Tracks(np.asarray(anchors, np.int32), positions, visibility, confidence)


def _scene_tracks(
    info: ClipInfo, anchors: Sequence[int], queries: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the tracks of a clip of `scenes` in pixels of the source: [A, T, N, 2] and [A, T, N].

    All anchors' points are followed at once: most time is spent per frame.
    """
    scene_id = SceneId.parse(info.video_id)
    _check_size(info, scene_id.width, scene_id.height)
    scene = make_scene(scene_id)
    points = [cast(scene, info.frame_numbers[anchor], queries)[0] for anchor in anchors]
    tracks = follow(scene, SurfacePoints.joined(points), info.frame_numbers)
    shape = (info.frames, len(anchors), len(queries))
    positions = tracks.positions.reshape(*shape, 2).swapaxes(0, 1)
    return positions, tracks.visible.reshape(shape).swapaxes(0, 1)


def _synthetic_tracks(
    info: ClipInfo, anchors: Sequence[int], queries: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the same for a clip of `synthetic`."""
    scene_id = synthetic_scene.SceneId.parse(info.video_id)
    _check_size(info, scene_id.width, scene_id.height)
    scene, frames = synthetic_scene.make_scene(scene_id), list(info.frame_numbers)
    # Tracks through all frames of the scene; the clip has some of them.
    tracks = [synthetic_scene.true_tracks(scene, frames[anchor], queries) for anchor in anchors]
    positions = np.stack([of_anchor[frames] for of_anchor, _ in tracks])
    return positions, np.stack([of_anchor[frames] for _, of_anchor in tracks])


def _check_size(info: ClipInfo, width: int, height: int) -> None:
    """Raise PretrackError if a clip did not come from frames of its scene's size."""
    if (width, height) != (info.source_width, info.source_height):
        raise PretrackError(
            f"the clip {info.key} came from frames of {info.source_width}x{info.source_height}, "
            f"and its scene {info.video_id} has another size"
        )
