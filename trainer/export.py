"""Export of trained weights: a timm state dict as safetensors, its description, and a model card.

    OUT/weights/step_00000000.safetensors, .json      the backbone before the first step
    OUT/weights/step_00008680.safetensors, .json      ... and after the last
    OUT/weights/README.md                             a model card for the latest

The weights load with `timm.create_model(timm_id, pretrained=True, num_classes=0,
pretrained_cfg_overlay=dict(file=PATH), **options)`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from manifests.fingerprint import fingerprint
from manifests.snapshot import Snapshot
from manifests.tables import read_table
from manifests.terms import terms_of
from shards.errors import SettingsError
from shards.files import atomic_write
from trainer.config import TrainSettings
from trainer.model.backbone import Backbone
from trainer.model.lora import without_adapters
from trainer.model_card import model_card
from trainer.training_footage import METADATA_KEY, UNKNOWN, TrainingFootage

FEATURES = "patch tokens of the last block after the final norm"
MULTIVIEW_FEATURES = "{features} patch tokens after the last adapter"


def weights_path(out: Path, step: int) -> Path:
    """Return the path of the weights after `step` steps."""
    return out / "weights" / f"step_{step:08d}.safetensors"


def export_weights(
    backbone: Backbone,
    settings: TrainSettings,
    snapshots: Sequence[Snapshot],
    step: int,
    trained_on: TrainingFootage = UNKNOWN,
    multiview: dict[str, Any] | None = None,
) -> Path:
    """Write a backbone's weights, description and model card; return the weights' path.

    multiview: what to say of the multi-view model that the backbone belongs to

    LoRA is merged into the weights, and what they were trained on is in their metadata. Every file
    is written atomically, the weights first.
    """
    path = weights_path(settings.run.out, step)
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in without_adapters(backbone).state_dict().items()
    }
    atomic_write(path, _safetensors(state, {METADATA_KEY: trained_on.to_metadata()}))
    used = settings.model_dump(mode="json")
    description = {
        "timm_id": backbone.timm_id,
        "options": settings.model.options,
        "img_size": settings.data.size,
        "mean": settings.data.mean,
        "std": settings.data.std,
        "features": MULTIVIEW_FEATURES.format(**multiview) if multiview else FEATURES,
        "taken_from": settings.run.export,
        "step": step,
        "settings_digest": fingerprint(used),
        "settings": used,
        "snapshots": [
            {"out": str(snapshot.out), "snapshot": snapshot.name} for snapshot in snapshots
        ],
        "trained_on": trained_on.to_json(),
        "terms": sorted({terms for snapshot in snapshots for terms in _terms(snapshot)}),
        "licences": sorted({_licences(snapshot) for snapshot in snapshots}),
        **({"part_of": "multiview", "multiview": multiview} if multiview else {}),
        "terms_note": "The starting weights and the videos have terms of their own, "
        "which may apply to these weights too.",
    }
    atomic_write(
        path.with_suffix(".json"), json.dumps(description, indent=1, ensure_ascii=False).encode()
    )
    atomic_write(path.with_name("README.md"), model_card(description, path.name).encode())
    return path


def _safetensors(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with further metadata: the same bytes for the same content.

    The library writes more than one key of metadata in an order that differs between processes.
    """
    data = save(state, {"format": "pt"})
    # The file begins with the length of its JSON header; tensors start at a multiple of 8 bytes.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] |= metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])


def _terms(snapshot: Snapshot) -> list[str]:
    """Return the distinct terms of a snapshot's videos; videos without terms are skipped."""
    videos = read_table(snapshot.folder / "videos.parquet", ["terms"])
    return [terms for terms in videos["terms"].unique().to_pylist() if terms]


def _licences(snapshot: Snapshot) -> str:
    """Return what the licences of a snapshot's videos and tracks allow, in words."""
    videos = read_table(snapshot.folder / "videos.parquet", ["dataset", "terms"])
    return terms_of(videos, snapshot.settings.get("tracks", {})).sentence()


def read_description(weights: Path) -> dict[str, Any]:
    """Return the description beside exported weights.

    Raises SettingsError if it is missing or not JSON.
    """
    path = weights.with_suffix(".json")
    try:
        description: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{weights} has no readable description {path.name} beside it ({error}): "
            "name its backbone yourself"
        ) from error
    return description


def exported_weights(out: Path) -> list[Path]:
    """Return all exported weights of a run's folder, the earliest step first."""
    paths = sorted((out / "weights").glob("step_*.safetensors"))
    # The adapters of a multi-view model are a part of the export whose name they begin with.
    return [path for path in paths if not path.stem.endswith(".multiview")]
