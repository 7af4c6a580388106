"""Find the points that a frame shows, and follow them exactly, from geometry alone.

The ray of a pixel (x, y) has the direction d = ((x - cx) / fx, (y - cy) / fy, 1) in camera
coordinates. Shear space along z so that d becomes the z axis: a corner (X, Y, Z) of a face comes to
(X - Z dx, Y - Z dy), and the ray to the origin of that plane. There, the signed areas e of the
three triangles between the origin and the face's edges tell all (Woop et al., Watertight
Ray/Triangle Intersection, 2013):

    the ray meets the face's front where all three are positive
    e / sum(e)            barycentric weights of the point that is met, in space
    sum(e Z) / sum(e)     its depth

An edge has the same area in both of its faces, but for the sign, so no ray slips between them.
Nothing is divided by the depth of a corner, so faces that reach behind the camera need no clipping.

A point on a face cannot be hidden by the face itself, nor by a neighbour across an edge while both
show their fronts: these lie on opposite sides of the edge's image. All other faces are compared
with it as computed, without a tolerance.

Legend of shapes: N points, T frames, V vertices, F faces, P pairs of a point and a face.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.mesh import Floats, edge_neighbours
from pipeline.scenes.rigid import move
from pipeline.scenes.scene import Scene
from shards.clip import Camera
from shards.geometry import inside

_CELLS = 48
"""Cells per side of the grid by which faces are found."""
_PAIRS = 1_000_000
"""Most pairs of a point and a face that are tested at once."""
_MARGIN = 1e-6
"""Pixels by which a face's box in the image is enlarged, against rounding. Only a pre-selection."""
_SHORTEST_DEPTH = 1e-3
"""Depth, in metres, with which points beside or behind the camera are projected."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points on the faces of a scene's bodies, which move with them.

    body:    [N] indices of `Scene.bodies`
    face:    [N] indices of the body's faces
    weights: [N, 3] of the face's corners; they sum to 1
    """

    body: Ints
    face: Ints
    weights: Floats

    @classmethod
    def joined(cls, points: Sequence[SurfacePoints]) -> SurfacePoints:
        """Put the points of several frames one after the other."""
        return cls(
            np.concatenate([one.body for one in points]),
            np.concatenate([one.face for one in points]),
            np.concatenate([one.weights for one in points]),
        )

    def instances(self, scene: Scene) -> Ints:
        """Return the instance number of each point's body, 0 for the room: [N]."""
        return np.array([body.instance for body in scene.bodies])[self.body]

    def moving(self, scene: Scene) -> Bools:
        """Tell which points are on bodies that move: [N]."""
        return np.array([body.moves for body in scene.bodies])[self.body]

    def positions(self, scene: Scene) -> Floats:
        """Return the points in the coordinates of their bodies: [N, 3]."""
        positions = np.empty((len(self.body), 3))
        for number in np.unique(self.body).tolist():
            mesh, own = scene.bodies[number].mesh, self.body == number
            corners = mesh.vertices[mesh.faces[self.face[own]]]
            positions[own] = np.einsum("ni,nij->nj", self.weights[own], corners)
        return positions


@dataclass(frozen=True, eq=False)
class TrueTracks:
    """Points followed through frames.

    positions: [T, N, 2] (x, y) in pixels, centres at integers; they may lie outside the frame
    visible:   [T, N]
    """

    points: SurfacePoints
    positions: Floats
    visible: Bools


def cast(scene: Scene, frame: int, xy: NDArray[np.number]) -> tuple[SurfacePoints, Floats]:
    """Return the points that are seen at pixels `xy` [N, 2] of a frame, and their depths [N].

    Depths are along the camera's optical axis, in metres. Rooms are closed, so every ray meets a
    face.
    """
    surfaces = _Surfaces.of(scene)
    nearest, owner = np.zeros(len(xy)), np.full(len(xy), -1)
    weights = np.zeros((len(xy), 3))
    crossings = surfaces.view(frame).crossings(xy.astype(np.float64))
    for point, face, areas, nearness in crossings:
        # The nearest crossing of each point comes first among its own; and those come together.
        order = np.lexsort((-nearness, point))
        first = order[np.unique(point[order], return_index=True)[1]]
        nearer = first[nearness[first] > nearest[point[first]]]
        found = point[nearer]
        nearest[found], owner[found] = nearness[nearer], face[nearer]
        weights[found] = areas[nearer] / areas[nearer].sum(axis=1, keepdims=True)
    if (owner < 0).any():
        raise ValueError(f"no surface at {xy[owner < 0][0].tolist()} in frame {frame}")
    body = surfaces.body[owner]
    return SurfacePoints(body, owner - surfaces.first_face[body], weights), 1 / nearest


def follow(scene: Scene, points: SurfacePoints, frames: Sequence[int] | None = None) -> TrueTracks:
    """Follow points through the given frames of a scene, by default all.

    A point is visible if it lies in the frame, its face shows its front, and no other front is
    nearer to the camera there. Points behind the camera are put far outside the frame, on their
    side of it.
    """
    frames = range(scene.id.frames) if frames is None else frames
    surfaces = _Surfaces.of(scene)
    own_face = points.face + surfaces.first_face[points.body]
    own_and_next = np.concatenate([own_face[:, None], surfaces.neighbours[own_face]], axis=1)
    positions = np.empty((len(frames), len(own_face), 2))
    visible = np.empty(positions.shape[:2], np.bool_)
    for row, frame in enumerate(frames):
        view = surfaces.view(frame)
        corners = view.corners[own_face]
        places = np.einsum("ni,nij->nj", points.weights, corners)
        depth = places[:, 2]
        positions[row] = view.project(places)
        shown = inside(positions[row], scene.id.width, scene.id.height)
        shown &= view.front[own_face] & (depth > 0)
        candidates = np.flatnonzero(shown)
        for candidate, face, _, nearness in view.crossings(positions[row, candidates]):
            point = candidates[candidate]
            hides = (nearness * depth[point] > 1) & (face[:, None] != own_and_next[point]).all(1)
            shown[point[hides]] = False
        visible[row] = shown
    return TrueTracks(points, positions, visible)


def true_tracks(
    scene: Scene,
    frame: int,
    queries: NDArray[np.number],
    frames: Sequence[int] | None = None,
) -> TrueTracks:
    """Track the points seen at `queries` [N, 2] in `frame` through `frames`, by default all."""
    return follow(scene, cast(scene, frame, queries)[0], frames)


def places_in_cameras(scene: Scene, points: SurfacePoints, frames: Sequence[int]) -> Floats:
    """Return where points are in the axes of each frame's camera, in metres: [T, N, 3]."""
    on_bodies = points.positions(scene)
    places = np.empty((len(frames), *on_bodies.shape))
    for row, frame in enumerate(frames):
        poses = np.stack([body.poses[frame] for body in scene.bodies])[points.body]
        in_world = np.einsum("nij,nj->ni", poses[:, :, :3], on_bodies) + poses[:, :, 3]
        places[row] = move(np.reshape(scene.cameras[frame].world_to_camera, (3, 4)), in_world)
    return places


def view_directions(
    scene: Scene, points: SurfacePoints, frames: Sequence[int] | None = None
) -> Floats:
    """Return unit vectors from each point to the camera in its body's coordinates: [T, N, 3].

    The angle between the vectors of two frames is the change of the point's viewing angle, whether
    the camera or the body moved.
    """
    frames = range(scene.id.frames) if frames is None else frames
    places = points.positions(scene)
    directions = np.empty((len(frames), *places.shape))
    for row, frame in enumerate(frames):
        world_to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
        camera = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
        poses = np.stack([body.poses[frame] for body in scene.bodies])[points.body]
        in_body = np.einsum("nji,nj->ni", poses[:, :, :3], camera - poses[:, :, 3])
        directions[row] = in_body - places
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def surface_normals(
    scene: Scene, points: SurfacePoints, frames: Sequence[int] | None = None
) -> Floats:
    """Return the unit normals of the points' faces in the camera's axes: [T, N, 3].

    They come from the corners of the faces. They point outward: towards the camera where a point
    can be seen.
    """
    frames = range(scene.id.frames) if frames is None else frames
    in_body = np.empty((len(points.body), 3))
    for number in np.unique(points.body).tolist():
        mesh, own = scene.bodies[number].mesh, points.body == number
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces[points.face[own]]], 1, 0)
        in_body[own] = np.cross(b - a, c - a)
    in_body /= np.linalg.norm(in_body, axis=1, keepdims=True)
    normals = np.empty((len(frames), *in_body.shape))
    for row, frame in enumerate(frames):
        to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))[:, :3]
        turns = to_camera @ np.stack([body.poses[frame][:, :3] for body in scene.bodies])
        normals[row] = np.einsum("nij,nj->ni", turns[points.body], in_body)
    return normals


@dataclass(frozen=True, eq=False)
class _Surfaces:
    """The faces of all bodies in one list.

    faces:      [F, 3] numbers of vertices, of all bodies together
    body:       [F]
    neighbours: [F, 3] the faces across each edge, -1 for none
    first_face: per body
    """

    scene: Scene
    faces: Ints
    body: Ints
    neighbours: Ints
    first_face: Ints

    @classmethod
    def of(cls, scene: Scene) -> _Surfaces:
        """Put the faces of a scene together."""
        meshes = [body.mesh for body in scene.bodies]
        counts = np.array([len(mesh.faces) for mesh in meshes])
        first_vertex = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
        first_face = np.cumsum([0, *counts[:-1]])
        neighbours = [edge_neighbours(mesh) for mesh in meshes]
        return cls(
            scene=scene,
            faces=np.concatenate(
                [mesh.faces + first for mesh, first in zip(meshes, first_vertex, strict=True)]
            ),
            body=np.repeat(np.arange(len(meshes)), counts),
            neighbours=np.concatenate(
                [
                    np.where(of_mesh < 0, -1, of_mesh + first)
                    for of_mesh, first in zip(neighbours, first_face, strict=True)
                ]
            ),
            first_face=first_face,
        )

    def view(self, frame: int) -> _View:
        """Bring all faces to the camera of a frame."""
        camera = self.scene.cameras[frame]
        world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
        vertices = np.concatenate(
            [
                move(world_to_camera, move(body.poses[frame], body.mesh.vertices))
                for body in self.scene.bodies
            ]
        )
        corners = vertices[self.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return _View(camera, corners, np.einsum("fi,fi->f", normals, corners[:, 0]) < 0)


@dataclass(frozen=True, eq=False)
class _View:
    """The faces of a scene as a camera has them before it.

    corners: [F, 3, 3], in camera coordinates
    front:   [F], whether the camera sees the face's front
    """

    camera: Camera
    corners: Floats
    front: Bools

    def project(self, places: Floats) -> Floats:
        """Project points [N, 3] in camera coordinates to pixels [N, 2]."""
        depth = np.maximum(places[:, 2:], _SHORTEST_DEPTH)
        focal = np.array([self.camera.fx, self.camera.fy])
        return places[:, :2] / depth * focal + np.array([self.camera.cx, self.camera.cy])

    def _slopes(self, xy: Floats) -> Floats:
        """Return x and y of the directions of pixels' rays, whose z is 1: [N, 2]."""
        focal = np.array([self.camera.fx, self.camera.fy])
        return (xy - np.array([self.camera.cx, self.camera.cy])) / focal

    def crossings(self, xy: Floats) -> Iterator[tuple[Ints, Ints, Floats, Floats]]:
        """Yield where the rays of pixels `xy` [N, 2] meet fronts of faces, in several portions.

        point, face: [P] indices
        areas:       [P, 3] of the module's docstring
        nearness:    [P] inverse depth
        """
        slopes = self._slopes(xy)
        for point, face in self._candidates(xy):
            corners, slope = self.corners[face], slopes[point]
            x = corners[..., 0] - corners[..., 2] * slope[:, :1]
            y = corners[..., 1] - corners[..., 2] * slope[:, 1:]
            after, last = [1, 2, 0], [2, 0, 1]
            areas = x[:, last] * y[:, after] - x[:, after] * y[:, last]
            total = areas.sum(axis=1)
            met = (areas >= 0).all(axis=1) & (total > 0)
            areas, depths = areas[met], corners[met, :, 2]
            nearness = total[met] / np.einsum("pi,pi->p", areas, depths)
            yield point[met], face[met], areas, nearness

    def _candidates(self, xy: Floats) -> Iterator[tuple[Ints, Ints]]:
        """Yield pairs [P] of a point and a face whose box in the image is near it."""
        if not len(xy):
            return
        ahead = self.corners[..., 2].min(axis=1) > _SHORTEST_DEPTH
        # Faces that reach behind the camera have no box: those that are not on the far side of a
        # plane through the camera and a side of the points' box are tested against every point.
        across = np.flatnonzero(self.front & ~ahead)
        x, y, depth = np.moveaxis(self.corners[across], -1, 0)
        (left, top), (right, bottom) = self._slopes(np.stack([xy.min(axis=0), xy.max(axis=0)]))
        sides = (depth, x - left * depth, right * depth - x, y - top * depth, bottom * depth - y)
        across = across[np.all([(side > -_MARGIN).any(axis=1) for side in sides], axis=0)]
        step = max(1, _PAIRS // max(1, len(across)))
        for start in range(0, len(xy), step):
            points = np.arange(start, min(start + step, len(xy)))
            yield np.repeat(points, len(across)), np.tile(across, len(points))
        # A grid of cells over the points, and the faces whose boxes touch each cell.
        low, high = xy.min(axis=0), xy.max(axis=0)
        cell = np.maximum((high - low) / _CELLS, 1e-9)
        faces = np.flatnonzero(self.front & ahead)
        images = self.project(self.corners[faces].reshape(-1, 3)).reshape(-1, 3, 2)
        first = np.floor((images.min(axis=1) - _MARGIN - low) / cell)
        last = np.floor((images.max(axis=1) + _MARGIN - low) / cell)
        touches = ((last >= 0) & (first <= _CELLS)).all(axis=1)
        first = first[touches].clip(0, _CELLS).astype(np.int64)
        last = last[touches].clip(0, _CELLS).astype(np.int64)
        columns, rows = (last - first + 1).T
        entry, place = _spread(columns * rows)
        cells = (first[entry, 1] + place // columns[entry]) * (_CELLS + 1)
        cells += first[entry, 0] + place % columns[entry]
        order = np.argsort(cells, kind="stable")
        listed, counts = (
            faces[touches][entry[order]],
            np.bincount(cells, minlength=(_CELLS + 1) ** 2),
        )
        starts = np.cumsum(counts) - counts
        # Each point is paired with the faces of its cell.
        of_point = np.floor((xy - low) / cell).astype(np.int64)
        own_cell = of_point[:, 1] * (_CELLS + 1) + of_point[:, 0]
        portions = np.cumsum(counts[own_cell]) // _PAIRS
        for points in np.split(np.arange(len(xy)), np.flatnonzero(np.diff(portions)) + 1):
            entry, place = _spread(counts[own_cell[points]])
            yield points[entry], listed[starts[own_cell[points]][entry] + place]


def _spread(counts: Ints) -> tuple[Ints, Ints]:
    """Number the members of groups of these sizes: each one's group, and its place in the group."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
