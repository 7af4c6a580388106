"""Track points through videos with TAPIR.

    from pipeline.tapir.tracking import track
    from pipeline.tapir.weights import load_model

    model = load_model("bootstapir", device="cuda", compiled=True)
    predicted = track(model, video, grid=16, anchors=(0, 16, 32), fast=True)

Queries do not influence each other, and one pass tracks forward and backward in time. A model in
the mode `causal` sees earlier frames only, so it runs once in each direction. Positions are (x, y)
in pixels of the video given, with pixel centres at integers; inside, they are in pixels of a frame
of the network's own size, counted from its upper left corner.

Shapes are written with these letters:

    B  clips              A  anchor frames        T  frames             N  points per anchor
    Q  queries per clip: N, or A * N for a grid
    h, w  height and width of a feature map                             C  feature channels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network_trackers.arguments import check_arguments
from pipeline.network_trackers.predicted_tracks import PredictedTracks, on_device, padded_rows
from pipeline.tapir.memory import encoded_at_once, estimated_at_once, refined_at_once
from pipeline.tapir.model import DEFAULT_ITERATIONS, DEFAULT_TEMPERATURE, Tapir, TrackEstimates
from pipeline.tapir.sides import level_sides
from shards.errors import PretrackError
from shards.geometry import grid_points

DEFAULT_MEMORY = 4 << 30
"""Bytes on a GPU."""


@dataclass(frozen=True, eq=False)
class _Queries:
    """Queries of B clips.

    points:    float32 [B, Q, 3]  (t, x, y) in pixels of the video
    times:     int64 [B, Q]
    positions: float32 [B, Q, 2]  in pixels of a frame of the network's base side
    """

    points: Tensor
    times: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class _Level:
    """Feature maps [B, T, h, w, C] of one resolution, and query features [B, Q, 384] from them."""

    maps: list[Tensor]
    query_features: Tensor


@torch.no_grad()
def track(
    model: Tapir,
    video: Tensor,
    *,
    queries: Tensor | None = None,
    grid: int | Tensor | None = None,
    anchors: Sequence[int] = (0,),
    forward: bool = True,
    backward: bool = True,
    fast: bool = False,
    iterations: int = DEFAULT_ITERATIONS,
    side: int | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
    memory: int | None = None,
) -> PredictedTracks:
    """Track points through videos, from explicit queries or from a grid in every anchor frame.

    video:       [B, T, 3, H, W] RGB, 0..255 (uint8 or float)
    queries:     [B, N, 3] (t, x, y): a frame and a position in it; give either queries or a grid
    grid:        points per side of a grid (`shards.geometry.grid_points`), or points [N, 2]; they
                 are queried in every anchor frame
    anchors:     frames that the grid is queried in; all share one encoding of the frames
    forward:     track to the frames after a query's own
    backward:    track to the frames before a query's own. Leaving a direction out saves time only
                 if the model is causal; the frames of that direction then hold nothing of use
    fast:        use bfloat16 where it is safe: in the encoder, the correlations and the mixer,
                 never for positions and first estimates
    iterations:  refinements per resolution
    side:        resize frames to side x side pixels, by default 256. Larger ones are also tracked
                 in steps of at most a factor of two, and the results averaged, as published
    temperature: factor of the cost volume's scores. 20 is that of the published PyTorch code; the
                 JAX configurations of BootsTAPIR have 10
    memory:      bytes that feature maps and intermediate results may take, by default 4 GB on a
                 GPU; on a CPU as little as possible, which is faster there

    In its own frame a point is exactly at its query, with visibility and confidence 1. The
    published code calls a point visible if the product of both is above 0.5. Raises PretrackError
    for queries or anchors outside the video, and for a video the model cannot take.
    """
    if not (forward or backward):
        raise PretrackError("tracking goes forward, backward, or both: not neither")
    clips, _ = check_arguments(
        video, queries=queries, grid=grid, anchors=anchors, iterations=iterations
    )
    sides = level_sides(model.base_side, side or model.base_side)
    if memory is None:
        memory = 0 if video.device.type == "cpu" else DEFAULT_MEMORY
    asked = _queries(model, video, _query_points(video, queries, grid, anchors))
    with torch.autocast(video.device.type, torch.bfloat16, enabled=fast):
        maps = encode(model, video, sides, torch.bfloat16 if fast else torch.float32, memory)
        levels = [
            _Level(level, model.query_features(level, asked.times, asked.positions))
            for level in maps
        ]
        initial = first_estimates(model, levels[0], temperature, memory)
        estimates = _track_directions(
            model,
            levels,
            asked,
            initial,
            forward=forward,
            backward=backward,
            iterations=iterations,
            memory=memory,
        )
    predicted = _in_video_pixels(model, estimates, asked, video)
    if grid is None:
        return predicted
    return _by_anchor(predicted, clips, len(anchors))


def encode(
    model: Tapir,
    video: Tensor,
    sides: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory: int = 0,
) -> list[list[Tensor]]:
    """Encode the frames of [B, T, 3, H, W] at each side into maps [B, T, h, w, C].

    `memory` is that of `track`: it decides how many frames are encoded at once.
    """
    images, largest = video.flatten(0, 1), sides[-1]
    size = encoded_at_once(memory, side=largest, fast=dtype == torch.bfloat16)
    encoded: list[list[Tensor]] = [[] for _ in sides]
    for first in range(0, len(images), size):
        chunk = images[first : first + size]
        # Compiled kernels take one number of frames, so the last chunk is filled up.
        rows = len(chunk)
        if model.compiled:
            chunk = padded_rows(chunk, size)
        # The whole video is resized first, then each level from that, as in the published demos.
        resized = _resize(chunk.float(), largest, antialias=True) * (2 / 255) - 1
        for side, maps in zip(sides, encoded, strict=True):
            levels = model.encode(_resize(resized, side, antialias=False), dtype)
            if not maps:
                maps += [level.new_empty((len(images), *level.shape[1:])) for level in levels]
            for whole, level in zip(maps, levels, strict=True):
                whole[first : first + rows] = level[:rows]
    return [[level.unflatten(0, video.shape[:2]) for level in maps] for maps in encoded]


def _resize(images: Tensor, side: int, *, antialias: bool) -> Tensor:
    """Resize images [F, 3, H, W] bilinearly to side x side."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(
        images, (side, side), mode="bilinear", align_corners=False, antialias=antialias
    )


def _query_points(
    video: Tensor, queries: Tensor | None, grid: int | Tensor | None, anchors: Sequence[int]
) -> Tensor:
    """Return the queries, on the host: float32 [B, Q, 3] (t, x, y), those of an anchor together."""
    if queries is not None:
        return queries.to("cpu", torch.float32)
    assert grid is not None
    clips, (height, width) = len(video), video.shape[-2:]
    points = (
        grid if isinstance(grid, Tensor) else torch.from_numpy(grid_points(grid, width, height))
    ).to("cpu", torch.float32)
    times = torch.tensor(anchors, dtype=torch.float32).repeat_interleave(len(points))
    in_all_anchors = torch.cat([times[:, None], points.repeat(len(anchors), 1)], dim=1)
    return in_all_anchors.repeat(clips, 1, 1)


def _queries(model: Tapir, video: Tensor, points: Tensor) -> _Queries:
    """Put queries on the video's device, and into the network's pixels."""
    height, width = video.shape[-2:]
    positions = (points[..., 1:] + 0.5) * model.base_side / torch.tensor([width, height])
    return _Queries(
        *(on_device(value, video.device) for value in (points, points[..., 0].long(), positions))
    )


def first_estimates(model: Tapir, level: _Level, temperature: float, memory: int) -> TrackEstimates:
    """Estimate tracks from the cost volumes of the first level, some frames and queries at once."""
    low, features = level.maps[1], level.query_features
    frames, queries = low.shape[1], features.shape[1]
    pairs = estimated_at_once(memory, side=model.base_side)
    most_queries = min(queries, pairs)
    most_frames = pairs // most_queries
    clips = []
    for clip in range(len(low)):
        parts = [
            [
                model.initial_estimates(
                    low[clip : clip + 1, first : first + most_frames],
                    features[clip : clip + 1, start : start + most_queries],
                    temperature,
                )
                for first in range(0, frames, most_frames)
            ]
            for start in range(0, queries, most_queries)
        ]
        clips.append(
            TrackEstimates(
                torch.cat([torch.cat([p.positions for p in row], dim=2) for row in parts], dim=1),
                torch.cat([torch.cat([p.logits for p in row], dim=2) for row in parts], dim=1),
            )
        )
    return TrackEstimates(
        torch.cat([clip.positions for clip in clips]), torch.cat([clip.logits for clip in clips])
    )


def pinned(estimates: TrackEstimates, queries: _Queries) -> TrackEstimates:
    """Put each query into its own frame; the logits there stay as estimated."""
    frames = torch.arange(estimates.positions.shape[2], device=estimates.positions.device)
    own_frame = frames == queries.times[..., None]
    positions = torch.where(
        own_frame[..., None], queries.positions[:, :, None], estimates.positions
    )
    return TrackEstimates(positions, estimates.logits)


def _track_directions(
    model: Tapir,
    levels: Sequence[_Level],
    queries: _Queries,
    initial: TrackEstimates,
    *,
    forward: bool,
    backward: bool,
    iterations: int,
    memory: int,
) -> TrackEstimates:
    """Refine the first estimates of all queries over all frames."""
    if not model.causal:
        return refine(model, levels, pinned(initial, queries), iterations, memory)
    # As in the published online tracker, the first estimates are not pinned.
    after = refine(model, levels, initial, iterations, memory) if forward else None
    if not backward:
        assert after is not None
        return after
    # Backward tracking is forward tracking of the frames in reverse order.
    reverse = [_Level([m.flip(1) for m in level.maps], level.query_features) for level in levels]
    before = _reversed(refine(model, reverse, _reversed(initial), iterations, memory))
    if after is None:
        return before
    frames = torch.arange(initial.positions.shape[2], device=initial.positions.device)
    earlier = (frames < queries.times[..., None])[..., None]
    return TrackEstimates(
        torch.where(earlier, before.positions, after.positions),
        torch.where(earlier, before.logits, after.logits),
    )


def _reversed(estimates: TrackEstimates) -> TrackEstimates:
    """Return the estimates with their frames in reverse order."""
    return TrackEstimates(estimates.positions.flip(2), estimates.logits.flip(2))


def refine(
    model: Tapir,
    levels: Sequence[_Level],
    initial: TrackEstimates,
    iterations: int,
    memory: int,
) -> TrackEstimates:
    """Refine first estimates at every level, as many queries at once as `memory` allows."""
    clips, queries, frames = initial.positions.shape[:3]
    high = levels[-1].maps[0]
    most = refined_at_once(
        memory, frames=frames, side=4 * high.shape[2], fast=high.dtype == torch.bfloat16
    )
    positions, logits = torch.empty_like(initial.positions), torch.empty_like(initial.logits)
    for part in _parts(clips, queries, most):
        refined = _refine_part(model, levels, initial, part, iterations)
        positions[part], logits[part] = refined.positions, refined.logits
    return TrackEstimates(positions, logits)


def _parts(clips: int, queries: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield even parts of at most `most` queries: whole clips, or some queries of one clip."""
    clips_per_part = _even(clips, max(1, most // queries))
    queries_per_part = queries if queries <= most else _even(queries, most)
    for clip in range(0, clips, clips_per_part):
        for query in range(0, queries, queries_per_part):
            yield slice(clip, clip + clips_per_part), slice(query, query + queries_per_part)


def _even(count: int, most: int) -> int:
    """Return the size of even parts of at most `most`."""
    return math.ceil(count / math.ceil(count / most))


def _refine_part(
    model: Tapir,
    levels: Sequence[_Level],
    initial: TrackEstimates,
    part: tuple[slice, slice],
    iterations: int,
) -> TrackEstimates:
    """Refine some queries of some clips at every level; return the mean over the levels."""
    positions, logits = initial.positions[part], initial.logits[part]
    results = []
    for level in levels:
        refined = model.refine(
            [maps[part[0]] for maps in level.maps],
            level.query_features[part],
            # Positions go on from the last level; logits start again, as published.
            TrackEstimates(positions, logits),
            iterations,
        )
        positions = refined.positions
        results.append(refined)
    if len(results) == 1:
        return results[0]
    return TrackEstimates(
        torch.stack([result.positions for result in results]).mean(dim=0),
        torch.stack([result.logits for result in results]).mean(dim=0),
    )


def _in_video_pixels(
    model: Tapir, estimates: TrackEstimates, queries: _Queries, video: Tensor
) -> PredictedTracks:
    """Convert estimates to pixels and probabilities, and put each query into its own frame."""
    height, width = video.shape[-2:]
    frames = torch.arange(video.shape[1], device=video.device)
    own_frame = frames[:, None] == queries.times[:, None]  # [B, T, Q]
    size = on_device(torch.tensor([width, height], dtype=torch.float32), video.device)
    positions = (estimates.positions * size / model.base_side - 0.5).transpose(1, 2)
    # A query is given, not predicted: its own frame gets its exact position and full certainty.
    positions = torch.where(own_frame[..., None], queries.points[:, None, :, 1:], positions)
    visibility, confidence = (
        torch.sigmoid(-estimates.logits).transpose(1, 2).masked_fill(own_frame[..., None], 1.0)
    ).unbind(-1)
    return PredictedTracks(positions, visibility, confidence)


def _by_anchor(predicted: PredictedTracks, clips: int, anchors: int) -> PredictedTracks:
    """Divide the queries [B, T, A * N] of grids: [B, A, T, N]."""
    return PredictedTracks(
        *(
            value.unflatten(2, (anchors, -1)).transpose(1, 2).contiguous()
            for value in (predicted.positions, predicted.visibility, predicted.confidence)
        )
    )
