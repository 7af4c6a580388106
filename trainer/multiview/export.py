"""Export of a multi-view model: merged timm weights, an adapter file, and a loader of one file.

OUT/weights/step_00001000.safetensors               the backbone, LoRA merged into it
OUT/weights/step_00001000.multiview.safetensors     adapters and the embedding of rays
OUT/weights/step_00001000.json                      what both are, for the loader
OUT/weights/multiview_model.py                      loads them with torch and timm alone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from manifests.snapshot import Snapshot
from shards.files import atomic_write
from trainer.export import export_weights, weights_path
from trainer.model.backbone import timm_arguments
from trainer.multiview import multiview_model
from trainer.multiview.settings import MultiviewSettings
from trainer.multiview.step import MultiviewStep
from trainer.training_footage import TrainingFootage

LOADER = "multiview_model.py"


def adapters_path(weights: Path) -> Path:
    """Return the path of the adapters beside exported weights."""
    return weights.with_suffix(".multiview.safetensors")


def export_multiview(
    model: MultiviewStep, snapshots: Sequence[Snapshot], step: int, trained_on: TrainingFootage
) -> Path:
    """Write all files of an export; return the path of the backbone's weights."""
    settings = model.settings
    path = weights_path(settings.run.out, step)
    adapters = {
        name: value.detach().cpu().contiguous()
        for name, value in model.adapters.state_dict().items()
    }
    atomic_write(adapters_path(path), save(adapters, {"format": "pt"}))
    atomic_write(path.with_name(LOADER), Path(multiview_model.__file__).read_bytes())
    return export_weights(
        model.backbone, settings, snapshots, step, trained_on, describe_model(model)
    )


def describe_model(model: MultiviewStep) -> dict[str, Any]:
    """Return what `multiview_model.load` needs beside the weights."""
    backbone, settings = model.backbone, model.settings.model
    return describe(
        model.multiview,
        blocks=len(backbone.model.blocks) - backbone.frozen,
        timm_arguments=timm_arguments(backbone.timm_id, settings.options),
    )


def describe(
    settings: MultiviewSettings, *, blocks: int, timm_arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the part `multiview` of a description."""
    architecture = {"heads", "ray_width", "shared", "pool", "scale", "features"}
    return {
        **settings.model_dump(mode="json", include=architecture),
        "blocks": blocks,
        "timm_arguments": timm_arguments,
        "axes": "opencv",
        "origin": "view 0",
        "pixel_centres": "integers",
    }
