"""The DPT probe of Probe3D: a small decoder from frozen features to depth or surface normals.

Four maps of features, early to late, are fused from late to early (Ranftl et al., ICCV 2021) at
twice the patches' resolution, then upsampled to sixteen times. Decoder, heads, losses and schedule
are those of Probe3D's code (El Banani et al., CVPR 2024).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, elu, interpolate

from trainer.evaluate.tables import table

log = logging.getLogger(__name__)

DEPTH_BINS = 256
_NEAREST = 0.001  # metres, the first bin
_EPSILON = 0.001  # metres, added before a logarithm
_STRIDES = (1, 2, 4, 6)  # of the gradient loss
_MIN_RATE = 0.01  # share of the highest learning rate
_LOG_EVERY = 100  # steps


class _Residual(nn.Module):
    """Two convolutions with a residual connection: [B, C, h, w] → the same."""

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
    """Decode four maps [B, h, w, D_i], early to late: → [B, outputs, 16 h, 16 w]."""

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
        """Fuse from the latest level to the earliest."""
        maps = [
            _upsample(enter(level.movedim(-1, 1)), 2)
            for enter, level in zip(self.enter, levels, strict=True)
        ]
        fused: Tensor = self.refine[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            fused = self.refine[level](self.skip[level](maps[level]) + fused)
        return _upsample(self.leave(_upsample(fused, 4)), 2)


def _upsample(maps: Tensor, times: int) -> Tensor:
    return interpolate(maps, scale_factor=times, mode="bilinear", align_corners=True)


def depth_from_bins(outputs: Tensor, farthest: float) -> Tensor:
    """Convert outputs [B, 256, H, W] to depth [B, H, W] in metres.

    The mean of evenly spaced depths from 0.001 to `farthest`, weighted by relu + 0.1 (AdaBins).
    """
    weights = outputs.relu() + 0.1
    depths = torch.linspace(_NEAREST, farthest, outputs.shape[1], device=outputs.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), depths)


def depth_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Compute 10 times the scale-invariant loss in log space plus half the gradient loss.

    predicted, truth: [B, H, W] in metres; truth is 0 where there is none
    """
    valid = truth > 0
    log_error = (predicted + _EPSILON).log() - (truth + _EPSILON).log()
    errors = log_error[valid]
    variance = errors.square().mean() - 0.85 * errors.mean().square()
    scale_invariant = variance.clamp(min=1e-12).sqrt()
    return 10 * scale_invariant + 0.5 * _gradient_loss(log_error, valid)


def _gradient_loss(log_error: Tensor, valid: Tensor) -> Tensor:
    """Compute the change of the log error over two pixels, down and across, per valid pixel.

    Summed over several strides (MegaDepth, Li & Snavely, CVPR 2018).
    """
    total = log_error.new_zeros(())
    for stride in _STRIDES:
        e, v = log_error[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        down = (e[:, 2:] - e[:, :-2]).abs() * (v[:, 2:] & v[:, :-2])
        across = (e[:, :, 2:] - e[:, :, :-2]).abs() * (v[:, :, 2:] & v[:, :, :-2])
        total = total + (down.sum() + across.sum()) / v.sum().clamp(min=1)
    return total


def normals_loss(predicted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Compute the angular loss with uncertainty of Bae et al. (ICCV 2021).

    predicted: [B, 4, H, W], a normal of any length and kappa before its activation
    truth:     [B, 3, H, W]
    valid:     bool [B, H, W]
    """
    cosine = cosine_similarity(predicted[:, :3], truth, dim=1)
    angle = cosine.clamp(-1 + 1e-4, 1 - 1e-4).acos()  # the slope of acos is infinite at 1
    kappa = elu(predicted[:, 3]) + 1.01
    loss = (1 + (-kappa * math.pi).exp()).log() - (kappa.square() + 1).log() + kappa * angle
    return loss[valid].mean()


def fitted_scale_and_shift(predicted: Tensor, truth: Tensor) -> Tensor:
    """Scale and shift each image of `predicted` [B, H, W] to fit the truth, by least squares.

    Only pixels with truth > 0 count. An image that determines no scale, such as a flat one,
    stays as it is.
    """
    valid = (truth > 0).double()
    p, t = predicted.double(), truth.double()
    count, sum_p, sum_t = (x.sum(dim=(1, 2)) for x in (valid, valid * p, valid * t))
    sum_pp, sum_pt = (x.sum(dim=(1, 2)) for x in (valid * p * p, valid * p * t))
    # Cramer's rule for the 2 x 2 normal equations.
    determinant = sum_pp * count - sum_p.square()
    solvable = determinant > 1e-12 * sum_pp * count
    safe = determinant.where(solvable, 1)
    scale = ((count * sum_pt - sum_p * sum_t) / safe).where(solvable, 1)
    shift = ((sum_pp * sum_t - sum_p * sum_pt) / safe).where(solvable, 0)
    return (p * scale[:, None, None] + shift[:, None, None]).to(predicted.dtype)


def depth_metrics(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Compute the depth metrics of each image [B], from [B, H, W] in metres.

    d1, d2, d3: shares of pixels whose ratio to the truth is below 1.25, its square and its cube
    rmse:       in metres

    Pixels without truth (0) do not count; an image with none gives NaN.
    """
    valid = truth > 0
    ratio = torch.maximum(truth / predicted.clamp(min=1e-9), predicted / truth.clamp(min=1e-9))
    metrics = {f"d{k}": _share(ratio < 1.25**k, valid) for k in (1, 2, 3)}
    return metrics | {"rmse": _mean((predicted - truth).square(), valid).sqrt()}


def normals_metrics(predicted: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Compute the metrics of each image's surface normals [B].

    predicted, truth: [B, 3, H, W], of any length
    valid:            bool [B, H, W]

    Shares of pixels whose normal is less than 11.25, 22.5 and 30 degrees off, and the RMSE in
    degrees. An image without valid pixels gives NaN.
    """
    error = cosine_similarity(predicted, truth, dim=1).clamp(-1, 1).acos().rad2deg()
    metrics = {f"{degrees:g}°": _share(error < degrees, valid) for degrees in (11.25, 22.5, 30)}
    return metrics | {"rmse": _mean(error.square(), valid).sqrt()}


def in_shown_unit(name: str, value: Tensor) -> float:
    """Convert shares to per cent; the RMSE stays in metres or degrees."""
    return float(value) * (1 if name == "rmse" else 100)


def metrics_table(figures: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Format a row of metrics per kind. `unit` is that of the RMSE; the others are in per cent."""
    metrics = next(iter(figures.values()))
    header = [f"{name} ({unit})" if name == "rmse" else f"{name} (%)" for name in metrics]
    return table(["", *header], [[kind, *values.values()] for kind, values in figures.items()], 3)


def _share(condition: Tensor, valid: Tensor) -> Tensor:
    """Compute the share of each image's valid pixels for which a condition [B, H, W] holds."""
    return _mean(condition.double(), valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Average over the valid pixels of each image [B]; NaN if there are none."""
    return values.double().where(valid, 0).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate at a step, as a share of the highest one.

    Rises linearly from 1 % over `warmup` steps, then falls along a quarter of a cosine to 1 %.
    """
    if step <= warmup:
        return (1 - _MIN_RATE) * (step / warmup if warmup else 1) + _MIN_RATE
    angle = math.pi / 2 * (step - warmup) / (steps - warmup)
    return (1 - _MIN_RATE) * math.cos(angle) + _MIN_RATE


def train_probe(
    probe: nn.Module,
    losses_of_epoch: Callable[[], Iterable[Tensor]],
    *,
    steps: int,
    warmup: float,
    rate: float,
) -> list[float]:
    """Train with AdamW; return the loss of every step.

    losses_of_epoch: yields a loss per batch of an epoch; each is one step. Called again until
                     `steps` are done
    """
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps, warmup)
    )
    losses: list[float] = []
    while len(losses) < steps:
        for loss in losses_of_epoch():
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % _LOG_EVERY == 0:
                recent = sum(losses[-_LOG_EVERY:]) / _LOG_EVERY
                log.info("step %d of %d: loss %.4f", len(losses), steps, recent)
            if len(losses) == steps:
                break
    return losses
