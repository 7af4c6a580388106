"""The cameras of a clip as arrays, in the world of its description: rays, motions, projections.

Legend of shapes: T frames, P any number of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera, ClipInfo
from shards.epipolar import read_poses

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClipCameras:
    """The cameras of a clip's frames; those that are not usable hold the identity.

    usable:   bool [T]
    focals:   [T, 2], in pixels; centres [T, 2]
    rotations: [T, 3, 3] and shifts [T, 3], world to camera; inverses [T, 3, 3] of the rotations
    """

    usable: Mask
    focals: Floats
    centres: Floats
    rotations: Floats
    shifts: Floats
    inverses: NDArray[np.floating]

    @classmethod
    def read(cls, info: ClipInfo) -> ClipCameras:
        """Read the cameras of a clip."""
        poses = read_poses(info.cameras, info.frames)
        # `poses` are in a scaled world, and depths are in the world of the description.
        cameras: Sequence[Camera | None] = info.cameras or (None,) * info.frames
        shifts = np.zeros((info.frames, 3))
        for t, camera in enumerate(cameras):
            if camera and poses.usable[t]:
                shifts[t] = np.reshape(camera.world_to_camera, (3, 4))[:, 3]
        return cls(
            usable=poses.usable,
            focals=poses.focals,
            centres=poses.centres,
            rotations=poses.rotations,
            shifts=shifts,
            inverses=np.linalg.inv(poses.rotations),
        )

    def rays(self, frames: int | NDArray[np.int64], pixels: Floats) -> Floats:
        """Return the points at depth 1 of pixels [P, 2], one frame for all or one each: [P, 3]."""
        plane = (pixels - self.centres[frames]) / self.focals[frames]
        return np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1)

    def between(
        self, start: int | NDArray[np.int64], end: int | NDArray[np.int64], points: Floats
    ) -> Floats:
        """Move points [..., 3] from one camera's axes to another's; frames broadcast to [...]."""
        world = np.einsum("...ij,...j->...i", self.inverses[start], points - self.shifts[start])
        return np.einsum("...ij,...j->...i", self.rotations[end], world) + self.shifts[end]

    def project(self, frames: int | NDArray[np.int64], points: Floats) -> Floats:
        """Project points [..., 3] in the axes of cameras to pixels [..., 2]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = points[..., :2] / points[..., 2:]
        return plane * self.focals[frames] + self.centres[frames]
