"""The DPT probe of Probe3D: a small decoder trained on frozen features, to tell what they hold of depth and surface normals.

Four maps of features, early to late, are fused from late to early (Ranftl et al., ICCV 2021) at twice, then upsampled to sixteen
times the patches' resolution. Decoder, heads, losses and schedule are those of Probe3D's code (El Banani et al., CVPR 2024).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, elu, interpolate

log = logging.getLogger(__name__)

BINS = 256
_NEAREST = 0.001  # metres, of the bins of depth
_EPSILON = 0.001  # metres, added before a logarithm
_STRIDES = (1, 2, 4, 6)  # of the gradient loss
_LEAST = 0.01  # of the learning rate
_TELL = 100  # steps between two lines of progress


class _Residual(nn.Module):
    """Two convolutions beside a way around them: [B, C, h, w] → the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolutions(x)


class Dpt(nn.Module):
    """Four maps [B, h, w, D_i], early to late, → [B, outputs, 16 h, 16 w]."""

    def __init__(self, widths: Sequence[int], outputs: int, hidden: int = 512) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Conv2d(width, hidden, 1) for width in widths)
        self.skip = nn.ModuleList(_Residual(hidden) for _ in widths[:-1])
        self.refine = nn.ModuleList(_Residual(hidden) for _ in widths)
        self.leave = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Late levels first, each added to what the next earlier one gives."""
        maps = [
            _larger(enter(level.movedim(-1, 1)), 2)
            for enter, level in zip(self.enter, levels, strict=True)
        ]
        fused: Tensor = self.refine[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            fused = self.refine[level](self.skip[level](maps[level]) + fused)
        return _larger(self.leave(_larger(fused, 4)), 2)


def _larger(maps: Tensor, times: int) -> Tensor:
    return interpolate(maps, scale_factor=times, mode="bilinear", align_corners=True)


def depth_of(outputs: Tensor, farthest: float) -> Tensor:
    """Depth [B, H, W] in metres from [B, 256, H, W]: the mean of evenly spaced depths, weighted by relu + 0.1 (AdaBins)."""
    weights = outputs.relu() + 0.1
    depths = torch.linspace(_NEAREST, farthest, outputs.shape[1], device=outputs.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), depths)


def depth_loss(found: Tensor, truth: Tensor) -> Tensor:
    """10 times the scale-invariant loss in log space plus half the gradient loss; [B, H, W] each, truth 0 where there is none."""
    valid = truth > 0
    off = (found + _EPSILON).log() - (truth + _EPSILON).log()
    known = off[valid]
    scale_invariant = (known.square().mean() - 0.85 * known.mean().square()).clamp(min=1e-12).sqrt()
    return 10 * scale_invariant + 0.5 * _gradient_loss(off, valid)


def _gradient_loss(off: Tensor, valid: Tensor) -> Tensor:
    """How much the error in log space changes over two pixels, down and across, at several strides, for each valid pixel
    (MegaDepth, Li & Snavely, CVPR 2018)."""
    total = off.new_zeros(())
    for stride in _STRIDES:
        e, v = off[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        down = (e[:, 2:] - e[:, :-2]).abs() * (v[:, 2:] & v[:, :-2])
        across = (e[:, :, 2:] - e[:, :, :-2]).abs() * (v[:, :, 2:] & v[:, :, :-2])
        total = total + (down.sum() + across.sum()) / v.sum().clamp(min=1)
    return total


def normals_loss(found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The angular loss with uncertainty of Bae et al. (ICCV 2021): [B, 4, H, W] with kappa last, [B, 3, H, W], [B, H, W]."""
    angle = cosine_similarity(found[:, :3], truth, dim=1).clamp(-1 + 1e-4, 1 - 1e-4).acos()
    kappa = elu(found[:, 3]) + 1.01
    loss = (1 + (-kappa * math.pi).exp()).log() - (kappa.square() + 1).log() + kappa * angle
    return loss[valid].mean()


def fitted_scale_and_shift(found: Tensor, truth: Tensor) -> Tensor:
    """`found` [B, H, W] with the scale and shift, for each image, that bring it nearest to the truth (least squares, truth > 0)."""
    valid = (truth > 0).double()
    f, t = found.double(), truth.double()
    count, sum_f, sum_t = (x.sum(dim=(1, 2)) for x in (valid, valid * f, valid * t))
    sum_ff, sum_ft = (x.sum(dim=(1, 2)) for x in (valid * f * f, valid * f * t))
    determinant = sum_ff * count - sum_f.square()
    solvable = determinant > 1e-12 * sum_ff * count
    safe = determinant.where(solvable, 1)
    scale = ((count * sum_ft - sum_f * sum_t) / safe).where(solvable, 1)
    shift = ((sum_ff * sum_t - sum_f * sum_ft) / safe).where(solvable, 0)
    return (f * scale[:, None, None] + shift[:, None, None]).to(found.dtype)


def depth_metrics(found: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """For each image [B]: shares of pixels whose ratio to the truth is below 1.25, its square and its cube, and the RMSE in metres.

    Pixels without truth (0) do not count; an image with none gives NaN.
    """
    valid = truth > 0
    ratio = torch.maximum(truth / found.clamp(min=1e-9), found / truth.clamp(min=1e-9))
    metrics = {f"d{k}": _share(ratio < 1.25**k, valid) for k in (1, 2, 3)}
    return metrics | {"rmse": _mean((found - truth).square(), valid).sqrt()}


def normals_metrics(found: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """For each image [B]: shares of pixels whose normal is less than 11.25, 22.5 and 30 degrees off, and the RMSE in degrees.

    found and truth are [B, 3, H, W] of any length, valid is [B, H, W]; an image with no valid pixel gives NaN.
    """
    off = cosine_similarity(found, truth, dim=1).clamp(-1, 1).acos().rad2deg()
    metrics = {f"{degrees:g}°": _share(off < degrees, valid) for degrees in (11.25, 22.5, 30)}
    return metrics | {"rmse": _mean(off.square(), valid).sqrt()}


def _share(what: Tensor, valid: Tensor) -> Tensor:
    return _mean(what.double(), valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid pixels of each image; NaN for none."""
    return values.double().where(valid, 0).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Part of the highest rate: from 1 % straight up over `warmup` steps, then down a quarter of a cosine, to 1 %."""
    if step <= warmup:
        return (1 - _LEAST) * (step / warmup if warmup else 1) + _LEAST
    return (1 - _LEAST) * math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) + _LEAST


def train_probe(
    probe: nn.Module, losses: Callable[[], Iterable[Tensor]], steps: int, warmup: float, rate: float
) -> list[float]:
    """Trains with AdamW for so many steps; each loss of an epoch, that `losses()` gives, is one step. Returns the losses."""
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps, warmup)
    )
    seen: list[float] = []
    while len(seen) < steps:
        for loss in losses():
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen.append(loss.item())
            if len(seen) % _TELL == 0:
                log.info("step %d of %d: loss %.4f", len(seen), steps, sum(seen[-_TELL:]) / _TELL)
            if len(seen) == steps:
                break
    return seen
