"""Compare tracks with cameras: distances from epipolar lines, and triangulation.

The formulas are those of Hartley & Zisserman, Multiple View Geometry, 2nd ed.: fundamental matrices
(9.2), the Sampson distance (11.4.3), linear triangulation (12.2), here over all frames and
reweighted by depth.

Nothing depends on the world's origin, axes or unit: a rigid motion or a scaling of the world
changes results by rounding only.

Legend of shapes: A anchors, T frames, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NOT_A_ROTATION = 1e-2
"""Largest difference of R R^T from the identity that rounding in a source's files explains."""
_LARGEST_NUMBER, _SMALLEST_FOCAL = 1e12, 1e-3
"""Cameras with larger numbers, or smaller focal lengths in pixels, are damaged: they overflow."""
_IDENTITY = np.array([1.0, 1.0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0])
"""A camera in the form of `camera_row`."""
_SAME_PLACE = 1e-6
"""Cameras nearer than this fraction of the largest baseline count as one: their epipolar lines are
rounding errors."""
_REWEIGHTINGS = 1
"""Rounds of triangulation after the first; each divides residuals by the depths just found."""
_FEWEST_FRAMES = 3
"""Frames in which a point must be visible to be triangulated: two rays always nearly meet."""
_RIDGE = 1e-12
"""Relative regularisation, so that a point at infinity gives a far point and not an error."""


@dataclass(frozen=True, eq=False)
class Poses:
    """The cameras of a clip as arrays. Rows of unusable frames hold the identity.

    usable:    bool [T], whether the frame has a camera of finite numbers with positive focal
               lengths and a rotation, which is neither singular nor mirrored
    focals:    [T, 2], in pixels
    centres:   [T, 2], the principal points in pixels
    rotations: [T, 3, 3], world to camera
    shifts:    [T, 3], X_camera = rotation @ X_world + shift; the world is moved and scaled so that
               the cameras' positions have mean 0, and the farthest of them lies at distance 1
    origin, unit: [3] and a number, X_world = origin + unit * X in the source's own world
    """

    usable: Mask
    focals: Floats
    centres: Floats
    rotations: Floats
    shifts: Floats
    origin: Floats = field(default_factory=lambda: np.zeros(3))
    unit: float = 1.0

    @cached_property
    def positions(self) -> Floats:
        """Positions of the cameras in the scaled world: [T, 3]."""
        return -np.einsum("tji,tj->ti", self.rotations, self.shifts)

    @cached_property
    def baselines(self) -> Floats:
        """Distances between cameras [T, T], 0 for unusable frames and for cameras in one place."""
        difference = self.positions[:, None] - self.positions
        distances = np.linalg.norm(difference, axis=-1) * (self.usable[:, None] & self.usable)
        return np.where(distances > _SAME_PLACE * distances.max(initial=0), distances, 0.0)

    @cached_property
    def projections(self) -> Floats:
        """Projection matrices to pixels from the principal point: [T, 3, 4]."""
        matrices = np.concatenate([self.rotations, self.shifts[..., None]], axis=2)
        matrices[:, :2] *= self.focals[..., None]
        return matrices

    @cached_property
    def normal_terms(self) -> Floats:
        """What sums of w, w x, w y and w (x^2 + y^2) over frames contribute to a normal matrix.

        [4 T, 16]: its product with those factors is the matrix of `_least_squares`.
        """
        p1, p2, p3 = np.moveaxis(self.projections, 1, 0)
        parts = [
            _products(p1, p1) + _products(p2, p2),
            -2 * _products(p1, p3),
            -2 * _products(p2, p3),
            _products(p3, p3),
        ]
        return np.concatenate(parts)

    def angles_from(self, frame: int) -> Floats:
        """Degrees between a frame's optical axis and that of all: [T], NaN for unusable frames."""
        axes = self.rotations[:, 2]
        angles = np.degrees(np.arccos(np.clip(axes @ axes[frame], -1, 1)))
        return np.where(self.usable & self.usable[frame], angles, np.nan)

    @property
    def turn(self) -> float:
        """Largest angle between two optical axes, in degrees; NaN without usable frames."""
        axes = self.rotations[self.usable, 2]
        if not len(axes):
            return np.nan
        return float(np.degrees(np.arccos(np.clip(axes @ axes.T, -1, 1).min())))

    @property
    def differ(self) -> bool:
        """Whether two usable frames have different poses. A source that repeats one has none."""
        rotations, shifts = self.rotations[self.usable], self.shifts[self.usable]
        return len(shifts) > 1 and not (
            np.allclose(rotations, rotations[0], rtol=0, atol=1e-9) and not self.baselines.any()
        )

    def without(self, frames: Mask) -> Poses:
        """Give the same poses with some frames marked as unusable: bool [T]."""
        return replace(self, usable=self.usable & ~frames)


def read_poses(cameras: Sequence[Camera | None] | None, frames: int) -> Poses:
    """Convert the cameras of a clip, in pixels of its stored frames; None for frames without."""
    rows = np.tile(_IDENTITY, (frames, 1))
    given = np.zeros(frames, np.bool_)
    for t, camera in enumerate(cameras or ()):
        if camera is not None:
            rows[t], given[t] = camera_row(camera), True
    usable = given & usable_cameras(rows)
    rows[~usable] = _IDENTITY
    matrices = rows[:, 4:].reshape(-1, 3, 4)
    return _centred(Poses(usable, rows[:, :2], rows[:, 2:4], matrices[:, :, :3], matrices[:, :, 3]))


def camera_row(camera: Camera) -> tuple[float, ...]:
    """Return the 16 numbers of a camera: fx, fy, cx, cy, and its matrix row by row."""
    return (camera.fx, camera.fy, camera.cx, camera.cy, *camera.world_to_camera)


def usable_cameras(rows: Floats) -> Mask:
    """Tell which cameras, rows of `camera_row` [T, 16], are `Poses.usable`: bool [T]."""
    small = np.all(np.abs(rows) <= _LARGEST_NUMBER, axis=1)  # NaN is not, either
    possible = np.logical_and(small, np.all(rows[:, :2] >= _SMALLEST_FOCAL, axis=1))
    rotations = np.where(possible[:, None], rows, _IDENTITY)[:, 4:].reshape(-1, 3, 4)[:, :, :3]
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    proper = np.logical_and(error <= _NOT_A_ROTATION, np.linalg.det(rotations) > 0)
    return np.asarray(possible & proper, np.bool_)


def _centred(poses: Poses) -> Poses:
    """Move and scale the world as `Poses` says, which keeps float64 exact in any world unit."""
    if not poses.usable.any():
        return poses
    middle = poses.positions[poses.usable].mean(axis=0)
    offsets = poses.positions[poses.usable] - middle
    scale = np.linalg.norm(offsets, axis=1).max()
    # A camera that only turns has no scale; rounding is not one.
    if scale <= 1e-9 * (1e-300 + np.linalg.norm(poses.positions[poses.usable], axis=1).max()):
        shifts, scale = np.zeros_like(poses.shifts), 1.0
    else:
        shifts = (poses.shifts + poses.rotations @ middle) / scale
    shifts[~poses.usable] = 0
    return replace(poses, shifts=shifts, origin=middle, unit=float(scale))


def sampson_distances(poses: Poses, anchors: NDArray[np.int32], positions: Floats) -> Floats:
    """Return the Sampson distance of each point from its anchor's epipolar line: [A, T, N].

    positions: [2, A, T, N], x and y in pixels; in its own anchor frame a point is at its query

    In pixels; NaN in the anchor frame and where two cameras give no epipolar line.
    """
    rows = np.arange(len(anchors))
    f = fundamental_matrices(poses, anchors)  # [A, T, 3, 3]
    queries = _homogeneous(positions[:, rows, anchors])  # [A, 3, N]
    lines = np.moveaxis(f @ queries[:, None], 2, 0)  # [3, A, T, N]: of the queries, in frame t
    f = f[..., None]  # one axis more, for the points
    x, y = positions
    # The gradient of the residual: the lines' normals here and those of the way back.
    squares = lines[0] ** 2
    squares += lines[1] ** 2
    for column in (0, 1):
        back = f[:, :, 0, column] * x
        back += f[:, :, 1, column] * y
        back += f[:, :, 2, column]
        back *= back
        squares += back
    residual = lines[0] * x
    residual += lines[1] * y
    residual += lines[2]
    residual *= residual
    with np.errstate(divide="ignore", invalid="ignore"):
        residual /= squares
    distances = np.sqrt(residual, out=residual)
    # The baseline of a frame with itself is 0.
    distances[poses.baselines[anchors] == 0] = np.nan
    return distances


def _homogeneous(points: Floats) -> Floats:
    """Append 1 to points: [2, A, N] → [A, 3, N]."""
    return np.stack([*points, np.ones(points.shape[1:])], axis=1)


def fundamental_matrices(poses: Poses, anchors: NDArray[np.int32]) -> Floats:
    """Return F [A, T, 3, 3] with x_t^T F x_anchor = 0 for pixels of one point."""
    rotation = poses.rotations @ poses.rotations[anchors][:, None].transpose(0, 1, 3, 2)
    shift = poses.shifts - np.einsum("atij,aj->ati", rotation, poses.shifts[anchors])
    essential = _cross_matrices(shift) @ rotation
    inverse = np.zeros((len(poses.usable), 3, 3))  # of the intrinsics
    inverse[:, 0, 0], inverse[:, 1, 1] = 1 / poses.focals.T
    inverse[:, :2, 2] = -poses.centres / poses.focals
    inverse[:, 2, 2] = 1
    return inverse.transpose(0, 2, 1) @ essential @ inverse[anchors][:, None]


def _cross_matrices(vectors: Floats) -> Floats:
    """Return [v]x for vectors [..., 3]: [..., 3, 3] with [v]x @ w = v x w."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)


@dataclass(frozen=True, eq=False)
class Triangulation:
    """The points that tracks see, if the world stands still.

    errors:   [A, N], root mean square distance in pixels between a point's projections and its
              track; infinite for a point behind a camera that sees it
    parallax: [A, N], largest angle in degrees between the anchor's ray and another frame's
    depths:   [A, N], of the points before their anchor's camera, in units of the scaled world
    points:   [A, N, 3], in the source's own world

    All are NaN for tracks with fewer than three frames to use.
    """

    errors: Floats
    parallax: Floats
    depths: Floats
    points: Floats


def triangulate(
    poses: Poses, anchors: NDArray[np.int32], positions: Floats, visible: Mask
) -> Triangulation:
    """Find the 3D point of each track by least squares over its visible, usable frames.

    positions: [2, A, T, N], x and y in pixels; visible: bool [A, T, N]
    """
    used = (visible & poses.usable[:, None]).astype(np.float64)
    counts = used.sum(axis=1)
    # Offsets from the principal point are smaller than pixels, and so are rounding errors.
    x = positions[0] - poses.centres[:, 0, None]
    y = positions[1] - poses.centres[:, 1, None]
    projections = poses.projections
    points = _least_squares(poses, x, y, used)
    for _ in range(_REWEIGHTINGS):
        # The residual x * depth - u is in pixels once it is divided by the depth.
        depth = projections[:, 2] @ points
        depth *= depth
        np.maximum(depth, 1e-6 * depth.max(axis=1, keepdims=True) + 1e-300, out=depth)
        points = _least_squares(poses, x, y, np.divide(used, depth, out=depth))
    u, v, depth = (projections[:, row] @ points for row in range(3))  # [A, T, N] each
    with np.errstate(divide="ignore", invalid="ignore"):
        u /= depth
        v /= depth
    u -= x
    v -= y
    u *= u
    v *= v
    u += v
    u *= used
    errors = np.sqrt(u.sum(axis=1) / np.maximum(counts, 1))
    # A right point lies in front of every camera that sees it.
    depth *= used
    errors[(depth.min(axis=1) < 0) | np.isnan(errors)] = np.inf
    few = counts < _FEWEST_FRAMES
    depths = depth[np.arange(len(anchors)), anchors]  # an anchor frame is always visible
    parallax = _parallax(poses, anchors, x, y, used)
    places = poses.origin + poses.unit * points[:, :3].swapaxes(1, 2)
    for values in (errors, parallax, depths, places):
        values[few] = np.nan
    return Triangulation(errors, parallax, depths, places)


def _least_squares(poses: Poses, x: Floats, y: Floats, weights: Floats) -> Floats:
    """Minimise the sum over t of w (x p3 - p1)^2 + w (y p3 - p2)^2 for points (X, 1): [A, 4, N].

    p1, p2 and p3 are the rows of a frame's projection matrix.
    """
    # The normal matrix is linear in the sums of w, w x, w y and w (x^2 + y^2) over frames, so that
    # one matrix product gives those of all tracks.
    factors = np.empty((len(x), 4 * x.shape[1], x.shape[2]))
    w, wx, wy, wxy = np.split(factors, 4, axis=1)
    w[...] = weights
    np.multiply(weights, x, out=wx)
    np.multiply(weights, y, out=wy)
    np.multiply(wx, x, out=wxy)
    wxy += wy * y
    normal = (factors.transpose(0, 2, 1) @ poses.normal_terms).reshape(len(x), -1, 4, 4)
    matrix = normal[..., :3, :3]
    diagonal = np.arange(3)
    trace = matrix[..., diagonal, diagonal].sum(axis=-1, keepdims=True)
    matrix[..., diagonal, diagonal] += _RIDGE * trace + 1e-300
    solved = np.linalg.solve(matrix, -normal[..., :3, 3:])[..., 0]  # [A, N, 3]
    return np.concatenate([solved, np.ones((*solved.shape[:2], 1))], axis=-1).swapaxes(1, 2)


def _products(a: Floats, b: Floats) -> Floats:
    """Return the symmetric part of a b^T for vectors [T, 4]: [T, 16]."""
    both = a[:, :, None] * b[:, None]
    return ((both + both.swapaxes(1, 2)) / 2).reshape(len(a), 16)


def _parallax(
    poses: Poses, anchors: NDArray[np.int32], x: Floats, y: Floats, used: Floats
) -> Floats:
    """Return the largest angle between a track's ray in the anchor frame and others: [A, N]."""
    rows = np.arange(len(anchors))
    x, y = x / poses.focals[:, 0, None], y / poses.focals[:, 1, None]
    queries = _homogeneous(np.stack([x[rows, anchors], y[rows, anchors]]))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)  # [A, 3, N]
    rotation = poses.rotations @ poses.rotations[anchors][:, None].transpose(0, 1, 3, 2)
    turned = np.moveaxis(rotation @ queries[:, None], 2, 0)  # [3, A, T, N]
    cosine = turned[0] * x
    cosine += turned[1] * y
    cosine += turned[2]
    x *= x
    y *= y
    x += y
    x += 1
    cosine /= np.sqrt(x, out=x)
    # Frames that are not used count as the anchor frame, with cosine 1.
    cosine -= 1
    cosine *= used
    return np.degrees(np.arccos(np.clip(1 + cosine.min(axis=1), -1, 1)))
