"""The network over time that refines tracks (TAPIR, section 3.2): one sequence per point.

Shapes: R tracks, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 512
EXPANSION = 4
BLOCKS = 12
KERNEL = 3
"""Frames that a temporal convolution sees."""


class ChannelMixer(nn.Module):
    """Two linear layers with GELU: 512 → 2048 → 512."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp2_up = nn.Linear(WIDTH, EXPANSION * WIDTH)
        self.mlp2_down = nn.Linear(EXPANSION * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [R, T, 512] to the same shape."""
        y: Tensor = self.mlp2_down(F.gelu(self.mlp2_up(x), approximate="tanh"))
        return y


class MixerBlock(nn.Module):
    """Mix each channel over time, then the channels of each frame; both pre-norm."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        hidden = EXPANSION * WIDTH
        self._padding = (KERNEL - 1, 0) if causal else (KERNEL // 2, KERNEL // 2)
        self.layer_norm = nn.LayerNorm(WIDTH, bias=False)
        self.mlp1_up = nn.Conv1d(WIDTH, hidden, KERNEL, groups=WIDTH)
        self.mlp1_up_1 = nn.Conv1d(hidden, hidden, KERNEL, groups=hidden)
        self.layer_norm_1 = nn.LayerNorm(WIDTH, bias=False)
        self.conv_channels_mixer = ChannelMixer()

    def forward(self, x: Tensor) -> Tensor:
        """Map [R, T, 512] to the same shape."""
        y = self.layer_norm(x)
        if torch.is_autocast_enabled(x.device.type):
            y = y.to(torch.get_autocast_dtype(x.device.type))
        y = F.gelu(self._over_time(y[..., None], self.mlp1_up), approximate="tanh")
        # Every channel was expanded to four, which are added up.
        x = x + self._over_time(y, self.mlp1_up_1).sum(dim=-1)
        return x + self.conv_channels_mixer(self.layer_norm_1(x))

    def _over_time(self, x: Tensor, convolution: nn.Conv1d) -> Tensor:
        """Convolve x [R, T, 512, 1 or 4] over time, channel by channel: [R, T, 512, 4].

        Written as sums, which `torch.compile` fuses and which need no other layout.
        """
        frames = x.shape[1]
        taps = convolution.weight.to(x.dtype).view(WIDTH, EXPANSION, KERNEL)
        taps = taps.permute(2, 0, 1).contiguous()
        assert convolution.bias is not None
        total = convolution.bias.to(x.dtype).view(WIDTH, EXPANSION)
        padded = F.pad(x, (0, 0, 0, 0, *self._padding))
        for number, tap in enumerate(taps):
            total = torch.addcmul(total, padded[:, number : number + frames], tap)
        return total


class Mixer(nn.Module):
    """Compute updates of a track from its features and correlations in all frames.

    causal: a frame's updates depend on earlier frames only
    """

    def __init__(self, inputs: int, outputs: int, causal: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, WIDTH)
        self.blocks = nn.Sequential(*(MixerBlock(causal) for _ in range(BLOCKS)))
        self.layer_norm = nn.LayerNorm(WIDTH, bias=False)
        self.linear_1 = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [R, T, inputs] to [R, T, outputs], both in float32."""
        # The input and the updates of positions stay in float32, whatever the blocks compute in.
        with torch.autocast(x.device.type, enabled=False):
            x = self.linear(x)
        x = self.blocks(x).float()
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.linear_1(self.layer_norm(x))
            return y
