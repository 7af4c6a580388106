"""Tracking points through videos with CoTracker3: the functions to call.

    from pipeline.cotracker3.tracking import track
    from pipeline.cotracker3.weights import load_model

    model = load_model("scaled_offline.pth", device="cuda", compiled=True)
    tracked = track(model, video, grid=16, anchors=(0, 8, 16), fast=True)

A model with the offline weights sees all frames at once; one with the online weights slides a window of 16 frames over them, 8 at a
time, and so takes videos of any length. Positions are (x, y) in pixels of the video given, pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.cotracker3.encoder import CHANNELS, STRIDE
from pipeline.cotracker3.model import (
    HEIGHT,
    ITERATIONS,
    LEVELS,
    SIDE,
    WIDTH,
    CoTracker3,
    State,
    start,
)
from pipeline.cotracker3.weights import WINDOWS
from shards.errors import PretrackError
from shards.geometry import grid_points

ONLINE_STEP = 8
SUPPORT_GRID = 6
"""Explicit queries are joined by a grid of so many points a side in the first frame, as published: few points alone track worse."""
_ENCODED_AT_ONCE = 16
"""Frames: enough to keep a GPU busy. On a CPU, whose memory is 0 by default, it is one, which fits its caches."""
_ENCODER_BYTES = 64 << 20
"""What the encoder's intermediate results of one frame take together, in float32."""


@dataclass(frozen=True, eq=False)
class Tracked:
    """Tracks of B clips. With queries X is empty, with a grid it is A, the anchors.

    positions:  float32 [B, X, T, N, 2]  (x, y) in pixels of the video; may lie outside it
    visibility: float32 [B, X, T, N]     probability of being visible
    confidence: float32 [B, X, T, N]     probability that the position is right
    """

    positions: Tensor
    visibility: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class _Runs:
    """R sets of N queries to follow forward through T frames. frames: [R, T] index into the maps; times: [R, N] query frames,
    counted in the run; positions: [R, N, 2] in map pixels."""

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
    backward: bool = True,
    fast: bool = False,
    iterations: int = ITERATIONS,
    memory: int | None = None,
) -> Tracked:
    """Follows points through videos.

    video:    [B, T, 3, H, W] RGB, 0..255 (uint8 or float)
    queries:  [B, N, 3] (t, x, y): a frame and a position in it. Or instead
    grid:     that many points a side, in every anchor frame (CoTracker3's own grid: `shards.geometry.grid_points`); or points
              [N, 2] to be used as one
    anchors:  the frames that the grid is put in; all share one encoding of the frames
    backward: follow points to the frames before their own too; without it those hold what the model guesses, as published
    fast:     bfloat16 where it is safe: in the convolutions and the transformer, never for positions
    memory:   bytes that the largest intermediate result may take: more tracks more anchors and clips at once. By default 4 GB on
              a GPU; on a CPU one frame, anchor and direction at a time, which is faster there

    In its own frame a point is where its query says, visible and certain. Raises PretrackError for queries or anchors that are not
    in the video, and for a video the model cannot take.
    """
    clips, frames = _check(video, queries, grid, anchors, iterations)
    if memory is None:
        memory = 0 if video.device.type == "cpu" else 4 << 30
    height, width = video.shape[-2:]
    scale = (
        video.new_tensor(
            [(WIDTH - 1) / max(1, width - 1), (HEIGHT - 1) / max(1, height - 1)],
            dtype=torch.float32,
        )
        / STRIDE
    )
    if grid is not None:
        points = (
            grid if isinstance(grid, Tensor) else torch.from_numpy(grid_points(grid, width, height))
        )
        points = points.to(video.device, torch.float32)
        placed = torch.cat([points.new_zeros(len(points), 1), points], dim=1)
        at = placed.new_tensor([list(anchors)]).T[:, :, None] * placed.new_tensor([1.0, 0.0, 0.0])
        asked = (placed + at).repeat(clips, 1, 1)  # [B * A, N, 3]
        owners = torch.arange(clips, device=video.device).repeat_interleave(len(anchors))
        extra = 0
    else:
        assert queries is not None
        asked, owners, extra = (
            queries.to(video.device, torch.float32),
            torch.arange(clips, device=video.device),
            0,
        )
        if model.window == WINDOWS["offline"]:
            support = torch.from_numpy(grid_points(SUPPORT_GRID, width, height)).to(video.device)
            extra = len(support)
            asked = torch.cat([asked, F.pad(support, (1, 0)).expand(clips, -1, -1)], dim=1)
    with torch.autocast(video.device.type, torch.bfloat16, enabled=fast):
        maps = encode(model, video, torch.bfloat16 if fast else torch.float32, memory)
        state = _follow(model, maps, asked, owners, frames, scale, backward, iterations, memory)
    positions, visibility, confidence = (
        value[:, :, : value.shape[2] - extra]
        for value in (
            state.positions / scale,
            state.visibility.sigmoid(),
            state.confidence.sigmoid(),
        )
    )
    asked = asked[:, : asked.shape[1] - extra]
    own = torch.arange(frames, device=video.device)[None, :, None] == asked[:, None, :, 0]
    positions = torch.where(own[..., None], asked[:, None, :, 1:], positions)
    visibility, confidence = visibility.masked_fill(own, 1.0), confidence.masked_fill(own, 1.0)
    if grid is not None:
        return Tracked(
            *(value.unflatten(0, (clips, -1)) for value in (positions, visibility, confidence))
        )
    return Tracked(positions, visibility, confidence)


def encode(
    model: CoTracker3, video: Tensor, dtype: torch.dtype = torch.float32, memory: int = 0
) -> list[Tensor]:
    """The maps of all frames of [B, T, 3, H, W], clip after clip: [B * T, h, w, 128] at each of four levels.

    `memory` is that of `track`: it decides how many frames are encoded at once.
    """
    images = video.flatten(0, 1)
    parts = []
    for chunk in images.split(min(_ENCODED_AT_ONCE, max(1, memory // _ENCODER_BYTES))):
        resized = F.interpolate(chunk.float(), (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
        parts.append(model.encode(2 * resized / 255 - 1, dtype))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _follow(
    model: CoTracker3,
    maps: list[Tensor],
    asked: Tensor,
    owners: Tensor,
    frames: int,
    scale: Tensor,
    backward: bool,
    iterations: int,
    memory: int,
) -> State:
    """Tracks of queries [R, N, 3] of the clips `owners` [R], forward and, if wanted, backward, over all frames."""
    order = torch.arange(frames, device=asked.device)
    times = asked[..., 0].long()
    placed = asked[..., 1:] * scale
    runs = _Runs(owners[:, None] * frames + order, times, placed)
    forward = _in_parts(model, maps, runs, iterations, memory)
    if not backward or not times.any():
        return forward
    flipped = _Runs(runs.frames.flip(1), frames - 1 - times, placed)
    before = _in_parts(model, maps, flipped, iterations, memory)
    earlier = order[None, :, None] < times[:, None]
    return State(
        torch.where(earlier[..., None], before.positions.flip(1), forward.positions),
        torch.where(earlier, before.visibility.flip(1), forward.visibility),
        torch.where(earlier, before.confidence.flip(1), forward.confidence),
    )


def _in_parts(
    model: CoTracker3, maps: list[Tensor], runs: _Runs, iterations: int, memory: int
) -> State:
    """Follows as many runs at once as `memory` allows, at least one."""
    step, window = (
        (_whole, runs.frames.shape[1])
        if model.window == WINDOWS["offline"]
        else (_sliding, model.window)
    )
    one = window * runs.times.shape[1] * (SIDE + 1) ** 2 * CHANNELS * 4
    size = max(1, memory // one)
    parts = [
        step(model, maps, _Runs(*part), iterations)
        for part in zip(
            *(value.split(size) for value in (runs.frames, runs.times, runs.positions)), strict=True
        )
    ]
    return State(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("positions", "visibility", "confidence")
        )
    )


def _whole(model: CoTracker3, maps: list[Tensor], runs: _Runs, iterations: int) -> State:
    """All frames as one window."""
    support = model.support(maps, runs.frames.gather(1, runs.times), runs.positions)
    return model.refine(
        maps, runs.frames, support, start(runs.positions, runs.frames.shape[1]), iterations
    )


def _sliding(model: CoTracker3, maps: list[Tensor], runs: _Runs, iterations: int) -> State:
    """Windows that overlap by half, each beginning with what the last one found."""
    frames, window = runs.frames.shape[1], model.window
    whole = start(runs.positions, frames)
    found = State(whole.positions.clone(), whole.visibility.clone(), whole.confidence.clone())
    count = runs.times.shape[1]
    support = [maps[0].new_zeros(len(runs.frames), count, SIDE**2, CHANNELS) for _ in range(LEVELS)]
    for begin in _windows(frames, window):
        index = torch.arange(begin, begin + window, device=runs.frames.device).clamp(max=frames - 1)
        begun = (
            runs.times < begin + ONLINE_STEP
            if begin
            else torch.zeros_like(runs.times, dtype=torch.bool)
        )
        new = (
            ~begun
            & (runs.times < begin + window)
            & (runs.times >= (begin + ONLINE_STEP if begin else 0))
        )
        taken = model.support(maps, runs.frames.gather(1, runs.times), runs.positions)
        support = [
            torch.where(new[..., None, None], fresh, known)
            for fresh, known in zip(taken, support, strict=True)
        ]
        # The half that the last window has not seen repeats the last frame that it has.
        last = torch.arange(begin, begin + window, device=index.device).clamp(
            max=min(begin + window - ONLINE_STEP, frames) - 1
        )
        still = start(runs.positions, window)
        state = State(
            torch.where(begun[:, None, :, None], found.positions[:, last], still.positions),
            torch.where(begun[:, None], found.visibility[:, last], still.visibility),
            torch.where(begun[:, None], found.confidence[:, last], still.confidence),
        )
        state = model.refine(maps, runs.frames[:, index], support, state, iterations)
        end = min(begin + window, frames)
        for name in ("positions", "visibility", "confidence"):
            getattr(found, name)[:, begin:end] = getattr(state, name)[:, : end - begin]
    return found


def _windows(frames: int, window: int) -> Iterator[int]:
    """First frames of the windows that cover a video."""
    yield 0
    begin = ONLINE_STEP
    while begin + window - ONLINE_STEP < frames:
        yield begin
        begin += ONLINE_STEP


def _check(
    video: Tensor,
    queries: Tensor | None,
    grid: int | Tensor | None,
    anchors: Sequence[int],
    iterations: int,
) -> tuple[int, int]:
    """(B, T) of a video that can be tracked; raises PretrackError otherwise."""
    if video.ndim != 5 or video.shape[2] != 3:
        raise PretrackError(
            f"a video to track has the shape [B, T, 3, H, W], not {list(video.shape)}"
        )
    clips, frames, _, height, width = video.shape
    if min(clips, height, width) < 1 or frames < 2:
        raise PretrackError(
            f"a video to track has at least one clip, at least 2 frames, and frames of at least 1x1 pixels: not {list(video.shape)}"
        )
    if video.is_floating_point() and not torch.isfinite(video).all():
        raise PretrackError("the video to track holds values that are not finite")
    if iterations < 1:
        raise PretrackError(f"tracking takes at least 1 iteration, not {iterations}")
    if (queries is None) == (grid is None):
        raise PretrackError("tracking takes either queries or a grid")
    if queries is not None:
        _check_queries(queries, clips, frames)
        _check_points(queries[..., 1:], width, height, "the queries")
    elif not anchors or min(anchors) < 0 or max(anchors) >= frames:
        raise PretrackError(
            f"the anchors {list(anchors)} are not all frames of a video of {frames} (0 to {frames - 1})"
        )
    if isinstance(grid, int) and grid < 1:
        raise PretrackError(f"a grid has at least 1 point a side, not {grid}")
    if isinstance(grid, Tensor):
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise PretrackError(
                f"the points of a grid have the shape [N, 2], not {list(grid.shape)}"
            )
        _check_points(grid, width, height, "the points of a grid")
    return clips, frames


def _check_queries(queries: Tensor, clips: int, frames: int) -> None:
    """Raises PretrackError unless they are [clips, N, 3] and name frames that there are."""
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
        raise PretrackError("the queries hold frames that are not finite")
    if (times != times.round()).any() or times.min() < 0 or times.max() >= frames:
        raise PretrackError(
            f"queries name frames that a video of {frames} does not have (0 to {frames - 1}, whole numbers)"
        )


def _check_points(points: Tensor, width: int, height: int, what: str) -> None:
    """Raises PretrackError unless points [..., 2] lie in a frame."""
    if not torch.isfinite(points).all():
        raise PretrackError(f"{what} hold positions that are not finite")
    x, y = points[..., 0], points[..., 1]
    if min(x.min(), y.min()) < -0.5 or x.max() > width - 0.5 or y.max() > height - 0.5:
        raise PretrackError(f"{what} lie outside their frame of {width}x{height} pixels")
