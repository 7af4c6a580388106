"""The image encoder: a feature map at a quarter of a frame's size (CoTracker3, section 3)."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network_trackers.instance_norm import instance_norm

FEATURE_STRIDE = 4
"""Frame pixels per feature-map pixel."""
FEATURE_CHANNELS = 128


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
