"""Exported weights say what they are made from: terms of every video, data, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import SettingsError
from tests.helpers.published import publish_clips
from tests.trainer.conftest import panning_clip
from trainer.config import TrainSettings
from trainer.export import export_weights, exported_weights, read_description
from trainer.model.backbone import make_backbone
from trainer.model_card import model_card

Make = Callable[..., TrainSettings]


def with_terms(key: str, terms: str) -> Any:
    clip = panning_clip(key, 0)
    return replace(clip, info=replace(clip.info, video_id=key, terms=terms))


def described(settings: TrainSettings, **changes: Any) -> dict[str, Any]:
    return {
        "timm_id": "vit_tiny_patch16_224",
        "options": {"depth": 3},
        "img_size": 64,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "features": "patch tokens",
        "taken_from": "student",
        "step": 7,
        "settings_digest": "d1935",
        "settings": settings.model_dump(mode="json"),
        "snapshots": [
            {"out": "out/a", "snapshot": "000001"},
            {"out": "out/b", "snapshot": "000012"},
        ],
        "terms": ["CC BY 4.0", "Research only."],
        "terms_note": "The starting weights have terms of their own.",
    } | changes


def test_the_card_states_every_term_and_every_snapshot(settings: Make) -> None:
    card = model_card(described(settings()), "step_00000007.safetensors")
    terms = card.split("## Terms\n")[1].split("## Settings")[0]
    assert "\n- CC BY 4.0\n- Research only.\n" in terms
    assert "The starting weights have terms of their own." in terms
    assert "This card grants no licence." in terms
    assert "- `out/a`, snapshot `000001`\n- `out/b`, snapshot `000012`\n" in card
    assert "Digest `d1935`. `step_00000007.json` beside this file" in card


def test_the_card_says_so_where_no_video_states_terms(settings: Make) -> None:
    card = model_card(described(settings(), terms=[]), "w.safetensors")
    assert "The videos' tables state no terms." in card


def test_the_cards_table_has_the_settings_that_were_used(settings: Make) -> None:
    used = settings(optim={"lr": 3e-4}, data={"out": "out/a", "size": 64, "step": 5, "frames": 6})
    rows = model_card(described(used), "w.safetensors").split("|---|---|\n")[1].splitlines()
    assert rows == [
        "| starting weights | random |",
        "| trained blocks | 2 |",
        "| adapters in them | None |",
        "| learning rate of the head | 0.0003 |",
        "| frames per sample | 6 |",
        "| stored frames between them | 5 |",
        "| crop | random |",
        "| references per clip | 3 |",
        "| clips per step | 4 |",
        "| seed | 1 |",
    ]


@pytest.mark.parametrize(
    ("loss", "phrase"),
    [
        ({}, "with the loss 1 x `sorting` (objective `spearman`, sorter `torchsort`)."),
        ({"sorting": 0, "clusters": {"weight": 0.5}}, "with the loss 0.5 x `clusters`."),
        ({"info_nce": {"weight": 0}, "track_mean": {}}, "sorter `torchsort`) + 1 x `track_mean`."),
    ],
)
def test_the_card_names_the_losses_with_their_weights(
    settings: Make, loss: dict[str, Any], phrase: str
) -> None:
    assert phrase in model_card(described(settings(loss=loss)), "w.safetensors")


def test_an_export_lists_the_terms_of_all_snapshots_once(settings: Make, tmp_path: Path) -> None:
    clips = [with_terms("a", "Research only."), with_terms("b", "CC BY 4.0"), with_terms("c", "")]
    snapshots = [
        publish_clips(tmp_path / "first", clips),
        publish_clips(tmp_path / "second", [with_terms("d", "MIT"), with_terms("e", "CC BY 4.0")]),
    ]
    s = settings()
    backbone = make_backbone(s.model.backbone, "random", s.model.options)
    weights = export_weights(backbone, s, snapshots, step=3)
    description = read_description(weights)
    assert description["terms"] == ["CC BY 4.0", "MIT", "Research only."]
    assert description["step"] == 3
    assert [used["snapshot"] for used in description["snapshots"]] == ["000001", "000001"]
    card = weights.with_name("README.md").read_text()
    assert "- CC BY 4.0\n- MIT\n- Research only.\n" in card
    assert exported_weights(s.run.out) == [weights]


def test_weights_without_a_description_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "step_00000001.safetensors"
    with pytest.raises(SettingsError, match=r"no readable description step_00000001\.json"):
        read_description(weights)
    weights.with_suffix(".json").write_text("{")
    with pytest.raises(SettingsError, match="name its backbone yourself"):
        read_description(weights)
    weights.with_suffix(".json").write_text(json.dumps({"step": 1}))
    assert read_description(weights) == {"step": 1}
