"""The transformer that updates tracks (CoTracker3, section 3).

It alternates attention over time within a track and attention between tracks within a frame. The
latter passes through 64 virtual tracks, so its cost grows linearly with the number of tracks.

Shapes: R query sets, N tracks per set, T frames; S sequences of n tokens attend to m tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN_WIDTH = 384
HEADS = 8
VIRTUAL_TRACKS = 64
LAYERS = 3
"""Rounds of attention, each over time and then between tracks."""


class Attention(nn.Module):
    """Multi-head attention from x to a context."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(HIDDEN_WIDTH, HIDDEN_WIDTH)
        self.to_kv = nn.Linear(HIDDEN_WIDTH, 2 * HIDDEN_WIDTH)
        self.to_out = nn.Linear(HIDDEN_WIDTH, HIDDEN_WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Let x [S, n, 384] attend to the context [S, m, 384]; return [S, n, 384]."""
        q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        heads = [y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v)]
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU: 384 → 1536 → 384."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(HIDDEN_WIDTH, 4 * HIDDEN_WIDTH)
        self.fc2 = nn.Linear(4 * HIDDEN_WIDTH, HIDDEN_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., 384] to [..., 384]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def plain_norm(x: Tensor) -> Tensor:
    """Apply layer norm without learned weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class SelfBlock(nn.Module):
    """Self-attention, then an MLP; both pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Map [S, n, 384] to [S, n, 384]."""
        y = plain_norm(x)
        x = x + self.attn(y, y)
        return x + self.mlp(plain_norm(x))


class CrossBlock(nn.Module):
    """Cross-attention to a context, then an MLP; both pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_context = nn.LayerNorm(HIDDEN_WIDTH)
        self.cross_attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Let x [S, n, 384] attend to the context [S, m, 384]; return [S, n, 384]."""
        x = x + self.cross_attn(plain_norm(x), self.norm_context(context))
        return x + self.mlp(plain_norm(x))


class Transformer(nn.Module):
    """Compute updates of positions, visibility and confidence from the tokens of a window."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.input_transform = nn.Linear(token_width, HIDDEN_WIDTH)
        # The name is spelled as in the checkpoints.
        self.virual_tracks = nn.Parameter(torch.zeros(1, VIRTUAL_TRACKS, 1, HIDDEN_WIDTH))
        self.time_blocks = nn.ModuleList(SelfBlock() for _ in range(LAYERS))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock() for _ in range(LAYERS))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock() for _ in range(LAYERS))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock() for _ in range(LAYERS))
        self.flow_head = nn.Linear(HIDDEN_WIDTH, 2)
        self.vis_conf_head = nn.Linear(HIDDEN_WIDTH, 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return updates of positions [R, N, T, 2], and of visibility and confidence [R, N, T, 2].

        tokens: [R, N, T, token_width]
        """
        sets, points, frames, _ = tokens.shape
        weight = self.input_transform.weight
        if torch.is_autocast_enabled(tokens.device.type):
            # Zeros up to a multiple of 8, as a GPU's matrix units take bfloat16 rows.
            padding = (0, -tokens.shape[-1] % 8)
            tokens, weight = F.pad(tokens, padding), F.pad(weight, padding)
        x = F.linear(tokens, weight, self.input_transform.bias)
        x = torch.cat([x, self.virual_tracks.to(x.dtype).expand(sets, -1, frames, -1)], dim=1)
        blocks = (
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
        )
        for time, to_virtual, among_virtual, to_points in zip(*blocks, strict=True):
            # Over time, within each real or virtual track: sequences [R * (N + 64), T, 384].
            x = time(x.flatten(0, 1)).unflatten(0, (sets, -1))
            # Between tracks, within each frame: sequences [R * T, N + 64, 384].
            x = x.transpose(1, 2).flatten(0, 1)
            tracks, virtual = x[:, :points], x[:, points:]
            virtual = among_virtual(to_virtual(virtual, tracks))
            tracks = to_points(tracks, virtual)
            x = torch.cat([tracks, virtual], dim=1).unflatten(0, (sets, frames)).transpose(1, 2)
        tracks = x[:, :points]  # without the virtual tracks
        return self.flow_head(tracks), self.vis_conf_head(tracks)
