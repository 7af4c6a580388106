"""The lean step equals the plain one: shared trunk, only needed frames, parts of a batch, ranks that share references, adapters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from shards.errors import SettingsError
from tests.trainer.test_train import REPOSITORY, last_state
from trainer.config import TrainSettings
from trainer.data.batch import Batch, slice_batch
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import Rank
from trainer.model.backbone import make_backbone, normalised_images
from trainer.model.feature_sampling import (
    choose_references,
    crop_references,
    sample_points,
)
from trainer.model.step import Step, step_flops
from trainer.run_setup import make_step
from trainer.schedule import step_seed
from trainer.train import forward_backward, train

Make = Callable[..., TrainSettings]
CPU = torch.device("cpu")


def a_step(settings: TrainSettings, clips: int = 4) -> tuple[Step, Batch]:
    """A model whose teacher has moved away from its student, and some clips."""
    torch.manual_seed(0)
    model = make_step(settings, None, CPU)
    with torch.no_grad():
        for ours, theirs in zip(
            model.teacher.parameters(), model.student.parameters(), strict=True
        ):
            if theirs.requires_grad:
                ours.add_(torch.randn_like(ours), alpha=0.01)
    dataset = ClipDataset(open_snapshots(settings.data), settings.data, seed=1)
    return model, next(iter(Loader(dataset, dataset.sampler(clips))))


def part_of(sample: Batch, clips: list[int]) -> Batch:
    """Some clips of a sample."""
    parts = {name: value[clips] for name, value in sample.items() if isinstance(value, Tensor)}
    return cast(Batch, parts | {"key": [sample["key"][clip] for clip in clips]})


def gradients(model: Step) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["dino_small", "dinov2_small", "dinov2_reg_small", "dinov3_small"])
@pytest.mark.parametrize("trained", [1, 3])
def test_trunk_and_tail_are_the_backbone(name: str, trained: int) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name, None, {"depth": 3, "embed_dim": 48, "num_heads": 3})
    backbone.freeze(trained, train_norm=False)
    images = torch.randn(3, 3, 4 * backbone.patch, 5 * backbone.patch)
    tokens = backbone.trunk(images)
    assert not tokens.values.requires_grad
    assert torch.equal(backbone.tail(tokens), backbone(images))
    torch.testing.assert_close(
        backbone.tail(tokens[torch.tensor([2, 0])]), backbone(images[[2, 0]])
    )
    backbone.tail(tokens).sum().backward()
    changed = {key.split(".")[2] for key, p in backbone.named_parameters() if p.grad is not None}
    assert changed == {str(i) for i in range(3 - trained, 3)}


@pytest.mark.parametrize("compared", [[1, 2, 3], [3]])
def test_embeddings_are_those_of_whole_passes_over_every_frame(
    settings: Make, compared: list[int]
) -> None:
    s = settings()
    model, sample = a_step(s)
    references = choose_references(4, 4, 3, 8, 4, torch.Generator().manual_seed(0))
    lean = model.embed(sample, compared, references, 4)

    images = normalised_images(sample["frames"], s.data.mean, s.data.std).flatten(0, 1)
    features, teachers = (
        model.student.backbone(images),
        model.teacher.backbone(images),
    )  # each the whole transformer
    points = sample["positions"].flatten(0, 1)
    tracks = model.student.embed(sample_points(features, points, 64, False)).view(4, 4, 36, 16)[
        :, compared
    ]
    anchor = model.teacher.embed(sample_points(teachers, points, 64, False)).view(4, 4, 36, 16)[
        :, 0
    ]
    crops = model.student.embed(crop_references(features, references, 4))
    for ours, plain in ((lean.student, tracks), (lean.teacher, anchor), (lean.references, crops)):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_a_teacher_averaged_in_all_weights_runs_its_own_trunk(settings: Make) -> None:
    model, sample = a_step(settings("upstream"))
    with torch.no_grad():
        model.teacher.backbone.model.blocks[0].mlp.fc1.weight.mul_(1.5)
    tokens, anchors = model.trunks(sample)
    assert not torch.allclose(tokens.values[::4], anchors.values, atol=1e-3)
    own = normalised_images(
        sample["frames"][:, 0], model.settings.data.mean, model.settings.data.std
    )
    assert torch.equal(anchors.values, model.teacher.backbone.trunk(own).values)


def test_gradients_of_parts_are_the_mean_of_their_own(settings: Make) -> None:
    s = settings(run={"accumulate": 2}, references={"count": 1})
    model, sample = a_step(s)
    loss, parts_of_loss, _ = forward_backward(
        model, sample, compared=[1, 2, 3], patches=(8, 4), step=0, settings=s, rank=Rank(0, 1, CPU)
    )
    together = gradients(model)
    halves = []
    generator = torch.manual_seed(step_seed(s.run.seed, 0, 0))
    total = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        model.zero_grad()
        references = choose_references(2, 4, 1, 8, 4, generator)
        value, _, _ = model(slice_batch(sample, part), [1, 2, 3], references, 4)
        value.backward()
        halves.append(gradients(model))
        total += value.item() / 2
    assert loss.item() == parts_of_loss["sorting"].item() == pytest.approx(total, abs=1e-6)
    for name, gradient in together.items():
        torch.testing.assert_close(
            gradient, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-7
        )


@pytest.mark.slow
def test_a_run_in_parts_goes_through_and_odd_parts_are_refused(settings: Make) -> None:
    assert train(settings(run={"accumulate": 2, "steps": 2}, references={"count": 2})).is_file()
    with pytest.raises(ValueError, match="cannot be shared by 3 parts"):
        settings(run={"accumulate": 3})


@pytest.mark.slow
def test_references_across_ranks_are_those_of_one_big_batch(settings: Make, tmp_path: Path) -> None:
    s = settings(
        references={"count": 4, "across_ranks": True}, run={"batch_size": 8, "accumulate": 2}
    )
    (tmp_path / "settings.json").write_text(s.model_dump_json())
    logs = f"--log-dir={tmp_path / 'logs'}"  # in /tmp otherwise, where they stay
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        logs,
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, "-m", "tests.helpers.shared_references", str(tmp_path)],
        check=False,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    model, sample = a_step(s, clips=8)  # the first four are the first rank's
    generator = torch.Generator().manual_seed(step_seed(s.run.seed, 0, 0))
    total = 0.0
    for clips in ([0, 1, 4, 5], [2, 3, 6, 7]):
        references = choose_references(4, 4, 4, 8, 4, generator)
        loss, _, _ = model(part_of(sample, clips), [1, 2, 3], references, 4)
        (loss / 2).backward()
        total += loss.item() / 2
    assert (ranks[0]["loss"] + ranks[1]["loss"]) / 2 == pytest.approx(total, abs=1e-5)
    for name, gradient in gradients(model).items():
        for rank in ranks:
            torch.testing.assert_close(
                rank["gradients"][name], gradient, rtol=1e-3, atol=1e-6, msg=name
            )


def test_operations_are_counted_as_by_hand(settings: Make) -> None:
    model = make_step(settings(), None, CPU)
    n, d, patch = 8 * 8 + 1, 192, 8
    block = 2 * (
        12 * d * d * n + 2 * n * n * d
    )  # 3DPoV's ViT: multiply and add, projections and attention
    trunk = block + 2 * (n - 1) * 3 * patch * patch * d
    assert step_flops(model, 64) == pytest.approx(4 * trunk + 13 * 2 * block, rel=1e-6)
    followed = make_step(
        settings(loss={"track_mean": {}}), None, CPU
    )  # here the teacher sees all 4 frames
    assert step_flops(followed, 64) == pytest.approx(4 * trunk + 16 * 2 * block, rel=1e-6)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_run(settings: Make, tmp_path: Path) -> None:
    small = {"options": {"depth": 2, "patch_size": 8}, "trainable_blocks": 1}
    plain = settings(model=small, run={"steps": 2, "out": tmp_path / "plain"})
    compiled = settings(
        model=small, run={"steps": 2, "out": tmp_path / "compiled", "compile": True}
    )
    train(plain)
    train(compiled)
    ours, theirs = last_state(compiled)["student"], last_state(plain)["student"]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
def test_a_machine_that_cannot_compile_is_told_so(
    settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    without = config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))})
    with (
        without,
        pytest.raises(
            SettingsError, match=r"^'run\.compile' needs a C\+\+ compiler here.*: leave it out$"
        ),
    ):
        train(settings(run={"compile": True}))
