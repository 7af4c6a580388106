"""Features for evaluation: padded in the centre, before or after the norm, of one block or four."""

from __future__ import annotations

import pytest
import torch

from shards.errors import PretrackError, SettingsError
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import level_features, padding, patch_features
from trainer.model.backbone import make_backbone, normalised_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ["dino_small", "dinov2_reg_small", "dinov3_small"]


def tiny(name: str, depth: int = 8) -> EvaluatedModel:
    torch.manual_seed(0)
    backbone = make_backbone(name, None, {"depth": depth, "embed_dim": 48, "num_heads": 3}).eval()
    return EvaluatedModel("tiny", name, "tiny.pth", "", backbone, 224, MEAN, STD)


def some_images(size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_normed_features_are_those_of_training(name: str) -> None:
    model = tiny(name)
    images = some_images(4 * model.patch)
    features = patch_features(model, final_norm=True)(images)
    torch.testing.assert_close(features, model.backbone(normalised_images(images, MEAN, STD)))
    plain = patch_features(model)(images)
    assert not torch.allclose(plain, features, atol=0.1)
    torch.testing.assert_close(model.backbone.model.norm(plain), features)
    assert not plain.requires_grad


def test_images_are_padded_in_the_centre() -> None:
    """Probe3D: 800 px and patches of 14 are 58 patches with 6 px of zeros on every side."""
    assert padding(800, 14) == (6, 6)
    assert padding(512, 14) == (3, 3)
    assert padding(800, 16) == (0, 0)
    model = tiny("dinov2_reg_small")
    images = some_images(51)  # 56 = 2 + 51 + 3
    given = torch.zeros(2, 3, 56, 56)
    given[..., 2:53, 2:53] = normalised_images(images, MEAN, STD)
    features = patch_features(model, final_norm=True)(images)
    assert features.shape == (2, 4, 4, 48)
    torch.testing.assert_close(features, model.backbone(given))


@pytest.mark.parametrize("name", NAMES)
def test_four_blocks_with_the_cls_token(name: str) -> None:
    model = tiny(name)
    images = some_images(3 * model.patch + 1)
    levels = level_features(model)(images)
    assert [level.shape for level in levels] == [(2, 4, 4, 96)] * 4
    torch.testing.assert_close(levels[3][..., :48], patch_features(model)(images))
    seen: list[torch.Tensor] = []
    hook = model.backbone.model.blocks[1].register_forward_hook(
        lambda block, given, tokens: seen.append(tokens)
    )
    level_features(model)(images)
    hook.remove()  # block 1 of 0..7 is the first quarter's last
    torch.testing.assert_close(levels[0][:, 2, 3, 48:], seen[0][:, 0])
    torch.testing.assert_close(
        levels[0][..., :48].flatten(1, 2), seen[0][:, model.backbone.model.num_prefix_tokens :]
    )


def test_too_few_blocks() -> None:
    with pytest.raises(
        SettingsError,
        match=r"reads four blocks and a CLS token: vit_small_patch16_224.dino does not have them",
    ):
        level_features(tiny("dino_small", depth=3))


def test_broken_weights() -> None:
    model = tiny("dino_small")
    with torch.no_grad():
        model.backbone.model.blocks[2].mlp.fc1.weight[0, 0] = torch.nan
    for features in (patch_features(model), level_features(model)):
        with pytest.raises(
            PretrackError,
            match=r"the model 'tiny' gives features that are not finite: "
            r"its weights \(tiny.pth\) are broken",
        ):
            features(some_images(32))
