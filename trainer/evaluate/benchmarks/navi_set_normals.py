"""Surface normals on NAVI in the axes of a set's first view: do features know where a view looks?

After Multi-View Foundation Models. Photographs in a row of a multiview collection are a set, and
normals are those of the object in the first one's axes. The last tenth of each object's collections
is for testing. Only features that know how views lie to each other can tell them all: a model that
encodes each image alone can at best tell the first view's.

Unlike the published probe, which has attention across views, the probe is the DPT of
`navi-normals`, which sees one view at a time: what joins views is in the features. Sets do not
overlap, neither in training nor in testing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manifests.fingerprint import fingerprint_lines
from shards.errors import SettingsError
from trainer.data.loader import explain_killed_workers
from trainer.evaluate.benchmarks.dpt_probe import (
    Dpt,
    in_shown_unit,
    metrics_table,
    normals_loss,
    normals_metrics,
    train_probe,
)
from trainer.evaluate.benchmarks.image_datasets import NAVI
from trainer.evaluate.benchmarks.navi_data import (
    Photograph,
    list_photographs,
    read_crop,
    shown_camera,
)
from trainer.evaluate.benchmarks.navi_depth import crop_normals, jitter_colours, predict
from trainer.evaluate.benchmarks.settings import SetNormalsSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import (
    ShownCameras,
    grey_images,
    level_features,
    set_level_features,
)
from trainer.evaluate.results import finite_mean, result_json
from trainer.evaluate.sets.encoding import WHOLE, Encoding

SetLevels = Callable[[Tensor, ShownCameras], Sequence[Tensor]]
"""uint8 RGB images [M, 3, S, S] of one set and their cameras → four float32 maps [M, h, w, D]."""

ENCODINGS = (
    WHOLE,
    Encoding("each view alone", views="single"),
    Encoding("no cameras", cameras="none"),
    Encoding("blank images", blank=True),
)
"""How a model that uses cameras encodes a set; a probe is trained for each."""
WITHOUT_CAMERAS = (
    Encoding("", cameras="none"),
    Encoding("each view alone", views="single", cameras="none"),
)
"""The same for a multi-view model without rays."""

_TESTED = 0.1  # share of an object's collections, at least one of several


@dataclass(frozen=True)
class SetNormalsResult:
    """Metrics of a trained probe: means over the tested photographs that have a value.

    figures: metric → value; shares are in per cent
    images:  the same for each photograph, by its name
    losses:  training loss of every step
    sets:    number of sets that were trained on
    digest:  of the lists of photographs trained and tested on
    """

    settings: SetNormalsSettings
    patch: int
    figures: dict[str, float]
    images: dict[str, dict[str, float]]
    losses: tuple[float, ...]
    sets: int
    digest: str

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return every metric of each photograph."""
        return {
            f"normals, {metric}": {name: values[metric] for name, values in self.images.items()}
            for metric in self.figures
        }

    def paper_rows(self) -> dict[str, list[float]]:
        """Return no table: the paper's values were not at hand."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return settings, metrics, and the metrics of every photograph."""
        return result_json(NAVI.name, self)

    def __str__(self) -> str:
        s = self.settings
        return (
            f"NAVI multiview, normals in the first view's axes by a DPT probe, as {s.snorm_gt}, "
            f"sets of {s.views}, at {s.size} px, patches of {self.patch}\n"
            f"{metrics_table({'normals': self.figures}, 'degrees')}\n"
            f"  {len(self.images)} photographs; probe trained on {self.sets} sets for "
            f"{len(self.losses)} steps; list {self.digest}"
        )


class PhotographSets(Dataset[tuple[Tensor, ...]]):
    """Sets of M photographs: images, normals, where these are valid, intrinsics and poses."""

    def __init__(
        self, sets: Sequence[Sequence[Photograph]], settings: SetNormalsSettings, train: bool
    ) -> None:
        self.sets, self.settings = sets, settings
        self.jitter = jitter_colours if train and settings.jitter else None

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        s, first = self.settings, self.sets[index][0]
        views = []
        for photograph in self.sets[index]:
            crop = read_crop(photograph, s.size)
            normals, valid = crop_normals(crop, s.size, s.snorm_gt)
            to_first = torch.from_numpy(first.rotation @ photograph.rotation.T).to(normals)
            turned = torch.einsum("ij,jhw->ihw", to_first, normals)
            image = crop.image if self.jitter is None else self.jitter(crop.image)
            views.append((image, turned, valid, *shown_camera(photograph, crop)))
        return tuple(torch.stack(parts) for parts in zip(*views, strict=True))


def evaluate_normals_in_sets(
    model: EvaluatedModel, root: Path, settings: SetNormalsSettings, *, controls: bool
) -> dict[str, SetNormalsResult]:
    """Train and score a probe on a model's features in each encoding, by its title.

    controls: whether a multi-view model has rows beside its own
    """
    return {
        encoding.title: train_and_score(set_levels(model, encoding), model.patch, root, settings)
        for encoding in set_encodings(model)[: None if controls else 1]
    }


def set_encodings(model: EvaluatedModel) -> tuple[Encoding, ...]:
    """Return the ways to encode a set; a plain model has only the first."""
    return ENCODINGS if model.uses_cameras else WITHOUT_CAMERAS


def set_levels(model: EvaluatedModel, encoding: Encoding) -> SetLevels:
    """Return an encoder of sets, as an encoding says; a plain model sees each image alone."""
    if model.multiview is None:
        alone = level_features(model)
        return lambda images, _: alone(images)
    encode = set_level_features(model)

    def features(images: Tensor, cameras: ShownCameras) -> Sequence[Tensor]:
        shown = grey_images(images, model) if encoding.blank else images
        given = cameras if encoding.cameras == "right" else None
        if encoding.views == "single":
            each = [
                encode(shown[i : i + 1], given.only(i) if given else None)
                for i in range(len(shown))
            ]
            return [torch.cat(level) for level in zip(*each, strict=True)]
        return encode(shown, given)

    return features


def list_sets(
    root: Path, settings: SetNormalsSettings
) -> tuple[list[list[Photograph]], list[list[Photograph]]]:
    """Return the sets to train on, and those to test on.

    Of the collections of an object with several, the last tenth is tested on, at least one. Raises
    SettingsError if either list is empty.
    """
    train: list[list[Photograph]] = []
    test: list[list[Photograph]] = []
    photographs = list_photographs(root, "multiview")
    for _, of_object in groupby(photographs, key=lambda photograph: photograph.folder.parent):
        by_folder = groupby(of_object, key=lambda photograph: photograph.folder)
        collections = [list(of_folder)[:: settings.every] for _, of_folder in by_folder]
        tested = math.ceil(_TESTED * len(collections)) if len(collections) > 1 else 0
        for number, collection in enumerate(collections):
            starts = range(0, len(collection) - settings.views + 1, settings.views)
            sets = [collection[start : start + settings.views] for start in starts]
            (test if number >= len(collections) - tested else train).extend(sets)
    if not (train and test):
        raise SettingsError(
            f"{root} has no collections with {settings.views} photographs to train and to test "
            "on: lower '--views' or '--every'"
        )
    return train, test


def train_and_score(
    levels: SetLevels, patch: int, root: Path, settings: SetNormalsSettings
) -> SetNormalsResult:
    """Train and score a probe. Raises SettingsError or PretrackError, in one sentence."""
    # Draws follow from the seed, and the caller's generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        train, test = list_sets(root, settings)
        first = PhotographSets(test, settings, train=False)[0]
        maps = levels(first[0], ShownCameras(*first[3:]))
        device = maps[0].device
        probe = Dpt([level.shape[-1] for level in maps], 4, settings.hidden).to(device)
        losses = _train(
            probe, levels, PhotographSets(train, settings, train=True), settings, device
        )
        images = _test(
            probe.eval(), levels, PhotographSets(test, settings, train=False), settings, device
        )
    metrics = next(iter(images.values()))
    names = [photograph.name for photographs in test for photograph in photographs]
    return SetNormalsResult(
        settings=settings,
        patch=patch,
        figures={m: finite_mean([values[m] for values in images.values()]) for m in metrics},
        images=images,
        losses=tuple(losses),
        sets=len(train),
        digest=fingerprint_lines(
            [f"train {p.name}" for photographs in train for p in photographs]
            + [f"test {name}" for name in names]
        ),
    )


def _train(
    probe: Dpt,
    levels: SetLevels,
    train: PhotographSets,
    settings: SetNormalsSettings,
    device: torch.device,
) -> list[float]:
    """Train the probe; return the loss of every step."""
    steps = settings.steps or math.ceil(settings.epochs * math.ceil(len(train) / settings.batch))

    def losses_of_epoch() -> Iterator[Tensor]:
        for maps, normals, valid in _batches(train, levels, settings, device, shuffle=True):
            outputs = predict("normals", probe, maps, settings)
            yield normals_loss(outputs, normals, valid)

    warmup = steps * settings.warmup / settings.epochs
    return train_probe(probe, losses_of_epoch, steps=steps, warmup=warmup, rate=settings.rate)


@torch.no_grad()
def _test(
    probe: Dpt,
    levels: SetLevels,
    test: PhotographSets,
    settings: SetNormalsSettings,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Score the probe: name of the photograph → metric → value."""
    images: list[dict[str, float]] = []
    for maps, normals, valid in _batches(test, levels, settings, device, shuffle=False):
        outputs = predict("normals", probe, maps, settings)
        metrics = normals_metrics(outputs[:, :3], normals, valid)
        images += [
            {name: in_shown_unit(name, v[i]) for name, v in metrics.items()}
            for i in range(len(outputs))
        ]
    names = [photograph.name for photographs in test.sets for photograph in photographs]
    return dict(zip(names, images, strict=True))


def _batches(
    sets: PhotographSets,
    levels: SetLevels,
    settings: SetNormalsSettings,
    device: torch.device,
    *,
    shuffle: bool,
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Yield features, normals and valid pixels of the photographs of a few sets at a time."""
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        sets, settings.batch, shuffle=shuffle, num_workers=settings.workers
    )
    with explain_killed_workers():
        for images, normals, valid, intrinsics, poses in loader:
            each = [
                levels(shown, ShownCameras(k, pose))
                for shown, k, pose in zip(images, intrinsics, poses, strict=True)
            ]
            maps = [torch.cat(level) for level in zip(*each, strict=True)]
            yield maps, normals.flatten(0, 1).to(device), valid.flatten(0, 1).to(device)
