"""Prepare meshes for a renderer that computes light at vertices: normals, and no long edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.mesh import Mesh

_CREASE = np.cos(np.radians(40))
"""Cosine of the angle between faces up to which they are shaded as one curved surface."""


def corner_normals(mesh: Mesh) -> NDArray[np.float64]:
    """Compute a unit normal per corner of each face: [F, 3, 3].

    It is the mean of the normals, weighted by area, of the faces that meet at the corner's vertex
    at an angle of at most 40 degrees to the corner's own face. Sharp edges therefore stay sharp.
    """
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    weighted = np.cross(b - a, c - a)
    unit = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    # The corners in the order of their vertices: those of a vertex are neighbours.
    vertices = mesh.faces.ravel()
    order = np.argsort(vertices, kind="stable")
    faces = order // 3
    counts = np.bincount(vertices, minlength=len(mesh.vertices))
    starts = np.cumsum(counts) - counts
    first, count = starts[vertices], counts[vertices]
    sums = np.zeros((len(vertices), 3))
    own = np.repeat(np.arange(len(mesh.faces)), 3)
    for step in range(counts.max(initial=0)):  # the step-th face at every corner's vertex
        corners = np.flatnonzero(step < count)
        other = faces[first[corners] + step]
        smooth = np.einsum("ij,ij->i", unit[own[corners]], unit[other]) >= _CREASE
        np.add.at(sums, corners[smooth], weighted[other[smooth]])
    normals = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return normals.reshape(-1, 3, 3)


def split_long_edges(mesh: Mesh, longest: float) -> Mesh:
    """Split faces at the middles of their edges until no edge is longer than `longest`.

    The surface stays the same. All faces are split equally often, so that they still meet in whole
    edges.
    """
    corners, uv = mesh.vertices[mesh.faces], mesh.uv
    while np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max() > longest:
        corners, uv = _quarters(corners), _quarters(uv)
    vertices, faces = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    return Mesh(vertices, faces.reshape(-1, 3).astype(np.int32), uv)


def shrunken(mesh: Mesh) -> Mesh:
    """Move the vertices of a closed mesh inwards, by a centimetre or less where it is thin."""
    corners = mesh.vertices[mesh.faces]
    a, b, c = (corners[:, corner] for corner in range(3))
    weighted = np.cross(b - a, c - a)
    outward = np.zeros_like(mesh.vertices)
    for corner in range(3):
        np.add.at(outward, mesh.faces[:, corner], weighted)
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
    # The volume over the area is half a sheet's thickness, half a tube's radius.
    area = np.linalg.norm(weighted, axis=1).sum() / 2
    volume = np.einsum("ij,ij->", a, np.cross(b, c)) / 6
    return Mesh(mesh.vertices - min(0.01, 0.5 * volume / area) * outward, mesh.faces, mesh.uv)


def _quarters(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Split each triangle [F, 3, D] into four by the middles of its edges: [4F, 3, D]."""
    a, b, c = (corners[:, corner] for corner in range(3))
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    triangles = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(triangle, axis=1) for triangle in triangles])
