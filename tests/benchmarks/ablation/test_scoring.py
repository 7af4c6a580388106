"""A metric counts the points that it says, by the angle that they are truly seen from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.ablation.experiment import MetricSettings
from benchmarks.ablation.scene_points import label_clip
from benchmarks.ablation.scoring import counted
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import cast, follow
from shards.geometry import grid_points
from tests.helpers.clips import make_clip
from trainer.evaluate.heldout.clips import HeldOutClip


@pytest.mark.parametrize("dataset", ["scenes", "other"])
def test_angles_are_those_at_the_point_between_the_cameras(dataset: str) -> None:
    """Of a scene, and for other datasets by rays, which nothing else than cameras gives."""
    scene_id = SceneId(split="eval", seed=3, number=0, objects=6, frames=4, width=64, height=48)
    scene = make_scene(scene_id)
    queries, frames = grid_points(8, 64, 48), [1, 2, 3]
    points, depths = cast(scene, 1, queries)
    tracks = follow(scene, points, frames)
    info = replace(
        make_clip().info,
        dataset=dataset,
        video_id=str(scene_id),
        frame_numbers=(0, 1, 2, 3),
        width=64,
        height=48,
        cameras=scene.cameras,
    )
    clip = HeldOutClip(
        info=info,
        checksum="",
        frame_numbers=tuple(frames),
        images={},
        positions=torch.from_numpy((tracks.positions + 0.5) / [64, 48]),
        track_mask=torch.from_numpy(tracks.visible),
        angles=np.zeros(3),
    )
    angles, objects = label_clip(clip)

    # The point from the anchor's depth, and the directions from it to the two cameras.
    matrices = [np.reshape(camera.world_to_camera, (3, 4)) for camera in scene.cameras]
    centres = [-matrix[:, :3].T @ matrix[:, 3] for matrix in matrices]
    camera = scene.cameras[1]
    slopes = (queries - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    ahead = np.concatenate([slopes, np.ones((64, 1))], axis=1) * depths[:, None]
    places = ahead @ matrices[1][:, :3] + centres[1]
    for row, frame in enumerate(frames):
        to_anchor, to_later = centres[1] - places, centres[frame] - places
        cosines = (to_anchor * to_later).sum(axis=1) / (
            np.linalg.norm(to_anchor, axis=1) * np.linalg.norm(to_later, axis=1)
        )
        seen = tracks.visible[row]
        expected = np.degrees(np.arccos(cosines.clip(-1, 1)))
        assert np.allclose(angles[row, seen], expected[seen], atol=1e-3)
    assert angles[2, tracks.visible[2]].max() > 30
    if dataset == "scenes":
        assert objects.tolist() == (points.instances(scene) > 0).tolist()
        assert 0 < objects.mean() < 1
    else:
        assert np.isnan(objects).all()


def test_a_metric_counts_points_on_objects_within_its_angles() -> None:
    angles = np.array([39.9, 40.0, 69.9, 70.0, 50.0, np.nan])
    objects = np.array([1, 1, 1, 1, 0, 1.0])
    moving = np.array([True, False, True, True, True, True])
    every = MetricSettings()
    assert counted(every, moving, angles, objects).all()
    within = MetricSettings(objects=True, angle=(40, 70))
    assert counted(within, moving, angles, objects).tolist() == [False, True, True] + [False] * 3
    both = MetricSettings(angle=(40, 70), moving=True)
    assert counted(both, moving, angles, objects).tolist() == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
