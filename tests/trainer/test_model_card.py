"""The model card states terms, data and settings of its weights, and its code loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config import TrainSettings
from trainer.model_card import model_card
from trainer.train import train

Make = Callable[..., TrainSettings]


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
    data = card.split("## Data\n\n")[1].split("\n\n## Terms")[0]
    assert data.splitlines() == [
        "- `out/a`, snapshot `000001`",
        "- `out/b`, snapshot `000012`",
        "",
        "Split `train`.",
    ]
    trained_on = {"sequences": 12, "parts": 0, "complete": True}
    card = model_card(described(settings(), trained_on=trained_on), "step_00000007.safetensors")
    assert "\nSplit `train`.\nThe file's metadata have digests of the names of the 12 " in card
    assert "Digest `d1935`. `step_00000007.json` beside this file" in card


def test_the_card_says_so_where_no_video_states_terms(settings: Make) -> None:
    card = model_card(described(settings(), terms=[]), "w.safetensors")
    assert "\n## Terms\n\nThe videos' tables state no terms.\n" in card


def test_the_card_says_what_the_weights_are_and_how_to_feed_them(settings: Make) -> None:
    card = model_card(described(settings(recipe="upstream")), "w.safetensors")
    introduction = card.split("---\n\n")[1].split("\n```python")[0]
    assert introduction.splitlines()[2:4] == [
        "vit_tiny_patch16_224, trained for 7 steps with pretrack's recipe `upstream` on stored "
        "point tracks, after",
        "3DPoV, with the loss 1 x `sorting` (objective `published`, sorter `bitonic`).",
    ]
    assert "Taken from the student. `w.safetensors` is a plain timm state dict; " in introduction
    assert "its features are the patch tokens." in introduction
    assert "# images: [B, 3, 64, 64], normalised as below\n" in card
    pixels = "minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)."
    assert f"\nPixels are RGB in 0..1, {pixels}\n" in card


def test_the_card_of_a_control_says_what_it_was_not_trained_on(settings: Make) -> None:
    data = {"out": "out/a", "size": 64, "control": "shuffled"}
    card = model_card(described(settings(data=data)), "w.safetensors")
    assert (
        "\n# vit_tiny_patch16_224, trained as a control\n\n**Not trained on right tracks.**" in card
    )
    assert "With `data.control: shuffled`, in every frame but the anchor frame, each point" in card
    assert "right tracks" not in model_card(described(settings()), "w.safetensors")


def test_the_cards_code_passes_options_to_timm_only_where_there_are_any(settings: Make) -> None:
    overlay = '    pretrained_cfg_overlay=dict(file="w.safetensors")'
    card = model_card(described(settings()), "w.safetensors")
    assert f"{overlay}, **{{'depth': 3}},\n)\n" in card
    card = model_card(described(settings(), options={}), "w.safetensors")
    assert f"{overlay},\n)\n" in card


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


@pytest.mark.slow
def test_the_code_on_the_card_of_a_run_loads_its_weights(settings: Make) -> None:
    weights = train(settings(run={"steps": 1}, loss={"sorting": 0.5, "track_mean": {}}))
    card = weights.with_name("README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\nlicense: other\n")
    assert "snapshot `000001`" in card
    assert (
        "the losses 0.5 x `sorting` (objective `spearman`, sorter `torchsort`) + 1 x `track_mean`."
        in card
    )
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace(f'file="{weights.name}"', f'file="{weights}"')
    )
    images = torch.zeros(1, 3, 224, 224)
    names: dict[str, Any] = {"images": images}
    exec(code, names)
    assert names["features"].shape == (1, 28 * 28, 192)
