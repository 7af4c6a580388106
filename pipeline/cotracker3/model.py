"""The CoTracker3 network (Karaev et al., arXiv 2410.11831), written from the paper.

It loads the official checkpoints as they are. Users call `pipeline.cotracker3.tracking.track`.

Everything here is at the model's own resolution: frames of 384x512 pixels, and positions in pixels
of the feature maps, which have a quarter of that size.

The feature maps of all frames lie in one tensor, and a query set (N queries followed in one
direction) refers to its frames by index. So several anchors, both directions and overlapping
windows share one encoding of the frames.

Shapes are written with these letters:

    R  query sets       T  frames of a window       N  points per query set
    F  encoded frames   h, w  height and width of a feature map   C  feature channels (128)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cotracker3.encoder import FEATURE_STRIDE, Encoder
from pipeline.cotracker3.transformer import Transformer

MODEL_HEIGHT, MODEL_WIDTH = 384, 512
PYRAMID_LEVELS = 4
CORRELATION_RADIUS = 3
NEIGHBOURHOOD_SIDE = 2 * CORRELATION_RADIUS + 1
"""A point's neighbourhood is 7x7 pixels of each pyramid level."""
ALIGNED_OFFSETS = 56
"""The 49 offsets of a neighbourhood, rounded up to a multiple of 8: rows of bfloat16 numbers that a
GPU's matrix units take without a detour. Those of 49 take several times as long."""
CORRELATION_WIDTH = 256
"""Correlation features per pyramid level."""
ENCODING_SCALES = 10
"""Frequencies of the displacement encoding: 2^0 to 2^9."""
# Visibility and confidence, correlation features, and the encoding of 4 displacements: 1110.
TOKEN_WIDTH = 2 + PYRAMID_LEVELS * CORRELATION_WIDTH + 4 * (1 + 2 * ENCODING_SCALES)
DEFAULT_ITERATIONS = 6


@dataclass(frozen=True, eq=False)
class TrackEstimates:
    """Current estimates of R * N tracks in a window, refined by each iteration.

    positions:  [R, T, N, 2] in map pixels
    visibility: [R, T, N] logits
    confidence: [R, T, N] logits
    """

    positions: Tensor
    visibility: Tensor
    confidence: Tensor


class CorrelationFeatures(nn.Module):
    """Correlate each track's neighbourhood in every frame with that of its query.

    Each pyramid level gives 49 x 49 dot products, which an MLP reduces to 256 features. The paper
    calls them 4D correlation features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(NEIGHBOURHOOD_SIDE**4, 384)
        self.fc2 = nn.Linear(384, CORRELATION_WIDTH)

    def forward(
        self, maps: Sequence[Tensor], frames: Tensor, support: Sequence[Tensor], positions: Tensor
    ) -> Tensor:
        """Return correlation features [R, N, T, 4 * 256].

        maps, frames and support are those of `CoTracker3.refine`; positions: [R, T, N, 2].
        """
        # Track by track: all frames of a track are compared with the same query neighbourhood.
        positions = positions.transpose(1, 2)
        index = frames[:, None].expand(positions.shape[:-1])
        levels = [
            self._correlate(level, index, at_query, positions / 2**number)
            for number, (level, at_query) in enumerate(zip(maps, support, strict=True))
        ]
        return torch.cat(levels, dim=-1)

    def _correlate(self, level: Tensor, frame: Tensor, support: Tensor, position: Tensor) -> Tensor:
        """Return the correlation features of one level: [R, N, T, 256].

        frame: [R, N, T] index into the level; position: [R, N, T, 2] in its pixels
        """
        # A method of its own, so that its large tensors are freed before the next level.
        current = neighbourhoods(level, frame, position)
        support, weight = support.to(current.dtype), self.fc1.weight
        if current.dtype == torch.bfloat16:
            # Offsets of zeros, with weights of zero, change nothing.
            offsets = support.shape[2]
            padding = (0, ALIGNED_OFFSETS - offsets)
            support = F.pad(support, (0, 0, *padding))
            weight = F.pad(weight.view(-1, offsets, offsets), padding).flatten(1)
        # a: offsets around the current position; b: offsets around the query; c: channels.
        volume = torch.einsum("rntac,rnbc->rntab", current, support)
        del current
        return self.fc2(F.gelu(F.linear(volume.flatten(3), weight, self.fc1.bias))).float()


class CoTracker3(nn.Module):
    """The network. `window` is its trained window length in frames.

    Offline checkpoints have 60, online ones 16. Attributes that hold weights are named as in the
    official checkpoints.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.fnet = Encoder()
        self.corr_mlp = CorrelationFeatures()
        self.updateformer = Transformer(TOKEN_WIDTH)
        self.time_emb = nn.Parameter(sinusoidal_time_embedding(window), requires_grad=False)
        self.compiled = False
        self._iterate = self.iterate

    def compile_parts(self, **options: Any) -> None:
        """Compile the encoder and an iteration with `torch.compile`, at their first use.

        Compilation uses the default mode: autotuning takes minutes to choose among kernels of
        equal speed. Any number of clips and query sets runs with the same kernels, as long as there
        are at least two sets. A second window length costs one recompilation, after which any
        length does. `options` are those of `torch.compile`.
        """
        self.compiled = True
        self.fnet.compile(**options)
        self._iterate = torch.compile(self.iterate, **options)

    def encode(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Encode frames [F, 3, 384, 512] in -1..1 into a pyramid of feature maps [F, h, w, C].

        There is one map per level, stored as `dtype` with channels last.
        """
        # With channels last, convolutions are faster in bfloat16, on a CPU too; in float32 not.
        if dtype == torch.bfloat16:
            frames = frames.contiguous(memory_format=torch.channels_last)
        features = self.fnet(frames).float()
        # Unit vectors: a dot product of two features is their cosine similarity.
        features = features * features.square().sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()
        maps = []
        for _ in range(PYRAMID_LEVELS):
            maps.append(features.permute(0, 2, 3, 1).to(dtype).contiguous())
            features = F.avg_pool2d(features, 2)
        return maps

    def support_features(
        self, maps: Sequence[Tensor], frame: Tensor, position: Tensor
    ) -> list[Tensor]:
        """Sample the neighbourhood of each query in its own frame: [R, N, 49, C] per level.

        frame:    [R, N] index into the maps
        position: [R, N, 2] in map pixels
        """
        return [
            neighbourhoods(level, frame, position / 2**number) for number, level in enumerate(maps)
        ]

    def refine(
        self,
        maps: Sequence[Tensor],
        frames: Tensor,
        support: Sequence[Tensor],
        estimates: TrackEstimates,
        *,
        iterations: int,
    ) -> TrackEstimates:
        """Refine the tracks of a window by a number of iterations.

        maps:      from `encode`
        frames:    [R, T] index of each query set's frames in the maps
        support:   from `support_features`
        estimates: where to start from
        """
        positions = estimates.positions
        logits = torch.stack([estimates.visibility, estimates.confidence], dim=-1)
        times = self.time_embedding(positions.shape[1])
        if self.compiled:  # other strides than those of later iterations would be compiled again
            positions = positions.contiguous()
        for _ in range(iterations):
            if self.compiled:
                _mark_sizes_as_dynamic(*maps, frames, *support, positions, logits)
            positions, logits = self._iterate(maps, frames, support, positions, logits, times)
        return TrackEstimates(positions, logits[..., 0], logits[..., 1])

    def iterate(
        self,
        maps: Sequence[Tensor],
        frames: Tensor,
        support: Sequence[Tensor],
        positions: Tensor,
        logits: Tensor,
        times: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run one iteration; return the new positions [R, T, N, 2] and logits [R, T, N, 2].

        logits: visibility and confidence
        times:  [1, T, 1110] from `time_embedding`

        The other arguments are those of `refine`.
        """
        correlation = self.corr_mlp(maps, frames, support, positions)
        others = [part.transpose(1, 2) for part in (logits, displacement_encoding(positions))]
        tokens = torch.cat([others[0], correlation, others[1]], dim=-1)  # [R, N, T, 1110]
        tokens = tokens + times[:, None]
        position_update, logit_update = self.updateformer(tokens)
        # Positions and logits stay in float32, whatever the transformer computes in.
        positions = positions + position_update.float().transpose(1, 2)
        return positions, logits + logit_update.float().transpose(1, 2)

    def time_embedding(self, frames: int) -> Tensor:
        """Return the time embedding of a window: [1, frames, 1110].

        It is interpolated linearly if the window has another length than the trained one.
        """
        if frames == self.window:
            return self.time_emb
        return F.interpolate(self.time_emb.transpose(1, 2), size=frames, mode="linear").transpose(
            1, 2
        )


def neighbourhoods(level: Tensor, frame: Tensor, position: Tensor) -> Tensor:
    """Sample 7x7 pixels around each position bilinearly: [..., 49, C].

    level:    [F, h, w, C]
    frame:    [...] index into the level
    position: [..., 2] (x, y) in pixels of the level

    Offset i * 7 + j is (x + i - 3, y + j - 3): the first axis moves x. Pixels beyond the border
    repeat the border.
    """
    _, height, width, channels = level.shape
    # All 49 samples share their fractions: read 8x8 pixels once, then blend along x and along y.
    corner = position.floor()
    fraction = (position - corner).to(level.dtype)
    steps = torch.arange(-CORRELATION_RADIUS, CORRELATION_RADIUS + 2, device=level.device)
    # The clamp to +-1e6 keeps points that were lost far away convertible to integers.
    columns = (corner[..., 0, None].clamp(-1e6, 1e6).long() + steps).clamp(0, width - 1)
    rows = (corner[..., 1, None].clamp(-1e6, 1e6).long() + steps).clamp(0, height - 1)
    first_row = frame[..., None, None] * height
    index = (first_row + rows[..., None, :]) * width + columns[..., :, None]  # [..., 8 (x), 8 (y)]
    patch = level.view(-1, channels)[index.flatten()].view(*index.shape, channels)
    x, y = fraction[..., 0, None, None, None], fraction[..., 1, None, None, None]
    patch = torch.lerp(patch[..., :-1, :, :], patch[..., 1:, :, :], x)
    return torch.lerp(patch[..., :-1, :], patch[..., 1:, :], y).flatten(-3, -2)


def displacement_encoding(positions: Tensor) -> Tensor:
    """Encode each track's displacements between frames by sinusoids: [R, T, N, 2] → [R, T, N, 84].

    The displacements are those from the next frame (0 in the last frame) and from the previous one
    (0 in the first), as parts of the map's width and height. Each of the 4 numbers is kept and
    joined by its sine and cosine at 10 frequencies.
    """
    step = positions[:, :-1] - positions[:, 1:]
    from_next, from_previous = F.pad(step, (0, 0, 0, 0, 0, 1)), F.pad(-step, (0, 0, 0, 0, 1, 0))
    # Filled on the device: a copy from the host would wait for what the device computes.
    sides = (MODEL_WIDTH / FEATURE_STRIDE, MODEL_HEIGHT / FEATURE_STRIDE)
    extent = torch.stack([positions.new_full((), side) for side in sides])
    relative = torch.cat([from_next / extent, from_previous / extent], dim=-1)
    scales = 2.0 ** torch.arange(ENCODING_SCALES, device=relative.device)[:, None]
    scaled = (relative[..., None, :] * scales).flatten(-2)
    return torch.cat([relative, scaled.sin(), (scaled + math.pi / 2).sin()], dim=-1)


def _mark_sizes_as_dynamic(*tensors: Tensor) -> None:
    """Let `torch.compile` take any size of the first dimension: frames of maps, or query sets."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def sinusoidal_time_embedding(frames: int) -> Tensor:
    """Return sines and cosines of the frame number at 555 frequencies: [1, frames, 1110]."""
    half = TOKEN_WIDTH // 2
    angles = torch.arange(frames)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[None]


def initial_estimates(positions: Tensor, frames: int) -> TrackEstimates:
    """Let tracks stand still at their queries [R, N, 2] for `frames` frames, with logits 0."""
    still = positions[:, None].expand(-1, frames, -1, -1)
    return TrackEstimates(still, torch.zeros_like(still[..., 0]), torch.zeros_like(still[..., 0]))
