"""CoTracker3 (Karaev et al., arXiv 2410.11831), written from the paper; takes the official checkpoints as they are.

Everything here is at the model's own resolution: frames of 384x512, positions in pixels of the feature maps, which are a quarter of
that. `pipeline.cotracker3.tracking.track` is the front door.

Maps of all frames lie in one tensor, and a *run* (one set of queries followed in one direction) names the frames it sees by their
index. So several anchors, both directions and overlapping windows share one encoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cotracker3.encoder import STRIDE, Encoder
from pipeline.cotracker3.transformer import Transformer

HEIGHT, WIDTH = 384, 512
LEVELS = 4
RADIUS = 3
SIDE = 2 * RADIUS + 1
CORRELATION = 256
SCALES = 10
TOKEN = 2 + LEVELS * CORRELATION + 4 * (1 + 2 * SCALES)
ITERATIONS = 6


@dataclass(frozen=True, eq=False)
class State:
    """What is known of R runs' tracks. positions: [R, T, N, 2] in map pixels; visibility, confidence: [R, T, N] logits."""

    positions: Tensor
    visibility: Tensor
    confidence: Tensor


class Correlation(nn.Module):
    """How every track's neighbourhood in every frame resembles that of its query: 49 x 49 numbers a level, then 256."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SIDE**4, 384)
        self.fc2 = nn.Linear(384, CORRELATION)

    def forward(
        self, maps: Sequence[Tensor], frames: Tensor, support: Sequence[Tensor], positions: Tensor
    ) -> Tensor:
        """Maps, frames [R, T], support and positions [R, T, N, 2] as in `CoTracker3.refine` → [R, T, N, 4 * 256]."""
        index = frames[:, :, None].expand(-1, -1, positions.shape[2])
        levels = []
        for number, (level, queries) in enumerate(zip(maps, support, strict=True)):
            here = neighbourhoods(level, index, positions / 2**number)
            volume = torch.einsum("rtnac,rnbc->rtnab", here, queries.to(here.dtype))
            levels.append(self.fc2(F.gelu(self.fc1(volume.flatten(3)))).float())
        return torch.cat(levels, dim=-1)


class CoTracker3(nn.Module):
    """The network. `window` is how many frames it was trained on: 60 for the offline checkpoints, 16 for the online ones."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.fnet = Encoder()
        self.corr_mlp = Correlation()
        self.updateformer = Transformer(TOKEN)
        self.time_emb = nn.Parameter(time_table(window), requires_grad=False)

    def compile_parts(self) -> None:
        """Has `torch.compile` make kernels of the three parts that hold the weights, at their first use.

        Its default mode: autotuning takes minutes to choose among kernels that do the same. Shapes are taken as they come; a size
        that changes (clips, points, frames) costs one compilation more, and is free from then on.
        """
        for part in (self.fnet, self.corr_mlp, self.updateformer):
            part.compile()

    def encode(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Frames [F, 3, 384, 512] in -1..1 → maps at four levels, [F, h, w, 128] each, channels last, stored as `dtype`."""
        if (
            dtype == torch.bfloat16
        ):  # its convolutions are faster so, on a CPU as well; in float32 they are not
            frames = frames.contiguous(memory_format=torch.channels_last)
        features = self.fnet(frames).float()
        features = features * features.square().sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()
        maps = []
        for _ in range(LEVELS):
            maps.append(features.permute(0, 2, 3, 1).to(dtype).contiguous())
            features = F.avg_pool2d(features, 2)
        return maps

    def support(self, maps: Sequence[Tensor], frame: Tensor, position: Tensor) -> list[Tensor]:
        """The queries' own neighbourhoods: frame index [R, N] and position [R, N, 2] → [R, N, 49, 128] at each level."""
        return [
            neighbourhoods(level, frame, position / 2**number) for number, level in enumerate(maps)
        ]

    def refine(
        self,
        maps: Sequence[Tensor],
        frames: Tensor,
        support: Sequence[Tensor],
        state: State,
        iterations: int,
    ) -> State:
        """Improves tracks in a window by a number of iterations.

        maps:    from `encode`
        frames:  [R, T] index of each run's frames in the maps
        support: from `support`
        state:   where to begin
        """
        times = self.time_embedding(state.positions.shape[1])
        positions, seen = state.positions, torch.stack([state.visibility, state.confidence], dim=-1)
        for _ in range(iterations):
            tokens = torch.cat(
                [seen, self.corr_mlp(maps, frames, support, positions), motion(positions)], dim=-1
            )
            tokens = tokens + times[:, :, None]
            move, change = self.updateformer(tokens.transpose(1, 2))
            positions, seen = (
                positions + move.float().transpose(1, 2),
                seen + change.float().transpose(1, 2),
            )
        return State(positions, seen[..., 0], seen[..., 1])

    def time_embedding(self, frames: int) -> Tensor:
        """The embedding of each frame of a window: [1, frames, 1110], stretched where the window is not the trained one."""
        if frames == self.window:
            return self.time_emb
        return F.interpolate(self.time_emb.transpose(1, 2), size=frames, mode="linear").transpose(
            1, 2
        )


def neighbourhoods(level: Tensor, frame: Tensor, position: Tensor) -> Tensor:
    """Bilinear samples of 7x7 pixels around positions: [F, h, w, C], [...], [..., 2] → [..., 49, C].

    Offset i * 7 + j is (x + i - 3, y + j - 3): the first axis moves x. Beyond the border the border's value goes on. All 49 share
    their fractions, so 8x8 pixels are read once and mixed along x, then along y.
    """
    _, height, width, channels = level.shape
    corner = position.floor()
    fraction = (position - corner).to(level.dtype)
    steps = torch.arange(-RADIUS, RADIUS + 2, device=level.device)
    columns = (corner[..., 0, None].clamp(-1e6, 1e6).long() + steps).clamp(0, width - 1)
    rows = (corner[..., 1, None].clamp(-1e6, 1e6).long() + steps).clamp(0, height - 1)
    index = (frame[..., None, None] * height + rows[..., None, :]) * width + columns[
        ..., :, None
    ]  # [..., 8 (x), 8 (y)]
    patch = level.view(-1, channels)[index.flatten()].view(*index.shape, channels)
    x, y = fraction[..., 0, None, None, None], fraction[..., 1, None, None, None]
    patch = torch.lerp(patch[..., :-1, :, :], patch[..., 1:, :, :], x)
    return torch.lerp(patch[..., :-1, :], patch[..., 1:, :], y).flatten(-3, -2)


def motion(positions: Tensor) -> Tensor:
    """How each track moves to the next and from the last frame, in sines: [R, T, N, 2] → [R, T, N, 84]."""
    step = positions[:, :-1] - positions[:, 1:]
    onward, back = F.pad(step, (0, 0, 0, 0, 0, 1)), F.pad(-step, (0, 0, 0, 0, 1, 0))
    extent = positions.new_tensor([WIDTH / STRIDE, HEIGHT / STRIDE])
    relative = torch.cat([onward / extent, back / extent], dim=-1)
    scaled = (
        relative[..., None, :] * 2.0 ** torch.arange(SCALES, device=relative.device)[:, None]
    ).flatten(-2)
    return torch.cat([relative, scaled.sin(), (scaled + math.pi / 2).sin()], dim=-1)


def time_table(frames: int) -> Tensor:
    """Sines and cosines of the frame number at 555 frequencies: [1, frames, 1110]."""
    half = TOKEN // 2
    angles = torch.arange(frames)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[None]


def start(positions: Tensor, frames: int) -> State:
    """Tracks that stand still at their queries [R, N, 2], for `frames` frames."""
    still = positions[:, None].expand(-1, frames, -1, -1)
    return State(still, torch.zeros_like(still[..., 0]), torch.zeros_like(still[..., 0]))
