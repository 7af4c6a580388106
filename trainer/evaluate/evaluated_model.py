"""A model under evaluation: a backbone with its weights, and how its pixels are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError

from shards.errors import SettingsError
from trainer.data.settings import DataSettings
from trainer.export import exported_weights, read_description
from trainer.model.backbone import Backbone, make_backbone
from trainer.model.weights import split_part
from trainer.multiview.multiview_model import MultiviewModel
from trainer.multiview.multiview_model import load as load_multiview
from trainer.training_footage import UNKNOWN, TrainingFootage, training_footage


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A backbone with its weights, under the name that it has in results.

    where:     the location given on the command line
    file:      path of the weight file, or `hub` or `random`
    digest:    xxh3-64 of that file, "" if there is no file
    size:      side in pixels of the images that it was trained on
    mean, std: RGB normalisation, for pixel values from 0 to 1
    trained_on: digests of the footage that it was trained on
    multiview:  the model that encodes several views together; None for a plain backbone. `backbone`
                then encodes each image as a set of one, without a camera
    """

    name: str
    where: str
    file: str
    digest: str
    backbone: Backbone
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_on: TrainingFootage = UNKNOWN
    multiview: MultiviewModel | None = None

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.patch

    @property
    def uses_cameras(self) -> bool:
        """Whether the rays of cameras change its features."""
        return self.multiview is not None and self.multiview.adapters.rays is not None

    def to_json(self) -> dict[str, Any]:
        """Describe the model for results."""
        return {
            "where": self.where,
            "weights": self.file,
            "weights_xxh3_64": self.digest,
            "timm_id": self.backbone.timm_id,
            "patch": self.patch,
            "width": self.backbone.width,
            "trained_at": self.size,
            "mean": self.mean,
            "std": self.std,
            "trained_on": self.trained_on.to_json(),
            "multiview": self.multiview is not None,
        }


def load_evaluated_models(models: Sequence[str], device: str | None) -> list[EvaluatedModel]:
    """Load the models given as NAME=WHERE onto a device.

    device: None for CUDA if there is a GPU, otherwise the CPU

    Raises SettingsError, in one sentence, for a wrong device, a wrong name or no such model.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # AssertionError: torch is built without CUDA
        raise SettingsError(
            f"torch sees no device '{device}' here: "
            "give '--device cpu', or 'cuda' if there is a GPU"
        ) from error
    named = [model.partition("=") for model in models]
    for name, equals, where in named:
        if not (name and equals and where):
            raise SettingsError(
                f"'--model {name}{equals}{where}' should be NAME=WHERE, such as trained=runs/my-run"
            )
    names = [name for name, _, _ in named]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise SettingsError(
            f"two models are called '{repeated.pop()}': give each '--model' its own name"
        )
    evaluated = [load_evaluated_model(name, where) for name, _, where in named]
    for model in evaluated:
        model.backbone.to(device)
    return evaluated


def load_evaluated_model(name: str, where: str) -> EvaluatedModel:
    """Load a model from a run's folder, from exported weights, or by a backbone's name.

    where: RUN, RUN:first, FILE, BACKBONE:FILE, BACKBONE:FILE:PART, BACKBONE:hub or BACKBONE:random

    Raises SettingsError if there is no such model, or if the description beside exported weights
    does not say which backbone they belong to.
    """
    path, which = _run_and_which(where)
    if path.is_dir():
        exports = exported_weights(path)
        if not exports:
            raise SettingsError(
                f"{path} holds no exported weights: it should be the 'run.out' of a training run"
            )
        return _from_export(name, where, exports[0 if which == "first" else -1])
    if path.is_file():
        return _from_export(name, where, path)
    backbone, colon, weights = where.partition(":")
    if where in ("hub", "random"):
        raise SettingsError(
            f"weights '{where}' need a backbone's name: write {name}=BACKBONE:{where}"
        )
    if not colon:
        raise SettingsError(f"there is no run and no file {where}: write {name}=BACKBONE:FILE")
    if weights in ("first", "last"):
        raise SettingsError(
            f"there is no run {backbone}: "
            f"give the 'run.out' of a training run, {name}=RUN:{weights}"
        )
    torch.manual_seed(0)  # random weights are the same every time
    default = {field: DataSettings.model_fields[field].default for field in ("size", "mean", "std")}
    return EvaluatedModel(
        name=name,
        where=where,
        file=weights,
        digest=_digest(weights),
        backbone=make_backbone(backbone, weights).eval(),
        trained_on=training_footage(weights),
        **default,
    )


def _run_and_which(where: str) -> tuple[Path, str]:
    """Split `RUN:first` and `RUN:last` into path and word; anything else is a path, with "last"."""
    for which in ("first", "last"):
        path = Path(where.removesuffix(f":{which}"))
        if where.endswith(f":{which}") and path.is_dir():
            return path, which
    return Path(where), "last"


def _from_export(name: str, where: str, path: Path) -> EvaluatedModel:
    """Load weights that a run exported. Raises SettingsError if their description lacks a key."""
    description = read_description(path)
    multiview = _load_multiview(path) if "multiview" in description else None
    try:
        return EvaluatedModel(
            name=name,
            where=where,
            file=str(path),
            digest=_digest(str(path)),
            backbone=_single_views(multiview, description["timm_id"])
            if multiview
            else make_backbone(description["timm_id"], str(path), description["options"]).eval(),
            size=description["img_size"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            trained_on=training_footage(str(path)),
            multiview=multiview,
        )
    except KeyError as error:
        raise SettingsError(
            f"the description beside {path} lacks {error}: write {name}=BACKBONE:{path}"
        ) from error


def _load_multiview(path: Path) -> MultiviewModel:
    """Load an exported multi-view model. Raises SettingsError if its files do not fit."""
    try:
        return load_multiview(path.with_suffix(".json"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"{path} is a part of a multi-view model that cannot be loaded ({reason}): keep all "
            "files of its folder together"
        ) from error


def _single_views(model: MultiviewModel, timm_id: str) -> Backbone:
    """Return the backbone of a multi-view model, which encodes each image as a set of one."""
    backbone = Backbone(model.backbone, timm_id)
    backbone.add_module("adapters", model.adapters)  # moves to a device with it
    return backbone.eval()


def _digest(weights: str) -> str:
    """Compute the xxh3-64 of a weight file; "" for `hub` and `random`."""
    path, _ = split_part(weights)
    return xxhash.xxh3_64_hexdigest(path.read_bytes()) if path.is_file() else ""
