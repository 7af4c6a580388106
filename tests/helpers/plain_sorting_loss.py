"""The 3DPoV loss as a plain transcription of its formula, with `diffsort`, to compare ours with."""

from collections.abc import Sequence

import torch
from diffsort import DiffSortNet
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, grid_sample, normalize


def plain_loss(
    *,
    student: nn.Module,
    teacher: nn.Module,
    student_head: nn.Module,
    teacher_head: nn.Module,
    frames: Tensor,
    tracks: Tensor,
    visible: Tensor,
    compared: Sequence[int],
    reference_frames: Tensor,
    reference_corners: Tensor,
    side: int,
) -> Tensor:
    """Return the loss, looping over clips, references and frames.

    frames:            [B, T, 3, S, S]
    tracks:            [B, T, N, 2] in pixels
    visible:           [B, T, N]
    reference_frames:  [B, R], as b * T + t
    reference_corners: [B, R, 2], (row, column) of a crop's first patch
    side:              of a crop, in patches
    """
    clips, frame_count = frames.shape[:2]
    size = frames.shape[-1]
    references = reference_frames.shape[1]
    hard = DiffSortNet("bitonic", side * side, steepness=20)
    soft = DiffSortNet("bitonic", side * side, steepness=3)

    def on_tracks(features: Tensor, points: Tensor) -> Tensor:
        grid = 2 * points.clamp(0, size - 1) / (size - 1) - 1
        return grid_sample(features.permute(2, 0, 1)[None], grid[None, None], align_corners=True)[
            0, :, 0
        ].T

    total = torch.zeros((), dtype=frames.dtype)
    for b in range(clips):
        anchor = normalize(teacher_head(on_tracks(teacher(frames[b, :1])[0], tracks[b, 0])), dim=-1)
        clip_loss = torch.zeros((), dtype=frames.dtype)
        for r in range(references):
            image = frames.reshape(clips * frame_count, *frames.shape[2:])[reference_frames[b, r]]
            top, left = reference_corners[b, r].tolist()
            crop = student(image[None])[0, top : top + side, left : left + side].reshape(
                side * side, -1
            )
            reference = normalize(student_head(crop), dim=-1)
            for i in compared:
                points = normalize(
                    student_head(on_tracks(student(frames[b, i : i + 1])[0], tracks[b, i])), dim=-1
                )
                a = hard(cosine_similarity(points[:, None], reference[None], dim=-1))[
                    1
                ]  # [N, item, position]
                q = soft(cosine_similarity(anchor[:, None], reference[None], dim=-1))[1]
                loss = -(a * torch.log(q + 1e-6)).sum(dim=2).mean(dim=1)
                weight = visible[b, 0] * visible[b, i]
                clip_loss = clip_loss + (loss * weight).sum() / (weight.sum() + 1e-6)
        total = total + clip_loss / (references * len(compared))
    return total / clips
