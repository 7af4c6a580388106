"""No tracker but the truth: the exact tracks of clips of the source `synthetic`, from the geometry that made their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.synthetic_scene import SceneId, make_scene, true_tracks
from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import FrameTransform


class GroundTruthSettings(TrackerSettings):
    """Settings of the exact tracks. They have no errors to allow for, so only the points can be chosen."""

    tracker: Literal["truth"]
    """Which tracker follows the points."""
    version: Literal[1] = 1
    """Raised by hand when the code's results change, so that old tracks are made again."""

    def load(self) -> GroundTruthTracker:
        """The tracker itself."""
        return GroundTruthTracker()


class GroundTruthTracker:
    """Looks at no frame: a clip's description names its scene."""

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """See `Tracker.track`. Visibility is 0 or 255, and confidence 255 everywhere.

        Raises PretrackError for a clip that does not come from the source `synthetic`.
        """
        return [_track(info, anchors, queries) for info in infos]


def _track(info: ClipInfo, anchors: Sequence[int], queries: NDArray[np.float32]) -> Tracks:
    """The tracks of a clip, in pixels of its stored size."""
    if info.dataset != "synthetic":
        raise PretrackError(
            f"the clip {info.key} is of the dataset {info.dataset}, and only synthetic clips have true tracks"
        )
    scene_id = SceneId.parse(info.video_id)
    if (scene_id.width, scene_id.height) != (info.source_width, info.source_height):
        raise PretrackError(
            f"the clip {info.key} came from frames of {info.source_width}x{info.source_height}, and its scene {scene_id} has others"
        )
    scene = make_scene(scene_id)
    stored = FrameTransform.whole(info.source_width, info.source_height, info.width, info.height)
    source = FrameTransform.whole(info.width, info.height, info.source_width, info.source_height)
    shape = (len(anchors), info.frames, len(queries))
    positions, visibility = np.empty((*shape, 2), np.float32), np.empty(shape, np.uint8)
    for row, anchor in enumerate(anchors):
        true, seen = true_tracks(scene, info.frame_numbers[anchor], source.points(queries))
        positions[row] = clamp_to_frame(
            stored.points(true.astype(np.float32)), info.width, info.height
        )[list(info.frame_numbers)]
        visibility[row] = np.where(seen, 255, 0)[list(info.frame_numbers)]
        positions[row, anchor] = queries
        visibility[row, anchor] = 255
    return Tracks(
        np.asarray(anchors, np.int32), positions, visibility, np.full(shape, 255, np.uint8)
    )
