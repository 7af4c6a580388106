"""Exact tracks of synthetic clips, computed from the geometry that rendered their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.synthetic_scene import SceneId, make_scene, true_tracks
from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import FrameTransform


class GroundTruthSettings(TrackerSettings):
    """Settings of the exact tracks. Only the points can be chosen."""

    tracker: Literal["truth"]
    """The tracker: exact tracks of the source `synthetic`."""
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

        Raises PretrackError for a clip that is not from the source `synthetic`.
        """
        directions = self._settings.directions
        return [leave_untracked(_track(info, anchors, queries), directions) for info in infos]


def _track(info: ClipInfo, anchors: Sequence[int], queries: NDArray[np.float32]) -> Tracks:
    """Return the exact tracks of a clip, in pixels of its stored size."""
    if info.dataset != "synthetic":
        raise PretrackError(
            f"the clip {info.key} is of the dataset {info.dataset}, "
            "and only synthetic clips have true tracks"
        )
    scene_id = SceneId.parse(info.video_id)
    if (scene_id.width, scene_id.height) != (info.source_width, info.source_height):
        raise PretrackError(
            f"the clip {info.key} came from frames of {info.source_width}x{info.source_height}, "
            f"and its scene {scene_id} has another size"
        )
    scene = make_scene(scene_id)
    # Scenes are defined in pixels of the source; queries and tracks are in pixels of stored frames.
    to_stored = FrameTransform.whole(info.source_width, info.source_height, info.width, info.height)
    to_source = FrameTransform.whole(info.width, info.height, info.source_width, info.source_height)
    scene_queries, frames = to_source.points(queries), list(info.frame_numbers)
    shape = (len(anchors), info.frames, len(queries))
    positions, visibility = np.empty((*shape, 2), np.float32), np.empty(shape, np.uint8)
    for row, anchor in enumerate(anchors):
        # Tracks through all frames of the scene; the clip has some of them.
        scene_positions, visible = true_tracks(scene, info.frame_numbers[anchor], scene_queries)
        stored_positions = to_stored.points(scene_positions.astype(np.float32))
        positions[row] = clamp_to_frame(stored_positions, info.width, info.height)[frames]
        visibility[row] = np.where(visible, 255, 0)[frames]
        # Rounding must not move a point off its query.
        positions[row, anchor] = queries
        visibility[row, anchor] = 255
    return Tracks(
        np.asarray(anchors, np.int32), positions, visibility, np.full(shape, 255, np.uint8)
    )
