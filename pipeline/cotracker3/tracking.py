"""Track points through videos with CoTracker3.

    from pipeline.cotracker3.tracking import track
    from pipeline.cotracker3.weights import load_model

    model = load_model("scaled_offline.pth", device="cuda", compiled=True)
    predicted = track(model, video, grid=16, anchors=(0, 16, 32), fast=True)

A model with the offline weights sees all frames at once. One with the online weights slides a
window of 16 frames over them, 8 frames at a time, so it takes videos of any length. Positions are
(x, y) in pixels of the video given, with pixel centres at integers.

Shapes are written with these letters:

    B  clips              A  anchor frames        T  frames             N  points per query set
    R  query sets: N queries of one clip, followed in one direction (R = B, or B * A for a grid)
    h, w  height and width of a feature map                             C  feature channels (128)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.cotracker3.encoder import FEATURE_STRIDE
from pipeline.cotracker3.memory import encoded_at_once, sets_at_once
from pipeline.cotracker3.model import (
    DEFAULT_ITERATIONS,
    MODEL_HEIGHT,
    MODEL_WIDTH,
    CoTracker3,
    TrackEstimates,
    initial_estimates,
)
from pipeline.cotracker3.weights import WINDOW_FRAMES
from pipeline.network_trackers.arguments import check_arguments
from pipeline.network_trackers.predicted_tracks import PredictedTracks, on_device, padded_rows
from shards.errors import PretrackError
from shards.geometry import grid_points

WINDOW_STEP = 8
"""Frames by which the sliding window advances: half the window."""
SUPPORT_GRID = 6
"""Points per side of the support grid that joins explicit queries in the first frame, as published:
a few points alone are tracked worse."""


@dataclass(frozen=True, eq=False)
class _Queries:
    """Queries in pixels of the video, on the host.

    points:  float32 [R, N, 3]  (t, x, y)
    clips:   int64 [R]          index of the clip that each query set belongs to
    support: how many of the N points, the last ones, are the support grid
    """

    points: Tensor
    clips: Tensor
    support: int


@dataclass(frozen=True, eq=False)
class _QueryBatch:
    """R query sets to follow forward through T frames. A reversed `frames` follows them backward.

    frames:    int64 [R, T]         index of each frame in the feature maps
    times:     int64 [R, N]         frame of each query, as an index into the row of `frames`
    positions: float32 [R, N, 2]    in pixels of the feature maps
    """

    frames: Tensor
    times: Tensor
    positions: Tensor


@torch.no_grad()
def track(
    model: CoTracker3,
    video: Tensor,
    *,
    queries: Tensor | None = None,
    grid: int | Tensor | None = None,
    anchors: Sequence[int] = (0,),
    forward: bool = True,
    backward: bool = True,
    fast: bool = False,
    iterations: int = DEFAULT_ITERATIONS,
    memory: int | None = None,
) -> PredictedTracks:
    """Track points through videos, from explicit queries or from a grid in every anchor frame.

    video:      [B, T, 3, H, W] RGB, 0..255 (uint8 or float)
    queries:    [B, N, 3] (t, x, y): a frame and a position in it; give either queries or a grid
    grid:       points per side of CoTracker3's own grid (`shards.geometry.grid_points`), or points
                [N, 2]; they are queried in every anchor frame
    anchors:    frames that the grid is queried in; all share one encoding of the frames
    forward:    track to the frames after a query's own; without it those frames hold nothing of use
    backward:   also track to the frames before a query's own; without it those frames hold what
                the model predicts for them, as published
    fast:       use bfloat16 where it is safe: in the convolutions and the transformer, never for
                positions
    iterations: refinements per window
    memory:     bytes that feature maps and intermediate results may take; a larger value encodes
                more frames and refines more query sets at once, at least one. By default 4 GB on a
                GPU; on a CPU one frame, anchor and direction at a time, which is faster there

    In its own frame a point is exactly at its query, with visibility and confidence 1. Raises
    PretrackError for queries or anchors outside the video, and for a video the model cannot take.

    On a GPU the work is only queued, if `video` is uint8 and a grid of points is on the host:
    nothing waits for it.
    """
    if not (forward or backward):
        raise PretrackError("tracking goes forward, backward, or both: not neither")
    clips, frames = check_arguments(
        video, queries=queries, grid=grid, anchors=anchors, iterations=iterations
    )
    if memory is None:
        memory = 0 if video.device.type == "cpu" else 4 << 30
    if grid is not None:
        query_sets = _grid_queries(video, grid, anchors)
    else:
        assert queries is not None
        query_sets = _explicit_queries(video, queries, model.window == WINDOW_FRAMES["offline"])
    scale = _map_scale(video)
    with torch.autocast(video.device.type, torch.bfloat16, enabled=fast):
        maps = encode(model, video, torch.bfloat16 if fast else torch.float32, memory)
        estimates = _track_directions(
            model,
            maps,
            query_sets,
            scale,
            frames=frames,
            forward=forward,
            backward=backward,
            fast=fast,
            iterations=iterations,
            memory=memory,
        )
    predicted = _in_video_pixels(estimates, query_sets, scale)
    if grid is None:
        return predicted
    return PredictedTracks(
        *(
            value.unflatten(0, (clips, -1))
            for value in (predicted.positions, predicted.visibility, predicted.confidence)
        )
    )


def encode(
    model: CoTracker3, video: Tensor, dtype: torch.dtype = torch.float32, memory: int = 0
) -> list[Tensor]:
    """Encode the frames of [B, T, 3, H, W] into feature maps [B * T, h, w, C], one per level.

    Frames lie clip after clip. `memory` is that of `track`: it decides how many frames are encoded
    at once.
    """
    images = video.flatten(0, 1)
    size = encoded_at_once(memory, fast=dtype == torch.bfloat16)
    maps: list[Tensor] = []
    for first in range(0, len(images), size):
        chunk = images[first : first + size]
        # Compiled kernels take one number of frames, so the last chunk is filled up.
        rows = len(chunk)
        if model.compiled:
            chunk = padded_rows(chunk, size)
        resized = F.interpolate(
            chunk.float(), (MODEL_HEIGHT, MODEL_WIDTH), mode="bilinear", align_corners=True
        )
        levels = model.encode(2 * resized / 255 - 1, dtype)
        if not maps:
            maps = [level.new_empty((len(images), *level.shape[1:])) for level in levels]
        for whole, level in zip(maps, levels, strict=True):
            whole[first : first + rows] = level[:rows]
    return maps


def _map_scale(video: Tensor) -> Tensor:
    """Return the factors [2], on the host, from video pixels (x, y) to feature-map pixels."""
    height, width = video.shape[-2:]
    # Frames are resized with align_corners=True, which maps corner pixel centres onto each other.
    corners = [(MODEL_WIDTH - 1) / max(1, width - 1), (MODEL_HEIGHT - 1) / max(1, height - 1)]
    return torch.tensor(corners, dtype=torch.float32) / FEATURE_STRIDE


def _grid_queries(video: Tensor, grid: int | Tensor, anchors: Sequence[int]) -> _Queries:
    """Query the same grid in every anchor frame of every clip: B * A query sets."""
    clips, (height, width) = len(video), video.shape[-2:]
    points = (
        grid if isinstance(grid, Tensor) else torch.from_numpy(grid_points(grid, width, height))
    )
    points = points.to("cpu", torch.float32)
    in_first_frame = torch.cat([points.new_zeros(len(points), 1), points], dim=1)  # [N, 3]
    offsets = points.new_tensor([list(anchors)]).T[:, :, None] * points.new_tensor([1.0, 0.0, 0.0])
    return _Queries(
        points=(in_first_frame + offsets).repeat(clips, 1, 1),
        clips=torch.arange(clips).repeat_interleave(len(anchors)),
        support=0,
    )


def _explicit_queries(video: Tensor, queries: Tensor, with_support: bool) -> _Queries:
    """Take one query set per clip, joined by the support grid in the first frame if wanted."""
    points, support_points = queries.to("cpu", torch.float32), 0
    if with_support:
        height, width = video.shape[-2:]
        support = torch.from_numpy(grid_points(SUPPORT_GRID, width, height))
        support_points = len(support)
        points = torch.cat([points, F.pad(support, (1, 0)).expand(len(video), -1, -1)], dim=1)
    return _Queries(points, torch.arange(len(video)), support_points)


def _track_directions(
    model: CoTracker3,
    maps: list[Tensor],
    queries: _Queries,
    scale: Tensor,
    *,
    frames: int,
    forward: bool,
    backward: bool,
    fast: bool,
    iterations: int,
    memory: int,
) -> TrackEstimates:
    """Track queries over all frames, forward and backward from each query's frame, as wanted."""
    order = torch.arange(frames)
    times = queries.points[..., 0].long()
    positions = queries.points[..., 1:] * scale
    ahead = _QueryBatch(queries.clips[:, None] * frames + order, times, positions)
    # Backward tracking is forward tracking of the frames in reverse order.
    reverse = _QueryBatch(ahead.frames.flip(1), frames - 1 - times, positions)
    # A query set is not run in a direction in which no frame follows any of its queries. Forward
    # alone it always is, because every frame then holds what the model predicts, as published.
    runs_forward = (times < frames - 1).any(1) if backward else torch.ones(len(times)).bool()
    runs_backward = times.any(1) & backward
    runs_forward &= forward
    device = maps[0].device
    both = _QueryBatch(
        *(
            on_device(torch.cat([one[runs_forward], other[runs_backward]]), device)
            for one, other in (
                (ahead.frames, reverse.frames),
                (ahead.times, reverse.times),
                (ahead.positions, reverse.positions),
            )
        )
    )
    still = initial_estimates(on_device(positions, device), frames)
    if not len(both.frames):
        return still
    tracked = _track_in_parts(model, maps, both, fast=fast, iterations=iterations, memory=memory)
    count = int(runs_forward.sum())
    after = _placed(_rows(tracked, slice(0, count)), runs_forward, still)
    if not runs_backward.any():
        return after
    before = _placed(_reversed(_rows(tracked, slice(count, None))), runs_backward, still)
    if not forward:
        return before
    # Each track takes the backward pass before its query's frame, and the forward pass from it on.
    earlier = on_device(order[None, :, None] < times[:, None], device)
    return TrackEstimates(
        torch.where(earlier[..., None], before.positions, after.positions),
        torch.where(earlier, before.visibility, after.visibility),
        torch.where(earlier, before.confidence, after.confidence),
    )


def _rows(estimates: TrackEstimates, rows: slice) -> TrackEstimates:
    """Return the estimates of some query sets."""
    return TrackEstimates(
        estimates.positions[rows], estimates.visibility[rows], estimates.confidence[rows]
    )


def _reversed(estimates: TrackEstimates) -> TrackEstimates:
    """Return the estimates with their frames in reverse order."""
    return TrackEstimates(
        estimates.positions.flip(1), estimates.visibility.flip(1), estimates.confidence.flip(1)
    )


def _placed(tracked: TrackEstimates, runs: Tensor, still: TrackEstimates) -> TrackEstimates:
    """Put the query sets that were tracked, those that `runs` names, among those that stand still.

    tracked: estimates of the sets for which `runs` (bool [R], on the host) is true
    still:   estimates of all R sets
    """
    if runs.all():
        return tracked
    index = on_device(runs.nonzero()[:, 0], still.positions.device)
    return TrackEstimates(
        still.positions.index_copy(0, index, tracked.positions),
        still.visibility.index_copy(0, index, tracked.visibility),
        still.confidence.index_copy(0, index, tracked.confidence),
    )


def _in_video_pixels(
    estimates: TrackEstimates, queries: _Queries, scale: Tensor
) -> PredictedTracks:
    """Convert estimates to pixels and probabilities, and put each query into its own frame."""
    count = queries.points.shape[1] - queries.support
    device = estimates.positions.device
    positions, visibility, confidence = (
        value[:, :, :count]
        for value in (
            estimates.positions / on_device(scale, device),
            estimates.visibility.sigmoid(),
            estimates.confidence.sigmoid(),
        )
    )
    points = on_device(queries.points, device)[:, None, :count]  # [R, 1, N, 3]
    frames = torch.arange(positions.shape[1], device=device)
    # A query is given, not predicted: its own frame gets its exact position and full certainty.
    own_frame = frames[None, :, None] == points[..., 0]  # [R, T, N]
    return PredictedTracks(
        torch.where(own_frame[..., None], points[..., 1:], positions),
        visibility.masked_fill(own_frame, 1.0),
        confidence.masked_fill(own_frame, 1.0),
    )


def _track_in_parts(
    model: CoTracker3,
    maps: list[Tensor],
    batch: _QueryBatch,
    *,
    fast: bool,
    iterations: int,
    memory: int,
) -> TrackEstimates:
    """Track as many query sets at once as `memory` allows, at least one, in even parts."""
    track_part, window = (
        (_track_whole, batch.frames.shape[1])
        if model.window == WINDOW_FRAMES["offline"]
        else (_track_sliding, model.window)
    )
    sets, points = batch.times.shape
    size = sets_at_once(memory, frames=window, points=points, fast=fast)
    parts = []
    for part in zip(
        *(
            value.tensor_split(math.ceil(sets / size))
            for value in (batch.frames, batch.times, batch.positions)
        ),
        strict=True,
    ):
        rows = len(part[0])
        # Compiled kernels take any number of query sets from two on.
        least = 2 if model.compiled and size > 1 else 1
        padded = _QueryBatch(*(padded_rows(value, max(rows, least)) for value in part))
        parts.append(_rows(track_part(model, maps, padded, iterations), slice(0, rows)))
    return TrackEstimates(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("positions", "visibility", "confidence")
        )
    )


def _track_whole(
    model: CoTracker3, maps: list[Tensor], batch: _QueryBatch, iterations: int
) -> TrackEstimates:
    """Track through all frames as one window."""
    support = model.support_features(maps, batch.frames.gather(1, batch.times), batch.positions)
    initial = initial_estimates(batch.positions, batch.frames.shape[1])
    return model.refine(maps, batch.frames, support, initial, iterations=iterations)


def _track_sliding(
    model: CoTracker3, maps: list[Tensor], batch: _QueryBatch, iterations: int
) -> TrackEstimates:
    """Track through windows that overlap by half; each starts from the result of the last one."""
    frames, window = batch.frames.shape[1], model.window
    initial = initial_estimates(batch.positions, frames)
    result = TrackEstimates(
        initial.positions.clone(), initial.visibility.clone(), initial.confidence.clone()
    )
    at_queries = model.support_features(maps, batch.frames.gather(1, batch.times), batch.positions)
    # As published, a query has no support features before a window has reached its frame.
    support = [torch.zeros_like(level) for level in at_queries]
    for first in _window_starts(frames, window):
        # The last window is filled up by repeating the video's last frame.
        index = torch.arange(first, first + window, device=batch.frames.device)
        index = index.clamp(max=frames - 1)
        reached = batch.times < first + window
        tracked = batch.times < (first + WINDOW_STEP if first else 0)
        support = [
            torch.where((reached & ~tracked)[..., None, None], new, old)
            for new, old in zip(at_queries, support, strict=True)
        ]
        estimates = _continue_estimates(
            result, batch.positions, tracked, first=first, window=window
        )
        estimates = model.refine(
            maps, batch.frames[:, index], support, estimates, iterations=iterations
        )
        end = min(first + window, frames)
        for name in ("positions", "visibility", "confidence"):
            getattr(result, name)[:, first:end] = getattr(estimates, name)[:, : end - first]
    return result


def _continue_estimates(
    result: TrackEstimates, queries: Tensor, tracked: Tensor, *, first: int, window: int
) -> TrackEstimates:
    """Start a window from the last one's result, and points it did not track from their queries.

    result:  estimates of the windows before, for all frames of the video
    queries: [R, N, 2] positions in map pixels
    tracked: [R, N] whether the last window tracked this point
    first:   first frame of this window
    window:  frames per window
    """
    frames = result.positions.shape[1]
    # The half that the last window has not seen starts from the last frame that it has seen.
    last_seen = min(first + window - WINDOW_STEP, frames) - 1
    index = torch.arange(first, first + window, device=queries.device).clamp(max=last_seen)
    initial = initial_estimates(queries, window)
    return TrackEstimates(
        torch.where(tracked[:, None, :, None], result.positions[:, index], initial.positions),
        torch.where(tracked[:, None], result.visibility[:, index], initial.visibility),
        torch.where(tracked[:, None], result.confidence[:, index], initial.confidence),
    )


def _window_starts(frames: int, window: int) -> Iterator[int]:
    """Yield the first frame of each window that covers a video."""
    yield 0
    first = WINDOW_STEP
    while first + window - WINDOW_STEP < frames:
        yield first
        first += WINDOW_STEP
