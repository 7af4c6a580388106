"""The image encoder: feature maps at a quarter and an eighth of a frame's size (TAPIR, section 3).

Shapes: F frames, C channels, h and w the height and width of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network_trackers.instance_norm import instance_norm

HIGH_CHANNELS, LOW_CHANNELS = 128, 256
EXTRA_BLOCKS = 5
_GROUPS = ((64, 1), (128, 2), (256, 2), (256, 1))
"""Channels and stride of each group of residual blocks."""


class InstanceNorm(nn.Module):
    """Normalise every channel of every frame, then scale and shift it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, C, h, w] to the same shape."""
        return instance_norm(x, self.weight, self.bias)


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and a ReLU, with a residual connection."""

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self._stride = stride
        self.bn_0 = InstanceNorm(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False)
        self.bn_1 = InstanceNorm(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if projected:
            self.proj_conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self._projected = projected

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, inputs, h, w] to [F, outputs, h / stride, w / stride]."""
        activated = F.relu(self.bn_0(x))
        shortcut = self.proj_conv(activated) if self._projected else x
        # As the published code imitates TensorFlow's SAME padding for even sizes.
        sides = (1, 1, 1, 1) if self._stride == 1 else (0, 2, 0, 2)
        y = self.conv_0(F.pad(activated, sides))
        return self.conv_1(F.relu(self.bn_1(y))) + shortcut


class BlockGroup(nn.Module):
    """Two residual blocks; the first one changes channels and size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            PreActivationBlock(inputs, outputs, stride, projected=True),
            PreActivationBlock(outputs, outputs, 1, projected=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, inputs, h, w] to [F, outputs, h / stride, w / stride]."""
        y: Tensor = self.blocks(x)
        return y


class ResNet(nn.Module):
    """A ResNet-18 without a stem norm, whose last stage is not shrunk."""

    def __init__(self) -> None:
        super().__init__()
        self.initial_conv = nn.Conv2d(3, 64, 7, stride=2, bias=False)
        inputs = [64, *(channels for channels, _ in _GROUPS)]
        self.block_groups = nn.ModuleList(
            BlockGroup(before, *group) for before, group in zip(inputs, _GROUPS, strict=False)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [F, 3, H, W] to maps [F, 128, H / 4, W / 4] and [F, 256, H / 8, W / 8]."""
        x = self.initial_conv(F.pad(images, (2, 4, 2, 4)))
        outputs = []
        for group in self.block_groups:
            x = group(x)
            outputs.append(x)
        return outputs[1], outputs[3]


class ExtraBlock(nn.Module):
    """Two 3x3 convolutions with GELU, added to their normalised input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(LOW_CHANNELS)
        self.conv = nn.Conv2d(LOW_CHANNELS, 4 * LOW_CHANNELS, 3, padding=1)
        self.conv_1 = nn.Conv2d(4 * LOW_CHANNELS, LOW_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, 256, h, w] to the same shape."""
        norm = self.layer_norm
        # Autocast would return float32 on a GPU.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
            y = F.layer_norm(x.permute(0, 2, 3, 1), (LOW_CHANNELS,), weight, bias, norm.eps)
        y = y.permute(0, 3, 1, 2)
        # The residual connection starts after the norm, as published.
        return y + self.conv_1(F.gelu(self.conv(y), approximate="tanh"))


class ExtraConvolutions(nn.Module):
    """The blocks that BootsTAPIR adds to the low-resolution map."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ExtraBlock() for _ in range(EXTRA_BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, 256, h, w] to the same shape."""
        y: Tensor = self.blocks(x)
        return y


def unit_vectors(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise features [F, C, h, w] over channels; return [F, h, w, C] as `dtype`."""
    values = features.permute(0, 2, 3, 1).float()
    scale = values.square().sum(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt()
    return (values * scale).to(dtype).contiguous()
