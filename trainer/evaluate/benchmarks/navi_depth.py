"""Depth and surface normals on NAVI by a DPT probe: how much of an object's shape do frozen features hold? After Probe3D.

The probe (`trainer.evaluate.benchmarks.dpt_probe`) is trained on the multiview photographs and scored on the wild sets. Probe3D computes its true
normals with the principal point in the corner of the crop: those of a plane tilted by 45 degrees are some 12 to 21 degrees off.
`snorm_gt: probe3d` does the same, for comparison with its table; `true` puts it where it is and leaves out silhouettes, where depth
has no neighbour.

Two things are not Probe3D's: photographs are shuffled in every epoch (its code does so on several GPUs, not on one), and colours
are jittered before they are normalised, as its comments say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize
from torch.utils.data import DataLoader, Dataset

from manifests.fingerprint import fingerprint_lines
from trainer.evaluate.benchmarks.dpt_probe import (
    BINS,
    Dpt,
    depth_loss,
    depth_metrics,
    depth_of,
    fitted_scale_and_shift,
    normals_loss,
    normals_metrics,
    train_probe,
)
from trainer.evaluate.benchmarks.image_datasets import NAVI
from trainer.evaluate.benchmarks.navi_data import (
    Crop,
    Photograph,
    list_views,
    nearest,
    read_crop,
    unprojected,
)
from trainer.evaluate.benchmarks.settings import Normals, ProbeSettings
from trainer.evaluate.features import LevelFeatures
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

Task = Literal["depth", "normals"]

_NOWHERE = 1e6  # metres: the depth Probe3D gives to pixels without one, for normals


@dataclass(frozen=True)
class ProbeResult:
    """What a probe reached, as means over the tested photographs (those that have a figure).

    figures: kind (`scale-aware`, `scale-invariant`; or `normals`) → metric → value; shares are in per cent
    images: the same for each photograph
    losses: the training loss of every step
    digest: of the lists of photographs trained and tested on
    """

    task: Task
    settings: ProbeSettings
    patch: int
    figures: dict[str, dict[str, float]]
    images: dict[str, dict[str, dict[str, float]]]
    losses: tuple[float, ...]
    trained_on: int
    digest: str

    def rows(self) -> list[Row]:
        """Name, then each metric."""
        return [[kind, *metrics.values()] for kind, metrics in self.figures.items()]

    def by_item(self) -> dict[str, dict[str, float]]:
        """Every metric of each photograph."""
        return {
            f"{kind}, {metric}": {
                name: values[kind][metric] for name, values in self.images.items()
            }
            for kind, metrics in self.figures.items()
            for metric in metrics
        }

    def paper_rows(self) -> dict[str, list[float]]:
        """None: papers draw these figures and do not print them."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Settings, figures, and those of every photograph."""
        found: dict[str, Any] = plain(
            {"dataset": NAVI.name, **asdict(self), "settings": self.settings.model_dump()}
        )
        return found

    def __str__(self) -> str:
        s = self.settings
        metrics = next(iter(self.figures.values()))
        kind = (
            f", normals as {s.snorm_gt}"
            if self.task == "normals"
            else ", relative"
            if s.relative
            else ""
        )
        unit = "degrees" if self.task == "normals" else "metres"
        header = [
            "",
            *(f"{name} ({unit})" if name == "rmse" else f"{name} (%)" for name in metrics),
        ]
        return (
            f"NAVI wild_set, {self.task} by a DPT probe{kind}, at {s.size} px, patches of {self.patch}\n"
            f"{table(header, self.rows(), 3)}\n"
            f"  {len(self.images)} photographs; probe trained on {self.trained_on} for {len(self.losses)} steps; list {self.digest}"
        )


@dataclass(frozen=True)
class _Batch:
    """images uint8 [B, 3, S, S], depth [B, S, S] (0 for none), normals [B, 3, S, S] and where they are valid [B, S, S]."""

    images: Tensor
    depth: Tensor
    normals: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> _Batch:
        return _Batch(
            *(
                part.to(device, non_blocking=True)
                for part in (self.images, self.depth, self.normals, self.valid)
            )
        )


class _Photographs(Dataset[tuple[Tensor, ...]]):
    """Photographs with depth and normals, colours jittered if they are for training."""

    def __init__(self, views: Sequence[Photograph], settings: ProbeSettings, train: bool) -> None:
        self.views, self.settings = views, settings
        self.jitter = _jitter if train and settings.jitter else None

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        s = self.settings
        crop = read_crop(self.views[index], s.size)
        normals, valid = crop_normals(crop, s.size, s.snorm_gt)
        image = crop.image if self.jitter is None else self.jitter(crop.image)
        return image, relative_depth(crop.depth) if s.relative else crop.depth, normals, valid


def _jitter(image: Tensor) -> Tensor:
    from torchvision.transforms import v2  # costs half a second and 60 MB: only who trains pays

    changed: Tensor = v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.2)], p=0.8)(image)
    return changed


def evaluate_depth(
    features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings | None = None
) -> ProbeResult:
    """Depth on NAVI in the folder `root`, from four maps of features. `patch` is only told in the result.

    Raises SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or broken.
    """
    return _evaluate("depth", features, patch, root, settings or ProbeSettings())


def evaluate_normals(
    features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings | None = None
) -> ProbeResult:
    """Surface normals on NAVI, as `evaluate_depth`."""
    return _evaluate("normals", features, patch, root, settings or ProbeSettings())


def _evaluate(
    task: Task, features: LevelFeatures, patch: int, root: Path, settings: ProbeSettings
) -> ProbeResult:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        views = {
            name: list_views(root, name)[:: settings.every] for name in ("multiview", "wild_set")
        }  # type: ignore[arg-type]
        train, test = (_Photographs(views[name], settings, name == "multiview") for name in views)
        levels = features(train[0][0][None])
        probe = Dpt(
            [level.shape[-1] for level in levels], BINS if task == "depth" else 4, settings.hidden
        ).to(levels[0].device)
        batches = math.ceil(len(train) / settings.batch)
        steps = settings.steps or math.ceil(settings.epochs * batches)

        def losses() -> Iterator[Tensor]:
            for batch in _batches(train, settings, levels[0].device, shuffled=True):
                found = predict(task, probe, features(batch.images), settings)
                if task == "depth":
                    yield depth_loss(found, batch.depth)
                else:
                    yield normals_loss(found, batch.normals, batch.valid)

        seen = train_probe(
            probe, losses, steps, steps * settings.warmup / settings.epochs, settings.rate
        )
        images = _tested(task, probe.eval(), features, test, settings, levels[0].device)
    kinds = next(iter(images.values()))
    figures = {
        kind: {
            name: finite_mean([values[kind][name] for values in images.values()])
            for name in metrics
        }
        for kind, metrics in kinds.items()
    }
    digest = fingerprint_lines(
        [f"{name} {view.name}" for name, listed in views.items() for view in listed]
    )
    return ProbeResult(task, settings, patch, figures, images, tuple(seen), len(train), digest)


def _batches(
    photographs: _Photographs, settings: ProbeSettings, device: torch.device, shuffled: bool
) -> Iterator[_Batch]:
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        photographs,
        settings.batch,
        shuffle=shuffled,
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
    )
    for parts in loader:
        yield _Batch(*parts).to(device)


@torch.no_grad()
def _tested(
    task: Task,
    probe: Dpt,
    features: LevelFeatures,
    test: _Photographs,
    settings: ProbeSettings,
    device: torch.device,
) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of every photograph, by its name."""
    found: list[dict[str, dict[str, float]]] = []
    for batch in _batches(test, settings, device, shuffled=False):
        said = predict(task, probe, features(batch.images), settings)
        if task == "depth":
            kinds = {
                "scale-aware": depth_metrics(said, batch.depth),
                "scale-invariant": depth_metrics(
                    fitted_scale_and_shift(said, batch.depth), batch.depth
                ),
            }
        else:
            kinds = {"normals": normals_metrics(said[:, :3], batch.normals, batch.valid)}
        for i in range(len(said)):
            found.append(
                {
                    kind: {name: _figure(name, values[i]) for name, values in m.items()}
                    for kind, m in kinds.items()
                }
            )
    return {view.name: values for view, values in zip(test.views, found, strict=True)}


def _figure(name: str, value: Tensor) -> float:
    return float(value) * (1 if name == "rmse" else 100)


def predict(task: Task, probe: Dpt, levels: Sequence[Tensor], settings: ProbeSettings) -> Tensor:
    """Depth [B, S, S] in metres, or normals and their kappa [B, 4, S, S], at the photographs' size."""
    outputs, size = probe(levels), (settings.size, settings.size)
    if task == "normals":
        return interpolate(outputs, size, mode="bicubic", align_corners=True)
    return interpolate(
        depth_of(outputs, settings.farthest)[:, None], size, mode="bilinear", align_corners=True
    )[:, 0]


def relative_depth(depth: Tensor) -> Tensor:
    """Depth [S, S] mapped to 0.01 at the nearest and 1 at the farthest point; 0, for none, stays."""
    seen = depth > 0
    low, high = depth[seen].min(), depth[seen].max()
    return ((depth - low) / (high - low).clamp(min=0.01) * 0.99 + 0.01).where(seen, 0)


def crop_normals(crop: Crop, size: int, how: Normals) -> tuple[Tensor, Tensor]:
    """Unit normals [3, size, size] that point away from the camera, and where they are valid [size, size]."""
    row, column = crop.corner
    principal = (0.0, 0.0) if how == "probe3d" else (size / 2 - column, size / 2 - row)
    normals = surface_normals(crop.box, crop.box_focal, principal)
    valid = crop.box > 0
    if how == "true":
        hole = (~valid).float()[None, None]
        hole = torch.nn.functional.pad(hole, (1, 1, 1, 1), value=1.0)
        valid = max_pool2d(hole, 3, stride=1)[0, 0] == 0
    return nearest(normals, size, size), nearest(valid, size, size)


def surface_normals(depth: Tensor, focal: float, principal: tuple[float, float]) -> Tensor:
    """Unit normals [3, H, W] of the places that a depth image [H, W] shows: the mean of the four cross products of neighbours.

    0 where there is no depth and on the image's border. Depth of 0 counts as very far, as in Probe3D.
    """
    places = unprojected(depth.where(depth > 0, _NOWHERE).double(), focal, principal).movedim(-1, 0)
    centre = places[:, 1:-1, 1:-1]
    left, right = places[:, 1:-1, :-2] - centre, places[:, 1:-1, 2:] - centre
    above, below = places[:, :-2, 1:-1] - centre, places[:, 2:, 1:-1] - centre
    around = [(left, above), (above, right), (right, below), (below, left)]
    normals = torch.zeros_like(places)
    normals[:, 1:-1, 1:-1] = torch.stack([torch.linalg.cross(a, b, dim=0) for a, b in around]).mean(
        dim=0
    )
    return (normalize(normals, dim=0, eps=1e-30) * (depth > 0)).float()
