"""The image encoder: a feature map at a quarter of a frame's size (CoTracker3, section 3)."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_STRIDE = 4
"""Frame pixels per feature-map pixel."""
FEATURE_CHANNELS = 128
NORM_EPS = 1e-5
"""Added to the variance by `F.group_norm` too."""


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every frame [F, C, h, w] to mean 0 and variance 1.

    Channels that lie last in memory stay last.
    """
    # Autocast would return float32 on a GPU.
    with torch.autocast(x.device.type, enabled=False):
        # A group norm with one channel per group. On a GPU it returns channels first, and the next
        # convolution would have to move them back.
        if x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            return channels_last_norm(x)
        return F.group_norm(x, x.shape[1])


def channels_last_norm(x: Tensor) -> Tensor:
    """Compute `instance_norm` by operations that keep the order of x in memory."""
    values = x.to(torch.float32, copy=True)
    variance, mean = torch.var_mean(values, dim=(2, 3), correction=0, keepdim=True)
    return values.sub_(mean).mul_(torch.rsqrt(variance + NORM_EPS)).to(x.dtype)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize feature maps bilinearly to `size` (height, width), corners onto corners."""
    # Autocast would return float32, and the next convolution would round it to bfloat16 after all.
    with nullcontext() if x.device.type == "cpu" else torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm and a residual connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        # A list, so that the convolution's key is downsample.0, as in the checkpoints.
        self.downsample = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 1, stride=stride)] if stride > 1 else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, inputs, h, w] to [F, outputs, h / stride, w / stride]."""
        y = F.relu(instance_norm(self.conv1(x)))
        y = F.relu(instance_norm(self.conv2(y)))
        for convolution in self.downsample:
            x = instance_norm(convolution(x))
        return F.relu(x + y)


class Encoder(nn.Module):
    """Four stages at 1/2, 1/4, 1/8 and 1/16 scale, resized to 1/4, concatenated and fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        widths = (64, 64, 96, 128, 128)
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            stage = nn.Sequential(
                ResidualBlock(inputs, outputs, 1 if number == 1 else 2),
                ResidualBlock(outputs, outputs, 1),
            )
            self.add_module(f"layer{number}", stage)
        self.conv2 = nn.Conv2d(sum(widths[1:]), 2 * FEATURE_CHANNELS, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * FEATURE_CHANNELS, FEATURE_CHANNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [F, 3, H, W] in -1..1 to features [F, 128, H / 4, W / 4]."""
        size = (images.shape[-2] // FEATURE_STRIDE, images.shape[-1] // FEATURE_STRIDE)
        x = F.relu(instance_norm(self.conv1(images)))
        stages = []
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
            stages.append(resize(x, size))
        return self.conv3(F.relu(instance_norm(self.conv2(torch.cat(stages, dim=1)))))
