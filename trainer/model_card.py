"""A model card for exported weights: Markdown with the head that model hubs read."""

from __future__ import annotations

from typing import Any

CARD = """---
library_name: timm
license: other
tags: [image-feature-extraction, timm, 3d-aware, point-tracks]
---

# {timm_id}, trained on point tracks

{timm_id}, {steps} steps of pretrack's recipe `{recipe}` on stored point tracks, after 3DPoV, with {losses}.
Taken from the {taken_from}. `{file}` is a plain timm state dict; its features are the {features}.

```python
import timm

model = timm.create_model(
    "{timm_id}", pretrained=True, num_classes=0, pretrained_cfg_overlay=dict(file="{file}"){options}
)
features = model.forward_features(images)[:, model.num_prefix_tokens:]  # images: [B, 3, {size}, {size}], normalised as below
```

Pixels are RGB in 0..1, minus {mean}, divided by {std}.

## Data

{data}

## Terms

{terms}

{terms_note}
No licence is given here: whoever publishes these weights has to settle it first, and write it at the head of this file.

## Settings

Digest `{digest}`. `{description}` beside this file has every one of them. The most telling:

| | |
|---|---|
{rows}
"""

TELLING = {
    "starting weights": "model.weights",
    "trained blocks": "model.trainable_blocks",
    "adapters in them": "model.lora",
    "learning rate of the head": "optim.lr",
    "frames a sample": "data.frames",
    "stored frames between two": "data.step",
    "crop": "data.crop",
    "references a clip": "references.count",
    "clips a step": "run.batch_size",
    "seed": "run.seed",
}


def model_card(description: dict[str, Any], file: str) -> str:
    """The card of weights in `file`, from their description (`trainer.export`)."""
    settings = description["settings"]
    values = {
        title: settings[part][name]
        for title, (part, name) in ((t, key.split(".")) for t, key in TELLING.items())
    }
    used = [
        f"- `{snapshot['out']}`, snapshot `{snapshot['snapshot']}`"
        for snapshot in description["snapshots"]
    ]
    return CARD.format(
        timm_id=description["timm_id"],
        steps=description["step"],
        recipe=settings["recipe"],
        losses=_losses(settings["loss"]),
        taken_from=description["taken_from"],
        features=description["features"],
        file=file,
        options=f", **{description['options']}" if description["options"] else "",
        size=description["img_size"],
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        data="\n".join([*used, "", f"Split `{settings['data']['split']}`."]),
        terms="\n".join(f"- {terms}" for terms in description["terms"])
        or "The videos' tables state no terms.",
        terms_note=description["terms_note"],
        digest=description["settings_digest"],
        description=file.replace(".safetensors", ".json"),
        rows="\n".join(f"| {title} | {value} |" for title, value in values.items()),
    )


def _losses(loss: dict[str, Any]) -> str:
    """The losses that were used, with their weights, from their settings; also those of others, which have a `weight` like ours."""
    others = {
        name: part["weight"]
        for name, part in loss.items()
        if isinstance(part, dict) and "weight" in part
    }
    weights = {
        name: weight for name, weight in ({"sorting": loss["sorting"]} | others).items() if weight
    }
    sorting = f" (objective `{loss['objective']}`, sorter `{loss['sorter']}`)"
    named = [
        f"{weight:g} x `{name}`" + (sorting if name == "sorting" else "")
        for name, weight in weights.items()
    ]
    return ("the loss " if len(named) == 1 else "the losses ") + " + ".join(named)
