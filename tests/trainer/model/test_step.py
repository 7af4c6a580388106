"""The step without redundant passes equals the plain one.

With a shared trunk, only the needed frames, a batch in parts, and references across ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from shards.errors import SettingsError
from tests.helpers.object_store import free_port
from tests.helpers.ranks import environment_of_rank
from tests.trainer.test_train import REPOSITORY, last_state
from trainer.config import TrainSettings
from trainer.data.batch import Batch, slice_batch
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import Rank
from trainer.methods.tracks import draw_indices
from trainer.model.backbone import make_backbone, normalised_images
from trainer.model.feature_sampling import (
    References,
    choose_references,
    crop_references,
    sample_points,
)
from trainer.model.step import Step, step_flops
from trainer.model.step_indices import StepIndices, make_indices
from trainer.run_setup import make_step
from trainer.schedule import step_seed
from trainer.train import TrainingRun, forward_backward, train

Make = Callable[..., TrainSettings]
CPU = torch.device("cpu")


def a_step(settings: TrainSettings, clips: int = 4) -> tuple[Step, Batch]:
    """Make a model whose teacher differs from its student, and a batch."""
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


def select_clips(batch: Batch, clips: list[int]) -> Batch:
    """Select some clips of a batch."""
    parts = {name: value[clips] for name, value in batch.items() if isinstance(value, Tensor)}
    return cast(Batch, parts | {"key": [batch["key"][clip] for clip in clips]})


def all_compared(clips: int, references: References) -> StepIndices:
    """Compare frames 1 to 3 of each clip, with crops of 4 x 4 patches."""
    return make_indices(clips, 4, compared=[1, 2, 3], references=references, side=4)


def gradients(model: Step) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_track_of_weight_0_counts_as_one_that_is_not_seen(settings: Make) -> None:
    model, batch = a_step(settings(loss={"info_nce": {}}))
    draws = all_compared(4, choose_references(4, 4, 3, grid=8, side=4, generator=torch.Generator()))
    plain = model.embed(batch, draws).weights
    weights = torch.ones(4, batch["positions"].shape[2])
    weights[:, ::2], weights[:, 1::4] = 0, 0.25
    weighted = cast(Batch, {**batch, "track_weights": weights})
    torch.testing.assert_close(model.embed(weighted, draws).weights, plain * weights[:, None])

    weights[:, 1::4] = 1
    hidden = batch["visibility"].clone()
    hidden[:, 1:, ::2] = 0
    unseen = cast(Batch, {**batch, "visibility": hidden})
    torch.testing.assert_close(model(weighted, draws)[:2], model(unseen, draws)[:2])


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
def test_embeddings_equal_whole_passes_over_every_frame(
    settings: Make, compared: list[int]
) -> None:
    s = settings()
    model, batch = a_step(s)
    references = choose_references(
        4, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0)
    )
    lean = model.embed(batch, make_indices(4, 4, compared=compared, references=references, side=4))

    images = normalised_images(batch["frames"], s.data.mean, s.data.std).flatten(0, 1)
    # Each is a pass through the whole transformer.
    features = model.student.backbone(images)
    teacher_features = model.teacher.backbone(images)
    points = batch["positions"].flatten(0, 1)
    tracks = model.student.embed(sample_points(features, points, 64, False)).view(4, 4, 36, 16)[
        :, compared
    ]
    anchor = model.teacher.embed(sample_points(teacher_features, points, 64, False)).view(
        4, 4, 36, 16
    )[:, 0]
    crops = model.student.embed(crop_references(features, references, 4))
    for ours, plain in ((lean.student, tracks), (lean.teacher, anchor), (lean.references, crops)):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_a_track_counts_where_it_and_its_anchor_are_visible(settings: Make) -> None:
    model, batch = a_step(settings())
    # One track in all, in frame 2 just below and in frame 3 just above the threshold of 0.9.
    batch["visibility"][:] = 0
    batch["visibility"][0, :, 5] = torch.tensor([0.0, 0.95, 0.85, 0.91])
    batch["confidence"][:] = 1
    batch["inside"][:] = True
    batch["inside"][1:, 0] = False
    batch["visibility"][1, 1, 7] = 0.95  # whose anchor position is outside the crop
    batch["positions"][:] = torch.tensor([31.5, 63.5])
    references = choose_references(
        4, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0)
    )
    embeddings = model.embed(batch, all_compared(4, references))
    assert embeddings.weights.dtype == torch.float32
    assert embeddings.weights.nonzero().tolist() == [[0, 0, 5], [0, 2, 5]]
    assert embeddings.weights.sum() == 2
    # Half of 64 pixels, and the last pixel's lower edge.
    assert embeddings.positions.unique(dim=-2).flatten()[:2].tolist() == [0.5, 1.0]
    assert embeddings.anchor_positions[3, 35].tolist() == [0.5, 1.0]


def test_the_teacher_embeds_the_anchor_frame_in_its_own_colours(settings: Make) -> None:
    s = settings(data={"colour": {"jitter": 1.0, "student_only": True}})
    model, batch = a_step(s)
    _, anchors = model.trunks(batch)
    images = normalised_images(batch["teacher_frame"], s.data.mean, s.data.std)
    torch.testing.assert_close(anchors.values, model.student.backbone.trunk(images).values)
    changed = normalised_images(batch["frames"][:, 0], s.data.mean, s.data.std)
    assert not torch.allclose(
        anchors.values, model.student.backbone.trunk(changed).values, atol=1e-2
    )


def test_a_teacher_averaged_in_all_weights_runs_its_own_trunk(settings: Make) -> None:
    model, batch = a_step(settings("upstream"))
    with torch.no_grad():
        model.teacher.backbone.model.blocks[0].mlp.fc1.weight.mul_(1.5)
    tokens, anchors = model.trunks(batch)
    assert not torch.allclose(tokens.values[::4], anchors.values, atol=1e-3)
    own = normalised_images(
        batch["frames"][:, 0], model.settings.data.mean, model.settings.data.std
    )
    assert torch.equal(anchors.values, model.teacher.backbone.trunk(own).values)


def test_gradients_of_accumulated_parts_are_their_mean(settings: Make) -> None:
    s = settings(run={"accumulate": 2}, references={"count": 1})
    model, batch = a_step(s)
    indices = draw_indices(0, patches=(8, 4), settings=s, rank=Rank(0, 1, CPU))
    loss, parts_of_loss, _ = forward_backward(model, batch, indices)
    together = gradients(model)
    halves = []
    generator = torch.manual_seed(step_seed(s.run.seed, 0, 0))
    total = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        model.zero_grad()
        references = choose_references(2, 4, 1, grid=8, side=4, generator=generator)
        value, _, _ = model(slice_batch(batch, part), all_compared(2, references))
        value.backward()
        halves.append(gradients(model))
        total += value.item() / 2
    assert loss.item() == parts_of_loss["sorting"].item() == pytest.approx(total, abs=1e-6)
    for name, gradient in together.items():
        torch.testing.assert_close(
            gradient, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-7
        )


@pytest.mark.slow
def test_a_run_accumulates_parts_and_uneven_parts_are_refused(settings: Make) -> None:
    assert train(settings(run={"accumulate": 2, "steps": 2}, references={"count": 2})).is_file()
    with pytest.raises(ValueError, match="cannot be shared by 3 parts"):
        settings(run={"accumulate": 3})


@pytest.mark.slow
def test_references_across_ranks_equal_those_of_one_big_batch(
    settings: Make, tmp_path: Path
) -> None:
    s = settings(
        references={"count": 4, "across_ranks": True}, run={"batch_size": 8, "accumulate": 2}
    )
    (tmp_path / "settings.json").write_text(s.model_dump_json())
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.shared_references", str(tmp_path)],
            cwd=REPOSITORY,
            env=os.environ | environment_of_rank(rank, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=150)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    model, batch = a_step(s, clips=8)  # the first four are the first rank's
    generator = torch.Generator().manual_seed(step_seed(s.run.seed, 0, 0))
    total = 0.0
    for clips in ([0, 1, 4, 5], [2, 3, 6, 7]):
        references = choose_references(4, 4, 4, grid=8, side=4, generator=generator)
        loss, _, _ = model(select_clips(batch, clips), all_compared(4, references))
        (loss / 2).backward()
        total += loss.item() / 2
    assert (ranks[0]["loss"] + ranks[1]["loss"]) / 2 == pytest.approx(total, abs=1e-5)
    for name, gradient in gradients(model).items():
        for rank in ranks:
            torch.testing.assert_close(
                rank["gradients"][name], gradient, rtol=1e-3, atol=1e-6, msg=name
            )


def test_flops_are_those_worked_out_by_hand(settings: Make) -> None:
    model = make_step(settings(), None, CPU)
    n, d, patch = 8 * 8 + 1, 192, 8
    # A ViT block: 2 operations per multiply-add, 12 d^2 n in linear layers, 2 n^2 d in attention.
    block = 2 * (12 * d * d * n + 2 * n * n * d)
    trunk = block + 2 * (n - 1) * 3 * patch * patch * d
    assert step_flops(model, 64) == pytest.approx(4 * trunk + 13 * 2 * block, rel=1e-6)
    # With colours of its own the teacher's anchor frame is a fifth one for the trunk.
    own_colours = make_step(settings(data={"colour": {"student_only": True}}), None, CPU)
    assert step_flops(own_colours, 64) == pytest.approx(5 * trunk + 13 * 2 * block, rel=1e-6)
    # With track_mean the teacher sees all 4 frames.
    with_track_mean = make_step(settings(loss={"track_mean": {}}), None, CPU)
    assert step_flops(with_track_mean, 64) == pytest.approx(4 * trunk + 16 * 2 * block, rel=1e-6)


@pytest.mark.slow
def test_compiled_blocks_train_alike_and_are_compiled_once(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"options": {"depth": 2, "patch_size": 8}, "trainable_blocks": 1}
    # Two references per clip of other clips: each step needs another number of frames.
    changes = {"model": small, "loss": {"frames": "curriculum", "curriculum_steps": 100}}
    plain = settings(**changes, run={"steps": 4, "out": tmp_path / "plain"})
    compiled = settings(**changes, run={"steps": 4, "out": tmp_path / "compiled", "compile": True})
    needed, graphs = [], []
    take_step = TrainingRun.take_step

    def count(run: TrainingRun, batch: Batch, indices: Sequence[StepIndices]) -> object:
        result = take_step(run, batch, indices)
        needed.append(len(set(indices[0].tail_frames.tolist())))
        graphs.append(counters["stats"]["unique_graphs"])
        return result

    train(plain)
    counters.clear()
    monkeypatch.setattr(TrainingRun, "take_step", count)
    train(compiled)
    assert len(set(needed[1:])) > 1, needed
    assert graphs[1] == graphs[2] == graphs[3]  # the first step compares three frames, others two
    ours, theirs = last_state(compiled)["student"], last_state(plain)["student"]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
def test_a_missing_compiler_is_named(
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
