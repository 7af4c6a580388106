"""Check the arguments of a network's `track`: one clear sentence for what cannot be tracked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shards.errors import PretrackError


def check_arguments(
    video: Tensor,
    *,
    queries: Tensor | None,
    grid: int | Tensor | None,
    anchors: Sequence[int],
    iterations: int,
) -> tuple[int, int]:
    """Return (B, T) of the video. Raises PretrackError for arguments that cannot be tracked."""
    if video.ndim != 5 or video.shape[2] != 3:
        raise PretrackError(
            f"a video to track has the shape [B, T, 3, H, W], not {list(video.shape)}"
        )
    clips, frames, _, height, width = video.shape
    if min(clips, height, width) < 1 or frames < 2:
        raise PretrackError(
            "a video to track has at least one clip, at least 2 frames, and frames of at least 1x1 "
            f"pixels: not {list(video.shape)}"
        )
    if video.is_floating_point() and not torch.isfinite(video).all():
        raise PretrackError("the video to track has values that are not finite")
    if iterations < 1:
        raise PretrackError(f"tracking takes at least 1 iteration, not {iterations}")
    if (queries is None) == (grid is None):
        raise PretrackError("tracking takes either queries or a grid: give one of the two")
    if queries is not None:
        _check_queries(queries, clips, frames)
        _check_inside(queries[..., 1:], width, height, "the queries")
    elif not anchors or min(anchors) < 0 or max(anchors) >= frames:
        raise PretrackError(
            f"the anchors {list(anchors)} are not all frames of a video of {frames} "
            f"(0 to {frames - 1})"
        )
    if isinstance(grid, int) and grid < 1:
        raise PretrackError(f"a grid has at least 1 point per side, not {grid}")
    if isinstance(grid, Tensor):
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise PretrackError(
                f"the points of a grid have the shape [N, 2], not {list(grid.shape)}"
            )
        _check_inside(grid, width, height, "the points of a grid")
    return clips, frames


def _check_queries(queries: Tensor, clips: int, frames: int) -> None:
    """Raise PretrackError unless queries are [B, N, 3] and name frames of the video."""
    if (
        queries.ndim != 3
        or queries.shape[0] != clips
        or queries.shape[2] != 3
        or not queries.shape[1]
    ):
        raise PretrackError(
            f"queries have the shape [{clips}, N, 3] for this video, not {list(queries.shape)}"
        )
    times = queries[..., 0]
    if not torch.isfinite(times).all():
        raise PretrackError("the queries have frames that are not finite")
    if (times != times.round()).any() or times.min() < 0 or times.max() >= frames:
        raise PretrackError(
            f"queries name frames that a video of {frames} does not have "
            f"(0 to {frames - 1}, whole numbers)"
        )


def _check_inside(points: Tensor, width: int, height: int, subject: str) -> None:
    """Raise PretrackError, about the `subject`, unless points [..., 2] lie in the frame."""
    if not torch.isfinite(points).all():
        raise PretrackError(f"{subject} have positions that are not finite")
    x, y = points[..., 0], points[..., 1]
    if min(x.min(), y.min()) < -0.5 or x.max() > width - 0.5 or y.max() > height - 0.5:
        raise PretrackError(f"{subject} lie outside their frame of {width}x{height} pixels")
