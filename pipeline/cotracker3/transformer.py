"""The transformer that updates tracks: attention over time within a track, and over tracks within a frame through a few virtual
tracks (CoTracker3, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 384
HEADS = 8
VIRTUAL = 64
ROUNDS = 3


class Attention(nn.Module):
    """Multi-head attention of x to a context."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_kv = nn.Linear(WIDTH, 2 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[S, n, 384] attending to [S, m, 384] → [S, n, 384]."""
        q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        heads = [y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v)]
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """384 → 1536 → 384."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[..., 384] → [..., 384]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class SelfBlock(nn.Module):
    """Self-attention, then an MLP; both pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        """[S, n, 384] → [S, n, 384]."""
        y = plain_norm(x)
        x = x + self.attn(y, y)
        return x + self.mlp(plain_norm(x))


class CrossBlock(nn.Module):
    """Attention to a context, then an MLP; both pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_context = nn.LayerNorm(WIDTH)
        self.cross_attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[S, n, 384] attending to [S, m, 384] → [S, n, 384]."""
        x = x + self.cross_attn(plain_norm(x), self.norm_context(context))
        return x + self.mlp(plain_norm(x))


class Transformer(nn.Module):
    """Tokens of all tracks in all frames of a window → what to add to their positions, visibilities and confidences."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.input_transform = nn.Linear(token_width, WIDTH)
        self.virual_tracks = nn.Parameter(
            torch.zeros(1, VIRTUAL, 1, WIDTH)
        )  # spelled as in the checkpoints
        self.time_blocks = nn.ModuleList(SelfBlock() for _ in range(ROUNDS))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock() for _ in range(ROUNDS))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock() for _ in range(ROUNDS))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock() for _ in range(ROUNDS))
        self.flow_head = nn.Linear(WIDTH, 2)
        self.vis_conf_head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [R, N, T, width] → changes of positions [R, N, T, 2], and of visibility and confidence [R, N, T, 2]."""
        runs, points, frames, _ = tokens.shape
        x = self.input_transform(tokens)
        x = torch.cat([x, self.virual_tracks.to(x.dtype).expand(runs, -1, frames, -1)], dim=1)
        blocks = (
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
        )
        for time, to_virtual, among_virtual, to_points in zip(*blocks, strict=True):
            x = time(x.flatten(0, 1)).unflatten(0, (runs, -1))
            x = x.transpose(1, 2).flatten(0, 1)  # [R * T, N + 64, 384]
            tracks, virtual = x[:, :points], x[:, points:]
            virtual = among_virtual(to_virtual(virtual, tracks))
            tracks = to_points(tracks, virtual)
            x = torch.cat([tracks, virtual], dim=1).unflatten(0, (runs, frames)).transpose(1, 2)
        tracks = x[:, :points]
        return self.flow_head(tracks), self.vis_conf_head(tracks)
