"""Losses on tracks as plain NumPy transcriptions of their formulas, to compare ours with."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mean_over_tracks(losses: Array, weights: Array) -> float:
    """Return the weighted mean of losses [B, F, N] with weights [B, F, N]."""
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
    *,
    temperature: float,
    apart: float,
    other_clips: bool,
) -> float:
    """Return the InfoNCE loss, computed track by track.

    student: [B, F, N, E]; teacher: [B, N, E]; weights: [B, F, N]; anchors: [B, N, 2]
    """
    losses, counts = np.zeros(weights.shape), weights.max(axis=1) > 0
    for b, f, n in np.ndindex(*weights.shape):
        keys = [
            teacher[c, m]
            for c, m in np.ndindex(*counts.shape)
            if counts[c, m]
            and (
                m != n and np.linalg.norm(anchors[b, n] - anchors[b, m]) >= apart
                if c == b
                else other_clips
            )
        ]
        positive, *negatives = np.exp(
            [student[b, f, n] @ key / temperature for key in [teacher[b, n], *keys]]
        )
        losses[b, f, n] = -np.log(positive / (positive + sum(negatives)))
    return mean_over_tracks(losses, weights)


def smooth_ap(
    student: Array,
    teacher: Array,
    weights: Array,
    anchors: Array,
    *,
    temperature: float,
    near: float,
    far: float,
    ideal: bool = False,
) -> float:
    """Return the SmoothAP loss, computed track by track; arguments as `info_nce`'s.

    ideal: rank each positive beside one of cosine 1, as 3DCorrEnhance's code does
    """
    losses, counts = np.zeros(weights.shape), weights.max(axis=1) > 0
    for b, f, n in np.ndindex(*weights.shape):
        scores = teacher[b] @ student[b, f, n]
        apart = np.linalg.norm(anchors[b] - anchors[b, n], axis=1)
        positive = [m for m in range(len(apart)) if m == n or (apart[m] < near and counts[b, m])]
        negative = [m for m in range(len(apart)) if apart[m] > far and counts[b, m]]
        precisions = []
        for i in positive if ideal else []:
            for cosine, other in ((scores[i], 1.0), (1.0, scores[i])):
                among = 1 + 1 / (1 + np.exp(-(other - cosine) / temperature))
                above = 1 / (1 + np.exp(-(scores - cosine) / temperature))
                precisions.append(among / (among + sum(above[j] for j in negative)))
        for i in positive if not ideal else []:
            above = 1 / (1 + np.exp(-(scores - scores[i]) / temperature))
            among = 1 + sum(above[j] for j in positive if j != i)
            precisions.append(among / (among + sum(above[j] for j in negative)))
        losses[b, f, n] = 1 - np.mean(precisions)
    return mean_over_tracks(losses, weights)


def sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """Return Sinkhorn assignments of cosines [points, prototypes].

    In SwAV's notation: the matrix is [prototypes, points] and sums to 1.
    """
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
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    soft: bool,
) -> float:
    """Return the clustering loss; arguments as `info_nce`'s, prototypes [K, E] of any length."""
    prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    losses, counts = np.zeros(weights.shape), weights.max(axis=1) > 0
    assigned = np.zeros((*counts.shape, len(prototypes)))
    assigned[counts] = sinkhorn(teacher[counts] @ prototypes.T, epsilon, iterations)
    for b, f, n in np.ndindex(*weights.shape):
        chances = np.exp(prototypes @ student[b, f, n] / temperature)
        logs = np.log(chances / chances.sum())
        losses[b, f, n] = -(assigned[b, n] @ logs if soft else logs[assigned[b, n].argmax()])
    return mean_over_tracks(losses, weights)


def track_mean(student: Array, teacher: Array, weights: Array, teacher_frames: Array) -> float:
    """Return the track-mean loss; arguments as `info_nce`'s, teacher_frames [B, F, N, E]."""
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


def forward_labels(
    features: Array, labels: Array, *, window: int, top: int, temperature: float, earlier: int
) -> Array:
    """Return TimeTuning's labels of the last frame, [h, w, K], of one clip.

    features: [T, h, w, D]; labels: [h, w, K], of the first frame
    """
    units = features / np.linalg.norm(features, axis=-1, keepdims=True)
    maps = [labels]
    for t in range(1, len(units)):
        new = np.zeros(labels.shape)
        for y, x in np.ndindex(*labels.shape[:2]):
            found = []
            for f in [0, *[f for f in range(1, t) if t - f <= earlier]]:
                for v, u in np.ndindex(*labels.shape[:2]):
                    if abs(v - y) <= window and abs(u - x) <= window:
                        affinity = np.exp(units[t, y, x] @ units[f, v, u] / temperature)
                        found.append((affinity, maps[f][v, u]))
            best = sorted(found, key=lambda pair: -pair[0])[:top]
            total = sum(affinity for affinity, _ in best)
            new[y, x] = sum(affinity * label for affinity, label in best) / total
        maps.append(new)
    return maps[-1]
