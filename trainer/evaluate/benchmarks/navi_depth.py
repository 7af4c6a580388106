"""Depth and normals on NAVI by a DPT probe: how much of a shape do frozen features hold?

After Probe3D (El Banani et al., CVPR 2024).

The probe (`dpt_probe.py`) is trained on the multiview photographs and scored on the wild sets.
Probe3D computes its true normals with the principal point in the corner of the crop: those of a
plane tilted by 45 degrees are about 12 to 21 degrees off. `snorm_gt: probe3d` does the same, to
compare with its table; `true` puts the principal point where it is and leaves out silhouettes,
where depth has no neighbour.

Two things differ from Probe3D: photographs are shuffled in every epoch (its code does so on several
GPUs, not on one), and colours are jittered before they are normalised, as its comments say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize, pad
from torch.utils.data import DataLoader, Dataset

from manifests.fingerprint import fingerprint_lines
from trainer.data.loader import explain_killed_workers
from trainer.evaluate.benchmarks.dpt_probe import (
    DEPTH_BINS,
    Dpt,
    depth_from_bins,
    depth_loss,
    depth_metrics,
    fitted_scale_and_shift,
    in_shown_unit,
    metrics_table,
    normals_loss,
    normals_metrics,
    train_probe,
)
from trainer.evaluate.benchmarks.image_datasets import NAVI
from trainer.evaluate.benchmarks.navi_data import (
    Crop,
    Photograph,
    list_photographs,
    read_crop,
    resize_nearest,
    unproject,
)
from trainer.evaluate.benchmarks.settings import Normals, ProbeSettings
from trainer.evaluate.features import LevelFeatures
from trainer.evaluate.results import finite_mean, result_json

Task = Literal["depth", "normals"]

_FAR_AWAY = 1e6  # metres: the depth that pixels without one get for normals, as in Probe3D
_JITTER = 0.2
_JITTERED = 0.8  # share of images


@dataclass(frozen=True)
class ProbeResult:
    """Metrics of a trained probe: means over the tested photographs that have a value.

    figures:    kind (`scale-aware`, `scale-invariant`; or `normals`) → metric → value; shares are
                in per cent
    images:     the same for each photograph, by its name
    losses:     training loss of every step
    trained_on: number of photographs
    digest:     of the lists of photographs trained and tested on
    """

    task: Task
    settings: ProbeSettings
    patch: int
    figures: dict[str, dict[str, float]]
    images: dict[str, dict[str, dict[str, float]]]
    losses: tuple[float, ...]
    trained_on: int
    digest: str

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return every metric of each photograph."""
        return {
            f"{kind}, {metric}": {
                name: values[kind][metric] for name, values in self.images.items()
            }
            for kind, metrics in self.figures.items()
            for metric in metrics
        }

    def paper_rows(self) -> dict[str, list[float]]:
        """Return no table: papers plot these metrics without their values."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return settings, metrics, and the metrics of every photograph."""
        return result_json(NAVI.name, self)

    def __str__(self) -> str:
        s = self.settings
        variant = ", relative" if s.relative else ""
        if self.task == "normals":
            variant = f", normals as {s.snorm_gt}"
        unit = "degrees" if self.task == "normals" else "metres"
        return (
            f"NAVI wild_set, {self.task} by a DPT probe{variant}, at {s.size} px, "
            f"patches of {self.patch}\n"
            f"{metrics_table(self.figures, unit)}\n"
            f"  {len(self.images)} photographs; probe trained on {self.trained_on} for "
            f"{len(self.losses)} steps; list {self.digest}"
        )


@dataclass(frozen=True)
class _ProbeBatch:
    """Photographs with their ground truth.

    images:  uint8 [B, 3, S, S]
    depth:   [B, S, S]; 0 for none
    normals: [B, 3, S, S]
    valid:   bool [B, S, S], where normals count
    """

    images: Tensor
    depth: Tensor
    normals: Tensor
    valid: Tensor


class _ProbePhotographs(Dataset[tuple[Tensor, ...]]):
    """Photographs with depth and normals; colours are jittered for training."""

    def __init__(
        self, photographs: Sequence[Photograph], settings: ProbeSettings, train: bool
    ) -> None:
        self.photographs, self.settings = photographs, settings
        self.jitter = jitter_colours if train and settings.jitter else None

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        s = self.settings
        crop = read_crop(self.photographs[index], s.size)
        normals, valid = crop_normals(crop, s.size, s.snorm_gt)
        image = crop.image if self.jitter is None else self.jitter(crop.image)
        return image, relative_depth(crop.depth) if s.relative else crop.depth, normals, valid


def jitter_colours(image: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image, in four of five."""
    from torchvision.transforms import v2  # half a second and 60 MB, needed for training only

    jitter = v2.ColorJitter(_JITTER, _JITTER, _JITTER, _JITTER)
    changed: Tensor = v2.RandomApply([jitter], p=_JITTERED)(image)
    return changed


def evaluate_depth(
    features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings | None = None
) -> ProbeResult:
    """Train and score a depth probe on NAVI in the folder `root`, from four maps of features.

    `patch` is only noted in the result. Raises SettingsError or PretrackError, in one sentence, if
    the dataset is missing, incomplete or broken.
    """
    return _evaluate("depth", features, patch, root, settings or ProbeSettings())


def evaluate_normals(
    features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings | None = None
) -> ProbeResult:
    """Train and score a probe for surface normals; arguments and errors as `evaluate_depth`."""
    return _evaluate("normals", features, patch, root, settings or ProbeSettings())


def _evaluate(
    task: Task, features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings
) -> ProbeResult:
    # Draws follow from the seed, and the caller's generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        listed = {
            "multiview": list_photographs(root, "multiview")[:: settings.every],
            "wild_set": list_photographs(root, "wild_set")[:: settings.every],
        }
        train = _ProbePhotographs(listed["multiview"], settings, train=True)
        test = _ProbePhotographs(listed["wild_set"], settings, train=False)
        levels = features(train[0][0][None])
        device = levels[0].device
        widths = [level.shape[-1] for level in levels]
        probe = Dpt(widths, DEPTH_BINS if task == "depth" else 4, settings.hidden).to(device)
        losses = _train(task, probe, features, train, settings, device)
        images = _test(task, probe.eval(), features, test, settings, device)
    kinds = next(iter(images.values()))
    figures = {
        kind: {
            name: finite_mean([values[kind][name] for values in images.values()])
            for name in metrics
        }
        for kind, metrics in kinds.items()
    }
    digest = fingerprint_lines(
        [f"{subset} {photograph.name}" for subset, part in listed.items() for photograph in part]
    )
    return ProbeResult(
        task=task,
        settings=settings,
        patch=patch,
        figures=figures,
        images=images,
        losses=tuple(losses),
        trained_on=len(train),
        digest=digest,
    )


def _train(
    task: Task,
    probe: Dpt,
    features: LevelFeatures,
    train: _ProbePhotographs,
    settings: ProbeSettings,
    device: torch.device,
) -> list[float]:
    """Train the probe; return the loss of every step."""
    steps_per_epoch = math.ceil(len(train) / settings.batch)
    steps = settings.steps or math.ceil(settings.epochs * steps_per_epoch)
    warmup = steps * settings.warmup / settings.epochs

    def losses_of_epoch() -> Iterator[Tensor]:
        for batch in _batches(train, settings, device, shuffle=True):
            outputs = predict(task, probe, features(batch.images), settings)
            if task == "depth":
                yield depth_loss(outputs, batch.depth)
            else:
                yield normals_loss(outputs, batch.normals, batch.valid)

    return train_probe(probe, losses_of_epoch, steps=steps, warmup=warmup, rate=settings.rate)


def _batches(
    photographs: _ProbePhotographs, settings: ProbeSettings, device: torch.device, shuffle: bool
) -> Iterator[_ProbeBatch]:
    """Yield the batches of one epoch, on the device."""
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        photographs,
        settings.batch,
        shuffle=shuffle,
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
    )
    with explain_killed_workers():
        for parts in loader:
            yield _ProbeBatch(*(part.to(device, non_blocking=True) for part in parts))


@torch.no_grad()
def _test(
    task: Task,
    probe: Dpt,
    features: LevelFeatures,
    test: _ProbePhotographs,
    settings: ProbeSettings,
    device: torch.device,
) -> dict[str, dict[str, dict[str, float]]]:
    """Score the probe: name of the photograph → kind → metric → value."""
    images: list[dict[str, dict[str, float]]] = []
    for batch in _batches(test, settings, device, shuffle=False):
        outputs = predict(task, probe, features(batch.images), settings)
        kinds = _metrics(task, outputs, batch)
        for i in range(len(outputs)):
            images.append(
                {
                    kind: {name: in_shown_unit(name, v[i]) for name, v in metrics.items()}
                    for kind, metrics in kinds.items()
                }
            )
    names = [photograph.name for photograph in test.photographs]
    return dict(zip(names, images, strict=True))


def _metrics(task: Task, outputs: Tensor, batch: _ProbeBatch) -> dict[str, dict[str, Tensor]]:
    """Compute kind → metric → value for each image [B]."""
    if task == "normals":
        return {"normals": normals_metrics(outputs[:, :3], batch.normals, batch.valid)}
    fitted = fitted_scale_and_shift(outputs, batch.depth)
    return {
        "scale-aware": depth_metrics(outputs, batch.depth),
        "scale-invariant": depth_metrics(fitted, batch.depth),
    }


def predict(task: Task, probe: Dpt, levels: Sequence[Tensor], settings: ProbeSettings) -> Tensor:
    """Predict depth [B, S, S] in metres, or normals and kappa [B, 4, S, S], at full size."""
    outputs, size = probe(levels), (settings.size, settings.size)
    if task == "normals":
        return interpolate(outputs, size, mode="bicubic", align_corners=True)
    depth = depth_from_bins(outputs, settings.farthest)[:, None]
    return interpolate(depth, size, mode="bilinear", align_corners=True)[:, 0]


def relative_depth(depth: Tensor) -> Tensor:
    """Map depth [S, S] to 0.01 at the nearest and 1 at the farthest point.

    0, which means no depth, stays. Objects less than 1 cm deep are not stretched further.
    """
    valid = depth > 0
    low, high = depth[valid].min(), depth[valid].max()
    return ((depth - low) / (high - low).clamp(min=0.01) * 0.99 + 0.01).where(valid, 0)


def crop_normals(crop: Crop, size: int, truth: Normals) -> tuple[Tensor, Tensor]:
    """Compute unit normals [3, size, size], and where they are valid [size, size].

    Normals point away from the camera. `truth` is the setting `snorm_gt`.
    """
    row, column = crop.corner
    principal = (0.0, 0.0) if truth == "probe3d" else (size / 2 - column, size / 2 - row)
    normals = surface_normals(crop.box, crop.box_focal, principal)
    valid = crop.box > 0
    if truth == "true":
        # Leave out pixels with a neighbour without depth, or beyond the image's border.
        hole = (~valid).float()[None, None]
        hole = pad(hole, (1, 1, 1, 1), value=1.0)
        valid = max_pool2d(hole, 3, stride=1)[0, 0] == 0
    return resize_nearest(normals, size, size), resize_nearest(valid, size, size)


def surface_normals(depth: Tensor, focal: float, principal: tuple[float, float]) -> Tensor:
    """Compute unit normals [3, H, W] of the surface in a depth image [H, W].

    The mean of the cross products of the four pairs of adjacent neighbours. 0 where there is no
    depth and on the image's border. A neighbour without depth counts as very far away, as in
    Probe3D.
    """
    filled = depth.where(depth > 0, _FAR_AWAY).double()
    points = unproject(filled, focal, principal).movedim(-1, 0)
    centre = points[:, 1:-1, 1:-1]
    left, right = points[:, 1:-1, :-2] - centre, points[:, 1:-1, 2:] - centre
    above, below = points[:, :-2, 1:-1] - centre, points[:, 2:, 1:-1] - centre
    around = [(left, above), (above, right), (right, below), (below, left)]
    normals = torch.zeros_like(points)
    normals[:, 1:-1, 1:-1] = torch.stack([torch.linalg.cross(a, b, dim=0) for a, b in around]).mean(
        dim=0
    )
    return (normalize(normals, dim=0, eps=1e-30) * (depth > 0)).float()
