"""Measure what grids of points show in scenes: `python -m benchmarks.scene_points [--scenes 30]`.

Prints means over scenes of 128x128 pixels and 16 frames, with 3 grids of 16x16 points:

    on objects   share of the points that do not lie on the room
    visible      share of positions in all frames that are visible
    > 30°        of the pairs of frames in which a point is visible, the share between which its
                 viewing angle differs by more than 30 degrees
    40-70°       the share between which it differs by 40 to 70 degrees
    error        largest distance, in pixels, of a point in its own frame from its query
    s            CPU seconds of the tracks of a clip
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import SurfacePoints, cast, follow, view_directions
from shards.geometry import grid_points

GRID = 16
ANCHORS = (0, 8, 15)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"motion": "moving"},
    {"objects": 5},
    {"objects": 15},
    {"orbit": 60},
)
FIGURES = ("on objects", "visible", "> 30°", "40-70°", "error", "s")


def measure(scene_id: SceneId) -> list[float]:
    """Return the figures of one scene."""
    scene, queries = make_scene(scene_id), grid_points(GRID, scene_id.width, scene_id.height)
    started = time.process_time()
    points = SurfacePoints.joined([cast(scene, anchor, queries)[0] for anchor in ANCHORS])
    tracks = follow(scene, points)
    seconds = time.process_time() - started
    directions = view_directions(scene, points)
    first, second = np.triu_indices(scene_id.frames, 1)
    cosines = np.einsum("pnc,pnc->pn", directions[first], directions[second])
    both = tracks.visible[first] & tracks.visible[second]
    angles = np.degrees(np.arccos(cosines.clip(-1, 1)))[both]
    own = tracks.positions.reshape(scene_id.frames, len(ANCHORS), -1, 2)[
        list(ANCHORS), np.arange(len(ANCHORS))
    ]
    return [
        float((points.instances(scene) > 0).mean()),
        float(tracks.visible.mean()),
        float((angles > 30).mean()),
        float(((angles >= 40) & (angles < 70)).mean()),
        float(np.abs(own - queries).max()),
        seconds,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scene_points")
    parser.add_argument("--scenes", type=int, default=30, help="number of scenes per row")
    count = parser.parse_args().scenes
    print(f"{'settings':<20}" + "".join(f"{name:>12}" for name in FIGURES))
    for settings in SETTINGS:
        rows = np.array(
            [
                measure(SceneId(split="train", seed=0, number=number, **settings))
                for number in range(count)
            ]
        )
        name = ", ".join(f"{key}: {value}" for key, value in settings.items()) or "defaults"
        shares = "".join(f"{100 * share:>11.0f}%" for share in rows[:, :4].mean(axis=0))
        print(f"{name:<20}{shares}{rows[:, 4].max():>12.0e}{rows[:, 5].mean():>12.2f}")


if __name__ == "__main__":
    main()
