"""The losses on tracks written straight from their formulas, a track at a time, in NumPy: what `trainer.losses` must equal."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mean_over_tracks(losses: Array, weights: Array) -> float:
    """losses, weights [B, F, N]."""
    frames = [
        (a * w).sum() / (w.sum() + 1e-6)
        for clip, shown in zip(losses, weights, strict=True)
        for a, w in zip(clip, shown, strict=True)
    ]
    return float(np.mean(frames))


def info_nce(
    student: Array,
    teacher: Array,
    weights: Array,
    anchors: Array,
    temperature: float,
    apart: float,
    other_clips: bool,
) -> float:
    """student [B, F, N, E], teacher [B, N, E], weights [B, F, N], anchors [B, N, 2]."""
    losses, counted = np.zeros(weights.shape), weights.max(axis=1) > 0
    for b, f, n in np.ndindex(*weights.shape):
        keys = [
            teacher[c, m]
            for c, m in np.ndindex(*counted.shape)
            if counted[c, m]
            and (
                m != n and np.linalg.norm(anchors[b, n] - anchors[b, m]) >= apart
                if c == b
                else other_clips
            )
        ]
        own, *others = np.exp(
            [student[b, f, n] @ key / temperature for key in [teacher[b, n], *keys]]
        )
        losses[b, f, n] = -np.log(own / (own + sum(others)))
    return mean_over_tracks(losses, weights)


def smooth_ap(
    student: Array,
    teacher: Array,
    weights: Array,
    anchors: Array,
    temperature: float,
    near: float,
    far: float,
) -> float:
    """Arguments as `info_nce`'s."""
    losses, counted = np.zeros(weights.shape), weights.max(axis=1) > 0
    for b, f, n in np.ndindex(*weights.shape):
        scores = teacher[b] @ student[b, f, n]
        apart = np.linalg.norm(anchors[b] - anchors[b, n], axis=1)
        positive = [m for m in range(len(apart)) if m == n or (apart[m] < near and counted[b, m])]
        negative = [m for m in range(len(apart)) if apart[m] > far and counted[b, m]]
        precisions = []
        for i in positive:
            above = 1 / (1 + np.exp(-(scores - scores[i]) / temperature))
            among = 1 + sum(above[j] for j in positive if j != i)
            precisions.append(among / (among + sum(above[j] for j in negative)))
        losses[b, f, n] = 1 - np.mean(precisions)
    return mean_over_tracks(losses, weights)


def sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """Of cosines [points, prototypes], in SwAV's words: the matrix is [prototypes, points] and sums to 1."""
    q = np.exp(scores.T / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * len(q)
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return np.asarray(q * q.shape[1]).T


def clusters(
    student: Array,
    teacher: Array,
    weights: Array,
    prototypes: Array,
    temperature: float,
    epsilon: float,
    iterations: int,
    soft: bool,
) -> float:
    """Arguments as `info_nce`'s; prototypes [K, E] of any length."""
    prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    losses, counted = np.zeros(weights.shape), weights.max(axis=1) > 0
    assigned = np.zeros((*counted.shape, len(prototypes)))
    assigned[counted] = sinkhorn(teacher[counted] @ prototypes.T, epsilon, iterations)
    for b, f, n in np.ndindex(*weights.shape):
        chances = np.exp(prototypes @ student[b, f, n] / temperature)
        logs = np.log(chances / chances.sum())
        losses[b, f, n] = -(assigned[b, n] @ logs if soft else logs[assigned[b, n].argmax()])
    return mean_over_tracks(losses, weights)


def track_mean(student: Array, teacher: Array, weights: Array, teacher_frames: Array) -> float:
    """Arguments as `info_nce`'s; teacher_frames [B, F, N, E]."""
    losses = np.zeros(weights.shape)
    for b, f, n in np.ndindex(*weights.shape):
        mean = np.mean(
            [
                teacher[b, n],
                *(teacher_frames[b, g, n] for g in range(weights.shape[1]) if weights[b, g, n]),
            ],
            axis=0,
        )
        losses[b, f, n] = 1 - student[b, f, n] @ mean / np.linalg.norm(mean)
    return mean_over_tracks(losses, weights)
