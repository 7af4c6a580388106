"""Tracks from depth and cameras beside Lucas-Kanade's: `python -m benchmarks.geometry_tracker`.

Rendered static scenes, around which the camera turns by 120 degrees, with depth maps as they are
stored and with true tracks. A pair is a point of an anchor frame and another frame. The table has,
by the angle between the optical axes of the two frames, how many pairs are truly visible, how many
a tracker finds (calls visible, rightly, and puts within 2 px), and the part of those it calls
visible that is wrong. Then the median error of visible points, the occlusion accuracy, and the time
per clip of usual size, in CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import make_parser
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.sources.scenes import DEPTH_SCALE, encoded_depth
from pipeline.trackers.geometry import GeometrySettings
from pipeline.trackers.ground_truth import GroundTruthSettings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from shards.clip import VISIBLE_THRESHOLD, ClipInfo, Tracks
from shards.epipolar import read_poses
from shards.geometry import grid_points
from tests.helpers.clips import make_clip
from tests.helpers.static_planes import static_planes

SCENES, FRAMES, SIDE, ORBIT = 6, 48, 256, 120
ANCHORS, GRID = (0, 24), 16
ANGLES = ((0, 30), (30, 60), (60, 90), (90, 120))
"""Bounds of the bins of angles; the last includes its end."""
NEAR_PX = 2.0
ROUNDS = 20
USUAL_SIZE, USUAL_ANCHORS = (341, 256), (0, 16, 32)

Counts = NDArray[np.float64]
"""Per bin of angles: truly visible pairs, pairs found, pairs called visible, of them wrong ones."""


@dataclass(frozen=True, eq=False)
class RenderedClip:
    """A scene's frames [T, H, W, 3], depth maps [T, H, W] and true tracks."""

    info: ClipInfo
    frames: NDArray[np.uint8]
    depths: NDArray[np.float32]
    truth: Tracks


def rendered_clips() -> Iterator[RenderedClip]:
    """Render the scenes of seed 0."""
    queries = grid_points(GRID, SIDE, SIDE)
    for number in range(SCENES):
        scene_id = SceneId(
            split="eval",
            seed=0,
            number=number,
            objects=10,
            orbit=ORBIT,
            motion="static",
            light="normal",
            frames=FRAMES,
            width=SIDE,
            height=SIDE,
        )
        scene = make_scene(scene_id)
        with Renderer(scene) as renderer:
            frames = np.stack([renderer.picture(t) for t in range(FRAMES)])
            depths = np.stack([encoded_depth(renderer.depth(t)) for t in range(FRAMES)])
        info = replace(
            make_clip(frames=FRAMES).info,
            dataset="scenes",
            video_id=str(scene_id),
            width=SIDE,
            height=SIDE,
            source_width=SIDE,
            source_height=SIDE,
            frame_numbers=tuple(range(FRAMES)),
            cameras=scene.cameras,
            depth_scale=DEPTH_SCALE,
        )
        truth = GroundTruthSettings(tracker="truth").load()
        (tracks,) = truth.track([frames], [info], ANCHORS, queries)
        yield RenderedClip(info, frames, (depths * DEPTH_SCALE).astype(np.float32), tracks)


def counts_by_angle(clip: RenderedClip, tracks: Tracks) -> Counts:
    """Count the pairs of a clip by angle: [4, bins]."""
    axes = read_poses(clip.info.cameras, FRAMES).rotations[:, 2]
    cosines = np.clip(axes[list(ANCHORS)] @ axes.T, -1, 1)
    angles = np.minimum(np.degrees(np.arccos(cosines)), ANGLES[-1][1] - 1e-9)[..., None]
    others = np.arange(FRAMES) != np.array(ANCHORS)[:, None]
    true = (clip.truth.visibility >= VISIBLE_THRESHOLD) & others[..., None]
    called = (tracks.visibility >= VISIBLE_THRESHOLD) & others[..., None]
    found = true & called & (errors(clip, tracks) < NEAR_PX)
    kinds = (true, found, called, called & ~found)
    return np.array(
        [
            [(kind & (angles >= low) & (angles < high)).sum() for low, high in ANGLES]
            for kind in kinds
        ],
        np.float64,
    )


def errors(clip: RenderedClip, tracks: Tracks) -> NDArray[np.float64]:
    """Return the distances [A, T, N] from the true tracks, in pixels."""
    difference = tracks.positions.astype(np.float64) - clip.truth.positions
    distances: NDArray[np.float64] = np.linalg.norm(difference, axis=-1)
    return distances


def seconds_per_clip() -> float:
    """Return the fastest CPU time of tracking a clip of 48 frames, 3 anchors and 256 points."""
    scene = static_planes(0, 48, 60.0, *USUAL_SIZE)
    tracker, queries = (
        GeometrySettings(tracker="geometry").load(),
        grid_points(GRID, *USUAL_SIZE),
    )
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        tracker.track_depth([scene.depths], [scene.info], USUAL_ANCHORS, queries)
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    """Print the table and the figures."""
    queries = grid_points(GRID, SIDE, SIDE)
    geometry = GeometrySettings(tracker="geometry").load()
    lucas_kanade = LucasKanadeSettings().load()
    totals = {name: np.zeros((4, len(ANGLES))) for name in ("geometry", "lucas_kanade")}
    medians, accuracies = [], []
    for clip in rendered_clips():
        (exact,) = geometry.track_depth([clip.depths], [clip.info], ANCHORS, queries)
        (followed,) = lucas_kanade.track([clip.frames], [clip.info], ANCHORS, queries)
        totals["geometry"] += counts_by_angle(clip, exact)
        totals["lucas_kanade"] += counts_by_angle(clip, followed)
        true = clip.truth.visibility >= VISIBLE_THRESHOLD
        called = exact.visibility >= VISIBLE_THRESHOLD
        medians.append(float(np.median(errors(clip, exact)[true])))
        accuracies.append(float((true == called).mean()))
    print("| angle | truly visible | geometry finds | wrong | lucas_kanade finds | wrong | ratio |")
    print("|---|---|---|---|---|---|---|")
    for number, (low, high) in enumerate(ANGLES):
        cells = [f"{low}-{high}°", f"{totals['geometry'][0, number]:,.0f}"]
        for counts in totals.values():
            _, found, called, wrong = counts[:, number]
            cells += [f"{found:,.0f}", f"{wrong / called:.1%}" if called else ""]
        found = [counts[1, number] for counts in totals.values()]
        cells.append(f"{found[0] / found[1]:.1f}" if found[1] else "")
        print(f"| {' | '.join(cells)} |")
    print(
        f"\ngeometry: median error {median(medians):.4f} px, occlusion accuracy "
        f"{np.mean(accuracies):.1%}, of {SCENES} scenes"
    )
    seconds = seconds_per_clip()
    print(
        f"CPU ms per clip of 48 frames, 3 anchors and {GRID**2} points: {1e3 * seconds:.0f} "
        f"(fastest of {ROUNDS}): {2 * 60 / seconds:,.0f} clips a minute on two cores"
    )


if __name__ == "__main__":
    make_parser("geometry_tracker", __doc__).parse_args()
    main()
