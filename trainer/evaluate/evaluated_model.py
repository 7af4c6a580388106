"""What is judged: a backbone with the weights of a run, of a file or of timm, and how its pixels are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from shards.errors import SettingsError
from trainer.config import DataSettings
from trainer.export import exported_weights, read_description
from trainer.model.backbone import Backbone, make_backbone


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model that is judged, under the name that it goes by in results.

    where:  what was asked for
    file:   the weight file's path, or `hub` or `random`
    digest: xxh3-64 of that file, "" where there is none
    size:   side of the images that it was trained at, in pixels
    """

    name: str
    where: str
    file: str
    digest: str
    backbone: Backbone
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.patch

    def described(self) -> dict[str, Any]:
        """What a result says of it."""
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
        }


def load_evaluated_models(models: Sequence[str], device: str | None) -> list[EvaluatedModel]:
    """Load the models given as NAME=WHERE onto a device; None: CUDA if there is a GPU, else the CPU.

    Raises SettingsError, in one sentence, for a wrong device, a wrong name or no such model.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # the first from a torch that is built without CUDA
        raise SettingsError(
            f"'--device {device}' is none that torch sees here: give 'cpu', or 'cuda' where there is a GPU"
        ) from error
    pairs = [model.partition("=") for model in models]
    for name, equals, where in pairs:
        if not (name and equals and where):
            raise SettingsError(
                f"'--model {name}{equals}{where}' should be NAME=WHERE, such as trained=runs/my-run"
            )
    names = [name for name, _, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(
            f"two models are called '{twice.pop()}': give each '--model' its own name"
        )
    subjects = [load_evaluated_model(name, where) for name, _, where in pairs]
    for subject in subjects:
        subject.backbone.to(device)
    return subjects


def load_evaluated_model(name: str, where: str) -> EvaluatedModel:
    """A model from a run's folder, from weights that it exported, or as `BACKBONE:FILE`, `BACKBONE:hub` or `BACKBONE:random`.

    Raises SettingsError if there is nothing such, or if weights do not say whose they are.
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
            f"there is no run {backbone}: give the 'run.out' of a training run, {name}=RUN:{weights}"
        )
    torch.manual_seed(0)  # for random weights
    default = {field: DataSettings.model_fields[field].default for field in ("size", "mean", "std")}
    return EvaluatedModel(
        name, where, weights, _digest(weights), make_backbone(backbone, weights).eval(), **default
    )


def _run_and_which(where: str) -> tuple[Path, str]:
    """`RUN:first` and `RUN:last` as a path and which of its weights; anything else is a path."""
    for which in ("first", "last"):
        path = Path(where.removesuffix(f":{which}"))
        if where.endswith(f":{which}") and path.is_dir():
            return path, which
    return Path(where), "last"


def _from_export(name: str, where: str, path: Path) -> EvaluatedModel:
    described = read_description(path)
    try:
        backbone = make_backbone(described["timm_id"], str(path), described["options"]).eval()
        size, mean, std = described["img_size"], tuple(described["mean"]), tuple(described["std"])
    except KeyError as error:
        raise SettingsError(
            f"the description beside {path} lacks {error}: write {name}=BACKBONE:{path}"
        ) from error
    return EvaluatedModel(name, where, str(path), _digest(str(path)), backbone, size, mean, std)


def _digest(weights: str) -> str:
    return xxhash.xxh3_64_hexdigest(Path(weights).read_bytes()) if Path(weights).is_file() else ""
