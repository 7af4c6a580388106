"""Student and teacher: backbone and head, and the exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.distributed import all_gather
from trainer.model.backbone import Backbone, Tokens
from trainer.model.feature_sampling import crop_references, sample_points
from trainer.model.step_indices import StepIndices


class Projection(nn.Sequential):
    """Projection head: linear layers with GELU between them, no norms.

    3DPoV: D-1024-1024-512-256.
    """

    def __init__(self, width: int, layers: Sequence[int]) -> None:
        widths = [width, *layers]
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            modules += [nn.GELU(), nn.Linear(inputs, outputs)]
        super().__init__(*modules[1:])


class Embedder(nn.Module):
    """A backbone and its projection head: unit embeddings of track points and reference patches."""

    def __init__(self, backbone: Backbone, head: Projection, align_corners: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.align_corners = align_corners

    def forward(
        self, frames: Tokens, points: Tensor, size: int, indices: StepIndices
    ) -> tuple[Tensor, Tensor]:
        """Run the student: embed track points and reference patches from the same features.

        frames:  tokens of B * T frames
        points:  [B, T, N, 2] in pixels of a square of `size` pixels
        indices: on the same device: F compared frames, and R crops per clip of side x side patches

        Returns embeddings of the points in the compared frames [B, F, N, E], and of the crops'
        patches [B, R, side * side, E], float32. Every frame goes through the tail at most once.
        """
        return self.embed_maps(self.maps(frames, indices), points, size, indices)

    def maps(self, frames: Tokens, indices: StepIndices) -> Tensor:
        """Return the features [M, h, w, D] of the frames `indices.tail_frames`."""
        if indices.references.across_ranks:
            return self.backbone.tail(frames)  # those are all frames
        return self.backbone.tail(frames[indices.tail_frames])

    def embed_maps(
        self, features: Tensor, points: Tensor, size: int, indices: StepIndices
    ) -> tuple[Tensor, Tensor]:
        """Embed track points and reference patches of `maps`; shapes as in `forward`."""
        references = indices.references
        pool = all_gather(features) if references.across_ranks else features
        crops = crop_references(pool, references, indices.side)
        tracks = sample_points(
            features[indices.tracked],
            points.index_select(1, indices.compared).flatten(0, 1),
            size,
            self.align_corners,
        )
        b, n = len(points), points.shape[2]
        return self.embed(tracks.view(b, len(indices.compared), n, -1)), self.embed(crops)

    def tracks(self, frames: Tokens, points: Tensor, size: int) -> Tensor:
        """Run the teacher: embed points of frames.

        frames: tokens of B frames; points: [B, N, 2] in pixels of a square of `size` pixels
        → float32 [B, N, E]
        """
        return self.points(self.backbone.tail(frames), points, size)

    def points(self, features: Tensor, points: Tensor, size: int) -> Tensor:
        """Embed points [B, N, 2] of patch maps [B, h, w, D]: float32 [B, N, E]."""
        return self.embed(sample_points(features, points, size, self.align_corners))

    def embed(self, features: Tensor) -> Tensor:
        """Project features [..., D] to unit vectors [..., E] in float32."""
        embeddings: Tensor = self.head(features)
        return normalize(embeddings.float(), dim=-1)


def make_teacher(student: Embedder) -> Embedder:
    """Copy the student, without gradients and in evaluation mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


class TeacherAverage:
    """The teacher as an exponential moving average of the student.

    With `trained_only` only weights that the student trains are averaged; frozen ones are equal in
    both anyway. Without it all are.
    """

    def __init__(self, teacher: Embedder, student: Embedder, trained_only: bool) -> None:
        self.trained_only = trained_only
        # Collected once: going through all modules takes about as long as queueing the update.
        pairs = [
            (t, s)
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True)
            if s.requires_grad or not trained_only
        ]
        self.averaged: list[Tensor] = [t for t, _ in pairs]
        self.current: list[Tensor] = [s for _, s in pairs]

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Update the teacher after a step: t ← momentum * t + (1 - momentum) * s.

        For all weights in the published form t * momentum + s * (1 - momentum), which moves frozen
        weights by rounding errors.
        """
        # One fused call for all weights instead of a kernel launch for each.
        if self.trained_only:
            torch._foreach_lerp_(self.averaged, self.current, 1 - momentum)
        else:
            torch._foreach_mul_(self.averaged, momentum)
            torch._foreach_add_(self.averaged, self.current, alpha=1 - momentum)
