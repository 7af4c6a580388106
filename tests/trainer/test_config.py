"""Recipes resolve to the values they promise, and settings that cannot work are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import yaml

from manifests.settings import load_settings
from shards.errors import SettingsError
from trainer.config import UPSTREAM, TrainSettings
from trainer.data.settings import DataSettings
from trainer.model.backbone import BACKBONES
from trainer.multiview.settings import MultiviewSettings

TRACK_RECIPES = ("upstream", "pretrack")
CONFIGS = Path(__file__).parents[2] / "configs" / "train"
README = Path(__file__).parents[2] / "README.md"
RECIPES = sorted(path for name in TRACK_RECIPES for path in CONFIGS.glob(f"{name}/*.yaml"))


def test_every_published_backbone_has_both_recipes() -> None:
    published = {name for name in BACKBONES if not name.endswith("_large")}
    for recipe in TRACK_RECIPES:
        assert {path.stem for path in RECIPES if path.parent.name == recipe} == published


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_load(path: Path) -> None:
    settings = load_settings(TrainSettings, path)
    assert settings.recipe == path.parent.name
    assert settings.model.backbone == path.stem
    assert settings.run.out == Path(f"runs/{path.parent.name}-{path.stem}")
    for part, values in UPSTREAM.items():
        for key, value in values.items():
            assert (getattr(getattr(settings, part), key) == value) == (
                settings.recipe == "upstream"
            ), key


@pytest.mark.parametrize("name", ["dinov2_reg_small", "dinov2_reg_small_published"])
def test_multiview_recipes_load(name: str) -> None:
    settings = load_settings(TrainSettings, CONFIGS / "multiview" / f"{name}.yaml")
    assert settings.run.out == Path(f"runs/multiview-{name}")
    assert settings.multiview
    assert settings.data.cameras
    assert settings.model.lora
    assert (settings.model.lora.rank, settings.model.lora.layers) == (32, ("qkv",))
    default = MultiviewSettings()
    published = {
        "scale": "first_view",
        "drop_poses": 0.0,
        "fewer_views": 0.0,
        "directions": "forward",
        "cells": "corners",
        "features": "raw",
    }
    expected = default.model_copy(update=published) if "published" in name else default
    assert settings.multiview == expected


def test_settings_of_earlier_versions_keep_their_digests(
    settings: Callable[..., TrainSettings],
) -> None:
    """`method` and `multiview` are written only where they say something."""
    assert {"method", "multiview"}.isdisjoint(settings().model_dump(mode="json"))
    other = load_settings(TrainSettings, CONFIGS / "multiview" / "dinov2_reg_small.yaml")
    assert TrainSettings.model_validate(other.model_dump(mode="json")) == other


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.frames=1"], "'data.frames'"),
        (["data.cameras=false"], "'multiview.ray_width' above 0 needs 'data.cameras: true'"),
        (["model.trainable_blocks=0", "model.lora=null"], "no blocks to put adapters after"),
        (["multiview.location=0", "multiview.keep=0"], "nothing would be trained"),
        (["multiview.heads=7"], "'ray_width: 128' should be a multiple of 'heads: 7'"),
        (["loss.sorting=0.5"], "'loss' belongs to 'method: tracks'"),
        (["teacher.momentum=0.9"], "'teacher' belongs to 'method: tracks'"),
        (
            ["tracks.epipolar_weight_px=2"],
            "'tracks.epipolar_weight_px' belongs to 'method: tracks'",
        ),
        (["model.train_norm=true"], "'model.train_norm' belongs to 'method: tracks'"),
        (["data.colour.student_only=true"], "needs a teacher"),
        (["method=tracks"], "'multiview' needs 'method: multiview'"),
        (["method=multiviews"], "'method'"),
    ],
)
def test_multiview_settings_that_cannot_work_are_refused(
    overrides: list[str], message: str
) -> None:
    path = CONFIGS / "multiview" / "dinov2_reg_small_published.yaml"
    with pytest.raises(SettingsError, match=message):
        load_settings(TrainSettings, path, overrides)


def test_the_demo_and_the_example_in_the_readme_load() -> None:
    load_settings(TrainSettings, CONFIGS / "demo.yaml")
    (example,) = [
        block
        for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
        if block.startswith("data:")
    ]
    data = DataSettings.model_validate(yaml.safe_load(example)["data"])
    assert data.weights == {"co3d": 1, "dl3dv": 2}
    assert data.colour.student_only


def test_backbones_exist_in_timm() -> None:
    assert all(timm.is_model(timm_id) for timm_id in BACKBONES.values())


def test_a_key_that_is_set_overrides_the_recipe() -> None:
    path = CONFIGS / "upstream" / "dino_small.yaml"
    settings = load_settings(TrainSettings, path, ["loss.frames=all", "data.flip=0.25"])
    assert settings.loss.frames == "all"
    assert settings.data.flip == 0.25
    assert settings.loss.objective == "published"


def test_resolved_settings_resolve_to_themselves(settings: Callable[..., TrainSettings]) -> None:
    for recipe in ("upstream", "pretrack"):
        resolved = settings(recipe)
        assert TrainSettings.model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.objektive=published", "did you mean 'objective'"),
        ("loss.objective=published", "'torchsort' makes ranks and no permutation"),
        ("run.steps=3", "set one of 'run.steps' and 'run.epochs'"),
        ("data.frames=2", "must be at least 3"),
        ("optim={warmup: 20, period: 20}", "should be less than 'optim.period: 20'"),
        ("teacher.final_momentum=0.9", "no less than 'teacher.momentum: 0.99'"),
        (
            "model={backbone: dino_small, weights: random, trainable_blocks: 0, lora: {}}",
            "has no blocks to adapt",
        ),
        ("recipe=upsteam", "'recipe'"),
        ("data.control=other", "'data.control'"),
        ("data={out: x, angle: [60, 10]}", r"'angle: \[60, 10\]' should be two angles from 0 to"),
        ("data={out: x, control: shuffled, step: 0}", "'step: 0' shows none: set only one"),
        ("data={out: x, control: same, crop: squash, flip: 1}", "they would all be equal: set"),
        ("data=7", "'data'"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(TrainSettings, CONFIGS / "pretrack" / "dino_small.yaml", [override])


def test_every_field_is_explained() -> None:
    for part in TrainSettings.model_fields.values():
        for name, field in getattr(part.annotation, "model_fields", {}).items():
            assert field.description, name


def test_a_blur_may_reach_as_far_as_a_frame_is_wide_and_no_farther() -> None:
    # 3 sigma of 21 pixels are 63, and the mirror image of 64 pixels has 63 without the border's.
    colour = {"blur": 0.5, "blur_sigma": (0.1, 21)}
    assert DataSettings(out=(".",), size=64, colour=colour).colour.blur_sigma == (0.1, 21)
    farther = colour | {"blur_sigma": (0.1, 21.1)}
    with pytest.raises(ValueError, match=r"21.1 reaches 64 pixels, .* 'size: 64': lower .* to 21 "):
        DataSettings(out=(".",), size=64, colour=farther)
    DataSettings(out=(".",), size=64, colour=farther | {"blur": 0})  # nothing is blurred
