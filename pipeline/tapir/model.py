"""The TAPIR network (Doersch et al., arXiv 2306.08637; BootsTAP, arXiv 2402.00847).

Written from the papers and from outputs of the published code; it loads the official checkpoints as
they are. Users call `pipeline.tapir.tracking.track`.

Frames are square. Positions are in pixels of a frame of `base_side`, counted from its upper left
corner, so that the centre of its first pixel is at 0.5: a position is scaled to a map of another
size by one factor. Queries do not influence each other.

Shapes are written with these letters:

    B  clips            T  frames         Q  queries per clip
    h, w  height and width of a map       C  channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tapir.cost_volume import CostVolume
from pipeline.tapir.encoder import (
    HIGH_CHANNELS,
    LOW_CHANNELS,
    ExtraConvolutions,
    ResNet,
    unit_vectors,
)
from pipeline.tapir.mixer import Mixer
from pipeline.tapir.sides import BASE_SIDE

DEFAULT_ITERATIONS = 4
DEFAULT_TEMPERATURE = 20.0
NEIGHBOURHOOD_RADIUS = 3
FEATURES = HIGH_CHANNELS + LOW_CHANNELS
_NEIGHBOURS = (2 * NEIGHBOURHOOD_RADIUS + 1) ** 2


@dataclass(frozen=True, eq=False)
class TrackEstimates:
    """Estimates of the tracks of B * Q queries.

    positions: float32 [B, Q, T, 2] (x, y) in pixels of a frame of `base_side`
    logits:    float32 [B, Q, T, 2] of being occluded, and of being far from the true position
    """

    positions: Tensor
    logits: Tensor


class Tapir(nn.Module):
    """The network. Attributes that hold weights are named as in the official checkpoints.

    pyramid_levels: how many smaller maps are correlated with: 1, or 0 for the first TAPIR
    extra_convs:    whether the encoder has them, as that of BootsTAPIR
    causal:         whether estimates depend on earlier frames only; the weights do not tell
    base_side:      pixels of a side of the frames in which tracks are first estimated
    """

    def __init__(
        self,
        pyramid_levels: int = 1,
        *,
        extra_convs: bool = True,
        causal: bool = False,
        base_side: int = BASE_SIDE,
    ) -> None:
        super().__init__()
        self.pyramid_levels, self.causal, self.base_side = pyramid_levels, causal, base_side
        self.resnet_torch = ResNet()
        self.extra_convs = ExtraConvolutions() if extra_convs else nn.Identity()
        self.torch_cost_volume_track_mods = CostVolume()
        # Two position slots that are always zero, two logits, features and correlations.
        inputs = 4 + FEATURES + _NEIGHBOURS * (2 + pyramid_levels)
        self.torch_pips_mixer = Mixer(inputs, 4 + FEATURES, causal)
        self.compiled = False
        self._features, self._iterate = self.features, self.iterate

    def compile_parts(self, **options: Any) -> None:
        """Compile the encoder and an iteration with `torch.compile`, at their first use.

        One iteration takes any numbers of clips, frames and queries; that of a single clip is
        compiled apart. `options` are those of `torch.compile`.
        """
        self.compiled = True
        self._features = torch.compile(self.features, **options)
        self._iterate = torch.compile(self.iterate, **options)

    def encode(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Encode square frames [F, 3, side, side] in -1..1; sides are multiples of 8.

        Returns maps [F, h, w, C] of unit vectors, with channels last: at a quarter of the side, at
        an eighth, and at half of the last one for each pyramid level.
        """
        # With channels last, convolutions are faster in bfloat16; in float32 not.
        if dtype == torch.bfloat16:
            frames = frames.contiguous(memory_format=torch.channels_last)
        high, low = self._features(frames)
        maps = [unit_vectors(high, dtype), unit_vectors(low, dtype)]
        for _ in range(self.pyramid_levels):
            pooled = F.avg_pool2d(maps[-1].permute(0, 3, 1, 2).float(), 2)
            maps.append(pooled.permute(0, 2, 3, 1).to(dtype).contiguous())
        return maps

    def features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the two maps of the encoder, with channels first and of any length."""
        high, low = self.resnet_torch(frames)
        return high, self.extra_convs(low)

    def query_features(self, maps: Sequence[Tensor], times: Tensor, positions: Tensor) -> Tensor:
        """Sample each query's vectors in its own frame: float32 [B, Q, 128 + 256].

        maps:      [B, T, h, w, C], high and low resolution; the rest is not needed
        times:     int64 [B, Q]
        positions: [B, Q, 2]
        """
        return torch.cat(
            [
                sample_in_frames(level, times, positions * (level.shape[2] / self.base_side))
                for level in maps[:2]
            ],
            dim=-1,
        )

    def initial_estimates(
        self, low: Tensor, query_features: Tensor, temperature: float
    ) -> TrackEstimates:
        """Estimate tracks frame by frame, each from its cost volume.

        low: [B, T, h, w, 256], the low-resolution maps of frames of `base_side`
        """
        vectors = query_features[:, None, :, HIGH_CHANNELS:].expand(-1, low.shape[1], -1, -1)
        # In float32: a small error moves the best cell, and with it the whole track.
        with torch.autocast(low.device.type, enabled=False):
            volume = correlate(low.float(), vectors)
            cells, logits = self.torch_cost_volume_track_mods(volume.flatten(0, 2), temperature)
        positions = cells * (self.base_side / low.shape[2])
        shape = volume.shape[:3]  # [B, T, Q]
        return TrackEstimates(
            positions.unflatten(0, shape).transpose(1, 2),
            logits.unflatten(0, shape).transpose(1, 2),
        )

    def refine(
        self,
        maps: Sequence[Tensor],
        query_features: Tensor,
        estimates: TrackEstimates,
        iterations: int = DEFAULT_ITERATIONS,
    ) -> TrackEstimates:
        """Refine estimates by the maps [B, T, h, w, C] of one resolution.

        query_features: [B, Q, 384], sampled in the same maps
        """
        frames = estimates.positions.shape[2]
        # Copies: strides of 0, and views, would be compiled apart from those of later iterations.
        features = query_features[:, :, None].expand(-1, -1, frames, -1).contiguous()
        positions, logits = (
            values.clone(memory_format=torch.contiguous_format)
            for values in (estimates.positions, estimates.logits)
        )
        for _ in range(iterations):
            if self.compiled:
                _mark_sizes_as_dynamic(maps, dimensions=2)
                _mark_sizes_as_dynamic((positions, logits, features), dimensions=3)
            positions, logits, features = self._iterate(maps, positions, logits, features)
        return TrackEstimates(positions, logits)

    def iterate(
        self, maps: Sequence[Tensor], positions: Tensor, logits: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one iteration; return new positions, logits and features [B, Q, T, 384]."""
        tokens = self.mixer_tokens(maps, positions, logits, features)
        update = self.torch_pips_mixer(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        # Updates of positions are in pixels of the level's own frames.
        to_base = self.base_side / (4 * maps[0].shape[2])
        return (
            positions + update[..., :2] * to_base,
            logits + update[..., 2:4],
            features + update[..., 4:],
        )

    def mixer_tokens(
        self, maps: Sequence[Tensor], positions: Tensor, logits: Tensor, features: Tensor
    ) -> Tensor:
        """Return the mixer's input, float32 [B, Q, T, 535]."""
        high, low = features.transpose(1, 2).split((HIGH_CHANNELS, LOW_CHANNELS), dim=-1)
        around = positions.transpose(1, 2)  # [B, T, Q, 2]
        correlations = [
            neighbourhoods(
                correlate(level, vectors), around * (level.shape[2] / self.base_side)
            ).transpose(1, 2)
            for level, vectors in zip(maps, (high, *[low] * (len(maps) - 1)), strict=True)
        ]
        nothing = torch.zeros_like(positions)
        return torch.cat([nothing, logits, features, *correlations], dim=-1)


def _mark_sizes_as_dynamic(tensors: Sequence[Tensor], dimensions: int) -> None:
    """Let `torch.compile` take any numbers of clips, frames and queries: the first dimensions."""
    for tensor in tensors:
        for dimension in range(dimensions):
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def correlate(level: Tensor, vectors: Tensor) -> Tensor:
    """Multiply maps [B, T, h, w, C] by vectors [B, T, Q, C] of each frame: [B, T, Q, h, w].

    The products of a whole frame are one matrix product, which takes less time and memory than
    collecting the cells around each point.
    """
    product = vectors.to(level.dtype) @ level.flatten(2, 3).transpose(-1, -2)
    return product.unflatten(-1, level.shape[2:4])


def neighbourhoods(correlation: Tensor, positions: Tensor) -> Tensor:
    """Sample 7x7 values around each position bilinearly, with zeros outside: float32 [..., 49].

    correlation: [..., h, w]
    positions:   [..., 2] (x, y) in cells, from the upper left corner of the map

    Rows come one after the other: value 7 * i + j is that of (x + j - 3, y + i - 3).
    """
    height, width = correlation.shape[-2:]
    centred = positions - 0.5
    # All 49 samples share their fractions: read 8x8 cells once, then blend along x and along y.
    corner = centred.floor()
    fraction = centred - corner
    steps = torch.arange(-NEIGHBOURHOOD_RADIUS, NEIGHBOURHOOD_RADIUS + 2, device=correlation.device)
    # The clamp to +-1e6 keeps points that were lost far away convertible to integers.
    columns = corner[..., 0, None].clamp(-1e6, 1e6).long() + steps
    rows = corner[..., 1, None].clamp(-1e6, 1e6).long() + steps
    index = rows.clamp(0, height - 1)[..., :, None] * width
    index = index + columns.clamp(0, width - 1)[..., None, :]  # [..., 8 (y), 8 (x)]
    patch = correlation.flatten(-2).gather(-1, index.flatten(-2)).view(index.shape).float()
    inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    patch = patch * (inside_y[..., :, None] & inside_x[..., None, :])
    x, y = fraction[..., 0, None, None], fraction[..., 1, None, None]
    patch = torch.lerp(patch[..., :-1], patch[..., 1:], x)
    return torch.lerp(patch[..., :-1, :], patch[..., 1:, :], y).flatten(-2)


def sample_in_frames(level: Tensor, times: Tensor, positions: Tensor) -> Tensor:
    """Sample maps [B, T, h, w, C] bilinearly at one place per query: float32 [B, Q, C].

    times:     int64 [B, Q]
    positions: [B, Q, 2] (x, y) in cells, from the upper left corner of the map

    Beyond the centres of the outer cells, their values continue.
    """
    clips, frames, height, width, channels = level.shape
    largest = torch.stack([positions.new_full((), side - 1.0) for side in (width, height)])
    centred = torch.minimum((positions - 0.5).clamp_min(0), largest)
    corner = centred.floor()
    x, y = (centred - corner)[..., None].unbind(-2)
    left, top = corner.long().unbind(-1)
    right, bottom = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
    clip = torch.arange(clips, device=level.device)[:, None]
    first = (clip * frames + times) * height
    cells = level.reshape(-1, channels)

    def row(number: Tensor) -> Tensor:
        start = (first + number) * width
        return torch.lerp(cells[start + left].float(), cells[start + right].float(), x)

    return torch.lerp(row(top), row(bottom), y)
