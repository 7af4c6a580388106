"""Instance norm that keeps the layout of its input in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 1e-5
"""Added to the variance by `F.group_norm` too."""


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Normalise every channel of every frame [F, C, h, w] to mean 0 and variance 1.

    weight, bias: [C], by which the result is then scaled and shifted

    Channels that lie last in memory stay last.
    """
    # Autocast would return float32 on a GPU.
    with torch.autocast(x.device.type, enabled=False):
        # A group norm with one channel per group. On a GPU it returns channels first, and the next
        # convolution would have to move them back.
        if x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            return channels_last_norm(x, weight, bias)
        weight, bias = (value if value is None else value.to(x.dtype) for value in (weight, bias))
        return F.group_norm(x, x.shape[1], weight, bias)


def channels_last_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Compute `instance_norm` by operations that keep the order of x in memory."""
    values = x.to(torch.float32, copy=True)
    variance, mean = torch.var_mean(values, dim=(2, 3), correction=0, keepdim=True)
    values.sub_(mean).mul_(torch.rsqrt(variance + NORM_EPS))
    if weight is not None:
        values.mul_(weight[:, None, None])
    if bias is not None:
        values.add_(bias[:, None, None])
    return values.to(x.dtype)
