"""A model card for exported weights: Markdown with the metadata header that model hubs read."""

from __future__ import annotations

from typing import Any

from trainer.data.control import CONTROLS

CARD = """---
library_name: timm
license: other
tags: [image-feature-extraction, timm, 3d-aware, point-tracks]
---

# {timm_id}, trained {on_what}
{control}
{method}
Pixels are RGB in 0..1, minus {mean}, divided by {std}.

## Data

{data}

## Terms

{terms}
{licences}
{terms_note}
This card grants no licence. Before you publish these weights, settle their licence and state it in
the header of this file.

## Settings

Digest `{digest}`. `{description}` beside this file has all settings. The main ones:

| | |
|---|---|
{rows}
"""

TRACKS = """\
{timm_id}, trained for {steps} steps with pretrack's recipe `{recipe}` on stored point tracks, after
3DPoV, with {losses}.
Taken from the {taken_from}. `{file}` is a plain timm state dict; its features are the {features}.

```python
import timm

model = timm.create_model(
    "{timm_id}",
    pretrained=True,
    num_classes=0,
    pretrained_cfg_overlay=dict(file="{file}"){options},
)
# images: [B, 3, {size}, {size}], normalised as below
features = model.forward_features(images)[:, model.num_prefix_tokens:]
```
"""

MULTIVIEW = """\
{timm_id} with adapters through which the views of a scene see each other, trained for
{steps} steps with pretrack's `method: multiview` on stored point tracks, after
Multi-View Foundation Models.
`{file}` has the backbone, with LoRA merged into it; alone it is neither the base
model nor this one.
`{adapters}` has the adapters. `multiview_model.py` loads both and needs
torch and timm alone; features are {features}.

```python
from multiview_model import load

model = load("{description}")
# images: [sets, views, 3, {size}, {size}], normalised as below; cameras in pixels of the images,
# with OpenCV's axes and pixel centres at whole numbers. Leave them out if they are unknown.
features = model(images, intrinsics, world_to_camera)
```
"""

CONTROL = """
**Not trained on right tracks.** With `data.control: {control}`, {does}. Compare these weights with
those of the same training without a control.
"""

CARD_SETTINGS = {
    "starting weights": "model.weights",
    "trained blocks": "model.trainable_blocks",
    "adapters in them": "model.lora",
    "learning rate of the head": "optim.lr",
    "frames per sample": "data.frames",
    "stored frames between them": "data.step",
    "crop": "data.crop",
    "references per clip": "references.count",
    "clips per step": "run.batch_size",
    "seed": "run.seed",
}
"""Settings in the card's table: title → dotted key."""

MULTIVIEW_SETTINGS = {
    "starting weights": "model.weights",
    "blocks with adapters": "model.trainable_blocks",
    "LoRA in them": "model.lora",
    "learning rate": "optim.lr",
    "views per set": "data.frames",
    "stored frames between them": "data.step",
    "crop": "data.crop",
    "channels of camera rays": "multiview.ray_width",
    "weight of staying near the base model": "multiview.keep",
    "sets per step": "run.batch_size",
    "seed": "run.seed",
}
"""The same for a multi-view model."""


def model_card(description: dict[str, Any], file: str) -> str:
    """Return the card of the weights `file`, from their description (`trainer.export`)."""
    settings = description["settings"]
    control = settings["data"]["control"]
    rows = []
    multiview = "multiview" in description
    for title, key in (MULTIVIEW_SETTINGS if multiview else CARD_SETTINGS).items():
        part, name = key.split(".")
        rows.append(f"| {title} | {settings[part][name]} |")
    snapshots = [
        f"- `{snapshot['out']}`, snapshot `{snapshot['snapshot']}`"
        for snapshot in description["snapshots"]
    ]
    footage = []
    if trained_on := description.get("trained_on", {}).get("sequences"):
        footage = [
            f"The file's metadata have digests of the names of the {trained_on} sequences that "
            "these weights were trained on."
        ]
    fields = {
        "timm_id": description["timm_id"],
        "steps": description["step"],
        "features": description["features"],
        "file": file,
        "description": file.replace(".safetensors", ".json"),
        "size": description["img_size"],
    }
    if multiview:
        method = MULTIVIEW.format(
            **fields, adapters=file.replace(".safetensors", ".multiview.safetensors")
        )
    else:
        method = TRACKS.format(
            **fields,
            recipe=settings["recipe"],
            losses=_losses(settings["loss"]),
            taken_from=description["taken_from"],
            options=f", **{description['options']}" if description["options"] else "",
        )
    return CARD.format(
        timm_id=description["timm_id"],
        on_what="on point tracks" if control == "none" else "as a control",
        control=""
        if control == "none"
        else CONTROL.format(control=control, does=CONTROLS[control]),
        method=method,
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        data="\n".join([*snapshots, "", f"Split `{settings['data']['split']}`.", *footage]),
        terms="\n".join(f"- {terms}" for terms in description["terms"])
        or "The videos' tables state no terms.",
        licences="".join(
            f"\nThe data: {licences}." for licences in description.get("licences", [])
        ),
        terms_note=description["terms_note"],
        digest=description["settings_digest"],
        description=fields["description"],
        rows="\n".join(rows),
    )


def _losses(loss: dict[str, Any]) -> str:
    """Return a phrase that names the losses in use and their weights, from the loss settings.

    A custom loss is named too: its settings have a `weight` like those of pretrack's losses.
    """
    added = {
        name: part["weight"]
        for name, part in loss.items()
        if isinstance(part, dict) and "weight" in part
    }
    weights = {
        name: weight for name, weight in ({"sorting": loss["sorting"]} | added).items() if weight
    }
    details = f" (objective `{loss['objective']}`, sorter `{loss['sorter']}`)"
    summands = [
        f"{weight:g} x `{name}`" + (details if name == "sorting" else "")
        for name, weight in weights.items()
    ]
    return ("the loss " if len(summands) == 1 else "the losses ") + " + ".join(summands)
