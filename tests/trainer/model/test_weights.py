"""Weights as people have them: any prefixes, nesting and parts load; the rest is one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from shards.errors import SettingsError
from tests.helpers.evaluation import evaluate
from tests.helpers.tiny_weights import TINY, State, assert_loads, images_of, random_state
from tests.trainer.model.test_published_weights import transformers_names
from trainer.checkpoint import save_checkpoint
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.model.backbone import make_backbone
from trainer.model.student_teacher import Embedder, Projection, make_teacher
from trainer.model.weights import read_weights


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.backbone.",
        "model._orig_mod.backbone.model.",
        "module.model.module.backbone.",
        "student_backbone.",
        "visual.trunk.",
    ],
)
@pytest.mark.parametrize("name", ["dino_small", "dinov3_small"])
def test_prefixes_of_training_code_are_peeled(tmp_path: Path, name: str, prefix: str) -> None:
    state = random_state(name)
    named = {prefix + key: value for key, value in state.items()}
    torch.save({**named, "head.mlp.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", name, state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": s}}}},
        lambda s: {"model": {"state_dict": {f"module.{k}": v for k, v in s.items()}}},
        lambda s: {"teacher": {"backbone": s, "head": {"weight": torch.zeros(1)}}},
        lambda s: {"state_dict": {f"model.backbone.{k}": v for k, v in s.items()}, "lr": 0.1},
        lambda s: {"state_dict": s, "model": s},
        lambda s: {**s, "epoch": 3, "name": "mine"},
    ],
    ids=["state_dict", "nested", "modules", "lightning", "twice", "flat with values"],
)
def test_nested_checkpoints_are_unwrapped(tmp_path: Path, nest: Callable[[State], Any]) -> None:
    state = random_state("dinov2_reg_small")
    torch.save(nest(state), tmp_path / "w.ckpt")
    assert_loads(tmp_path / "w.ckpt", "dinov2_reg_small", state)


def test_wrappers_within_names_are_removed(tmp_path: Path) -> None:
    """Blocks that were compiled, checkpointed or sharded one by one."""
    state = random_state("dinov2_small")
    for word in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        wrapped = {key.replace("blocks.1.", f"blocks.1.{word}."): v for key, v in state.items()}
        torch.save(wrapped, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", "dinov2_small", state)


def test_the_teacher_is_taken_and_a_part_takes_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, student = random_state("dino_small"), random_state("dino_small", seed=1)
    path = tmp_path / "w.pth"
    torch.save(
        {
            "student": {f"module.backbone.{key}": value for key, value in student.items()},
            "teacher": {f"backbone.{key}": value for key, value in teacher.items()},
        },
        path,
    )
    with caplog.at_level(logging.INFO):
        assert_loads(path, "dino_small", teacher)
    assert (
        "several vision transformers ('student.module.backbone', 'teacher.backbone'): taking "
        "'teacher.backbone', whose weights are averaged"
    ) in caplog.text
    assert_loads(f"{path}:student", "dino_small", student)
    with pytest.raises(SettingsError, match="holds no vision transformer called 'pupil', but 'stu"):
        read_weights(Path(f"{path}:pupil"))


def test_nothing_is_guessed_among_equals(tmp_path: Path) -> None:
    state = random_state("dino_small")
    path = tmp_path / "w.pth"
    torch.save({"left": state, "right": {**random_state("dino_small", seed=1)}}, path)
    with pytest.raises(
        SettingsError, match=r"\('left', 'right'\): choose one with FILE:PART, such"
    ):
        make_backbone("dino_small", str(path), TINY)
    assert_loads(f"{path}:left", "dino_small", state)


def test_pretracks_own_checkpoint_gives_its_teacher(tmp_path: Path) -> None:
    """As `model.weights=RUN/checkpoints/step_….pt` starts another run."""
    state = random_state("dino_small")
    backbone = make_backbone("dino_small", None, TINY)
    backbone.model.load_state_dict(state)
    student = Embedder(backbone, Projection(48, (8,)), align_corners=False)
    teacher = make_teacher(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    student.embed(backbone(images_of(32))).sum().backward()
    optimizer.step()
    checkpoint = {
        "step": 1,
        "settings": {"run": {"steps": 2}},
        "snapshots": ["a"],
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "losses": {},
        "optimizer": optimizer.state_dict(),
    }
    path = save_checkpoint(tmp_path, checkpoint, keep=1)
    assert_loads(path, "dino_small", state)
    trained = student.backbone.model.state_dict()
    assert not torch.equal(trained["norm.weight"], state["norm.weight"])
    assert_loads(f"{path}:student", "dino_small", trained)


def test_an_evaluated_part_has_the_files_digest(tmp_path: Path) -> None:
    """Results say which file a model was read from, also if only a part of it was."""
    states = [
        make_backbone("vit_tiny_patch16_224", None).model.state_dict() for _ in ("left", "right")
    ]
    path = tmp_path / "w.pth"
    torch.save(dict(zip(("left", "right"), states, strict=True)), path)
    model = load_evaluated_model("mine", f"vit_tiny_patch16_224:{path}:right")
    assert model.digest == xxhash.xxh3_64_hexdigest(path.read_bytes())
    loaded = model.backbone.model.state_dict()
    assert torch.equal(loaded["cls_token"], states[1]["cls_token"])
    assert not torch.equal(loaded["cls_token"], states[0]["cls_token"])


def test_the_command_line_ends_with_the_sentence_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    arguments = ["--model", f"mine=dino_small:{path}", "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate(["voc-clusters", str(tmp_path), *arguments]) == 1
    message = capfd.readouterr().err
    assert f"{path} cannot be read as weights: it is a Git LFS pointer" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("weights", "options", "model", "message"),
    [
        (
            "dinov2_small",
            {},
            "dinov2_reg_small",
            "patches of 14 pixels, layer scale, no registers, but vit_.* has 4 registers: "
            "take the backbone 'dinov2_small'",
        ),
        (
            "dinov2_reg_small",
            {},
            "dinov2_small",
            "4 registers, layer scale, but vit_.* has no registers: "
            "take the backbone 'dinov2_reg_small'",
        ),
        ("dino_small", {"depth": 3}, "dino_small", "3 blocks, .* but vit_.* has 2 blocks$"),
        ("dino_small", {"depth": 1}, "dino_small", "1 block, .* but vit_.* has 2 blocks$"),
        ("dino_small", {"embed_dim": 96}, "dino_small", "96 channels.* has 48 channels$"),
        ("dino_small", {"mlp_ratio": 2}, "dino_small", "MLPs of 96 units, .* MLPs of 192 units$"),
        (
            "dinov2_small",
            {},
            "dino_small",
            "layer scale, but vit_.* has no layer scale: take the backbone 'dinov2_small'",
        ),
        (
            "dinov3_small",
            {},
            "dinov2_reg_small",
            "no learned positions, but vit_.* has learned positions: "
            "take the backbone 'dinov3_small'",
        ),
    ],
)
def test_another_architecture_is_named_on_both_sides(
    tmp_path: Path, weights: str, options: dict[str, Any], model: str, message: str
) -> None:
    torch.save(random_state(weights, options), tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=rf"w\.pth holds a vision transformer with .*{message}"):
        make_backbone(model, str(tmp_path / "w.pth"), TINY)


def test_other_resolutions_and_patches_are_resampled_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(random_state("dino_small", {"img_size": 64}), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="trainer"):
        backbone = make_backbone("vit_small_patch8_224", str(tmp_path / "w.pth"), TINY)
    assert backbone(images_of(64)).shape == (2, 8, 8, 48)
    assert "position embedding is resampled by timm: from 4 x 4 to 28 x 28 patches" in caplog.text
    assert "patch embedding is resampled by timm: from 16 x 16 to 8 x 8 pixels" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize(
    "names", ["dino_small", "dinov2_reg_small", "dinov3_small", "transformers"]
)
def test_tensors_of_odd_shapes_are_refused_in_one_sentence(
    tmp_path: Path, names: str, shape: tuple[int, ...]
) -> None:
    name = "dinov2_small" if names == "transformers" else names
    state = transformers_names() if names == "transformers" else random_state(name)
    for key in state:
        if "blocks.1." in key or "layer.1." in key:
            continue
        torch.save({**state, key: torch.ones(shape)}, tmp_path / "w.pth")
        with pytest.raises(SettingsError) as caught:
            make_backbone(name, str(tmp_path / "w.pth"), {**TINY, "img_size": 64 // 16 * 14})
        assert "\n" not in str(caught.value), key
