"""Backbones: patch maps of every published family, freezing by depth, weights from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shards.errors import SettingsError
from tests.helpers.hub_server import hub_server
from trainer.model.backbone import BACKBONES, make_backbone, normalised_images
from trainer.model.lora import add_adapters
from trainer.model.settings import LoraSettings
from trainer.model.weights import read_weights

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.mark.parametrize("name", ["dino_small", "dinov2_small", "dinov2_reg_small", "dinov3_small"])
def test_maps_hold_the_normed_patch_tokens(name: str) -> None:
    backbone = make_backbone(name, None, TINY).eval()
    size = 4 * backbone.patch
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = backbone(images)
    assert features.shape == (2, 4, 4, 48)
    (expected,) = backbone.model.forward_intermediates(
        images, indices=1, norm=True, intermediates_only=True, output_fmt="NLC"
    )
    torch.testing.assert_close(features.flatten(1, 2), expected)


def test_a_patch_feature_lies_at_its_patch() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("dinov2_reg_small", None, TINY).eval()
    image = torch.zeros(1, 3, 56, 56)
    changed = image.clone()
    changed[..., 14:28, 42:56] = 3
    difference = (backbone(changed) - backbone(image)).norm(dim=-1)[0]
    assert difference.argmax().item() == 1 * 4 + 3


class WeightCasts(TorchDispatchMode):
    """Counts how often one of some weights is converted to bfloat16."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.addresses, self.count = {weight.data_ptr() for weight in weights}, 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.bfloat16 and args[0].data_ptr() in self.addresses:
            self.count += 1
        return operation(*args, **kwargs)


@pytest.mark.parametrize("name", ["dino_small", "dinov2_reg_small", "dinov3_small"])
def test_a_trunk_kept_in_bfloat16_computes_what_autocast_does_without_converting_weights(
    name: str,
) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name, None, {**TINY, "depth": 3})
    backbone.freeze(1, train_norm=False)
    images = torch.randn(2, 3, 4 * backbone.patch, 4 * backbone.patch)
    float32, state = backbone.trunk(images).values, backbone.state_dict()

    def under_autocast() -> tuple[Tensor, int]:
        casts = WeightCasts(backbone.parameters())
        with torch.autocast("cpu", torch.bfloat16), casts:
            return backbone.trunk(images).values, casts.count

    expected, casts = under_autocast()
    assert casts >= 9  # the patch embedding's weight, and those of four layers in two blocks
    backbone.keep_bfloat16_trunk()
    kept, casts = under_autocast()
    assert torch.equal(kept, expected)
    assert casts == 0
    # Everything else sees the float32 weights: results without autocast, and checkpoints.
    assert torch.equal(backbone.trunk(images).values, float32)
    assert not torch.equal(kept, float32)
    after = backbone.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert len(list(backbone.parameters())) == len(state)


@pytest.mark.parametrize("depth", [2, 24])
def test_only_the_last_blocks_are_trained(depth: int) -> None:
    backbone = make_backbone("vit_tiny_patch16_224", None, {**TINY, "depth": depth})
    backbone.freeze(2, train_norm=False)
    trained = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert trained
    assert {name.split(".")[2] for name in trained} == {str(depth - 2), str(depth - 1)}
    assert all(name.startswith("model.blocks.") for name in trained)
    backbone.freeze(0, train_norm=True)
    assert {name for name, weight in backbone.named_parameters() if weight.requires_grad} == {
        "model.norm.weight",
        "model.norm.bias",
    }
    with pytest.raises(SettingsError, match=rf"more than the {depth}"):
        backbone.freeze(depth + 1, train_norm=False)


def test_sizes_that_patches_do_not_fill_are_refused() -> None:
    backbone = make_backbone("dinov2_small", None, TINY)
    assert backbone.grid(224) == 16
    with pytest.raises(
        SettingsError, match="patches of 14 pixels, which do not fill 'size: 256': take 252"
    ):
        backbone.grid(256)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "dinov2_reg_bas",
            "random",
            "there is no backbone 'dinov2_reg_bas' .did you mean 'dinov2_reg_base'",
        ),
        ("vit_tiny_patch16_22", "random", "did you mean 'vit_tiny_patch16_224'"),
        ("resnet18", "random", "'resnet18' is not a vision transformer|cannot be made"),
        ("dino_small", "nowhere/weights.pth", "there is no weight file nowhere/weights.pth"),
        ("dino_small", __file__, "cannot be read as weights"),
    ],
)
def test_models_that_cannot_be_made_are_named(name: str, weights: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_backbone(name, weights)


def test_random_weights_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_backbone("vit_tiny_patch16_224", "random", TINY)
    assert "starts from random weights" in caplog.text


@pytest.mark.parametrize("wrapper", ["plain", "teacher", "dino", "safetensors"])
def test_weights_are_read_from_every_kind_of_file(tmp_path: Path, wrapper: str) -> None:
    source = make_backbone("dinov2_reg_small", None, TINY)
    state: dict[str, Tensor] = source.model.state_dict()
    path = tmp_path / ("weights.safetensors" if wrapper == "safetensors" else "weights.pth")
    if wrapper == "safetensors":
        save_file(state, path)
    elif wrapper == "dino":
        inner = {f"module.backbone.{name}": value for name, value in state.items()} | {
            "module.head.weight": torch.zeros(1)
        }
        torch.save({"student": {}, "teacher": inner, "epoch": 3}, path)
    else:
        torch.save({"teacher": state} if wrapper == "teacher" else state, path)
    loaded = make_backbone("dinov2_reg_small", str(path), TINY)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    source = timm.create_model(BACKBONES["dinov2_small"], num_classes=0, img_size=112, **TINY)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = make_backbone("dinov2_small", str(tmp_path / "weights.pth"), TINY)
    assert loaded(torch.zeros(1, 3, 112, 112)).shape == (1, 8, 8, 48)


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    torch.save(
        make_backbone("dino_small", None, {**TINY, "embed_dim": 96}).model.state_dict(),
        tmp_path / "weights.pth",
    )
    with pytest.raises(SettingsError, match=r"with 96 channels, .* but vit_.* has 48 channels"):
        make_backbone("dino_small", str(tmp_path / "weights.pth"), TINY)


@pytest.mark.parametrize("name", ["dino_small", "dinov2_reg_small", "dinov3_small"])
def test_incomplete_weights_are_refused(tmp_path: Path, name: str) -> None:
    """Otherwise a block without weights in the file would silently stay random."""
    state = make_backbone(name, None, TINY).model.state_dict()
    torch.save(state, tmp_path / "all.pth")
    make_backbone(name, str(tmp_path / "all.pth"), TINY)
    torch.save(
        {key: value for key, value in state.items() if "blocks.0." not in key},
        tmp_path / "part.pth",
    )
    with pytest.raises(
        SettingsError, match=r"part\.pth lacks \d+ tensors of .* \(first: blocks\.0\."
    ):
        make_backbone(name, str(tmp_path / "part.pth"), TINY)


def test_weights_with_adapters_are_refused(tmp_path: Path) -> None:
    adapted = make_backbone("dino_small", None, TINY)
    adapted.freeze(1, train_norm=False)
    add_adapters(adapted, LoraSettings())
    torch.save({"teacher": adapted.state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(SettingsError, match="adapters are merged in its folder 'weights'"):
        make_backbone("dino_small", str(tmp_path / "weights.pth"), TINY)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Path("/etc")}, tmp_path / "weights.pth")
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        read_weights(tmp_path / "weights.pth")


def test_images_are_normalised_as_worked_out_by_hand() -> None:
    frames = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    values = normalised_images(frames, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([5.0, 3.0, 1.4]))


def test_weights_that_a_hub_refuses_are_one_sentence(tmp_path: Path) -> None:
    repository = str(timm.get_pretrained_cfg("vit_small_patch14_dinov2").hf_hub_id)
    file = "give a file with 'model.weights=PATH'$"
    with hub_server(tmp_path) as hub:
        hub.gated.add(repository)
        accept = (
            r"\(GatedRepoError\): accept its licence on its page and log in with 'hf auth login'"
        )
        with pytest.raises(SettingsError, match=rf"{accept}, or {file}"):
            make_backbone("dinov2_small", "hub")
        hub.gated.clear()
        with pytest.raises(SettingsError, match=rf"\(RepositoryNotFoundError\): {file}"):
            make_backbone("dinov2_small", "hub")
