"""Training runs train what they should, resume exactly, and export weights that timm loads."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import AccessError, PretrackError
from tests.helpers.plain_sorting_loss import plain_loss
from tests.trainer.conftest import panning_clip, publish
from trainer import train as training
from trainer.__main__ import main
from trainer.checkpoint import check_same_run, checkpoint_path, load_checkpoint, newest_checkpoint
from trainer.config import TrainSettings
from trainer.data.batch import track_mask
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import Rank
from trainer.losses.embeddings import Embeddings
from trainer.methods import tracks
from trainer.model.backbone import make_backbone, normalised_images
from trainer.model.feature_sampling import choose_references
from trainer.model.step_indices import make_indices
from trainer.run_setup import load_optimizer, make_optimizer, make_step
from trainer.schedule import step_seed
from trainer.train import TrainingRun, train

Make = Callable[..., TrainSettings]
REPOSITORY = Path(__file__).parents[2]


def last_state(settings: TrainSettings) -> dict[str, Any]:
    path = newest_checkpoint(settings.run.out)
    assert path is not None
    return load_checkpoint(path)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Assert that nested values are equal bit for bit; `where` names the place in messages."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def embed_batch(settings: TrainSettings, batch: Any) -> Embeddings:
    """Embed frames 2 and 3 of a batch with a model that is the same for the same seed."""
    torch.manual_seed(0)
    model = make_step(settings, None, torch.device("cpu"))
    references = choose_references(
        4, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0)
    )
    return model.embed(batch, make_indices(4, 4, compared=[2, 3], references=references, side=4))


@pytest.mark.parametrize("recipe", ["pretrack", "upstream"])
def test_a_run_trains_the_last_blocks_and_nothing_else(
    settings: Make, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    s = settings(recipe, run={"steps": 3})
    weights = train(s)
    assert weights == s.run.out / "weights" / "step_00000003.safetensors"
    before = make_backbone(
        "vit_tiny_patch16_224", str(weights.with_name("step_00000000.safetensors")), s.model.options
    )
    after = make_backbone("vit_tiny_patch16_224", str(weights), s.model.options)
    states = zip(before.model.state_dict().items(), after.model.state_dict().values(), strict=True)
    changed = {name.split(".")[1] for (name, a), b in states if not torch.equal(a, b)}
    assert changed == {"1", "2"}  # of blocks 0, 1 and 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert all(word in lines[-1] for word in ("step 3/3", "loss", "spearman", "clips/s"))
    assert list((s.run.out / "tensorboard").iterdir())
    assert json.loads((s.run.out / "settings.json").read_bytes())["recipe"] == recipe


@pytest.mark.slow
def test_a_step_of_upstream_equals_the_plain_loss(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = settings("upstream", run={"steps": 3}, loss={"curriculum_steps": 1})
    steps: list[tuple[Any, ...]] = []
    models: list[Any] = []
    make, run_step = make_step, training.forward_backward

    def record_models(*arguments: Any) -> Any:
        model = make(*arguments)
        models[:] = [model.student, model.teacher]
        return model

    def record_step(forward: Any, batch: Any, indices: Any) -> Any:
        result = run_step(forward, batch, indices)
        gradients = [
            weight.grad.clone() for weight in models[0].parameters() if weight.requires_grad
        ]
        steps.append((result[0].item(), gradients, copy.deepcopy(models), batch))
        return result

    monkeypatch.setattr(tracks, "make_step", record_models)
    monkeypatch.setattr(training, "forward_backward", record_step)
    train(s)

    for step, compared in enumerate([(1, 2, 3), (2, 3), (3,)]):
        loss, gradients, (student, teacher), batch = steps[step]
        references = choose_references(
            4, 4, 3, grid=8, side=4, generator=torch.manual_seed(step_seed(s.run.seed, step, 0))
        )
        student.zero_grad()
        plain = plain_loss(
            student=student.backbone,
            teacher=teacher.backbone,
            student_head=student.head,
            teacher_head=teacher.head,
            frames=normalised_images(batch["frames"], (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)),
            tracks=batch["positions"],
            visible=(batch["visibility"] > 0.9).float(),
            compared=compared,
            reference_frames=references.frame,
            reference_corners=torch.stack([references.top, references.left], dim=-1),
            side=4,
        )
        plain.backward()  # type: ignore[no-untyped-call]
        assert loss == pytest.approx(plain.item(), abs=1e-5)
        expected = [weight.grad for weight in student.parameters() if weight.requires_grad]
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=0, atol=1e-5 * max(1e-2, theirs.abs().max().item())
            )


def test_the_teacher_follows_the_student_and_the_backbone_has_a_lower_rate(settings: Make) -> None:
    s = settings(
        run={"steps": 1},
        teacher={"momentum": 0.75},
        optim={"lr": 1e-3, "backbone_ratio": 0.5, "weight_decay": 0.1},
    )
    train(s)
    state = last_state(s)
    start = make_backbone(
        "vit_tiny_patch16_224",
        str(s.run.out / "weights" / "step_00000000.safetensors"),
        s.model.options,
    )
    for name, value in start.model.state_dict().items():
        student, teacher = (state[who][f"backbone.model.{name}"] for who in ("student", "teacher"))
        torch.testing.assert_close(teacher, 0.75 * value + 0.25 * student)
    groups = state["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (5e-4, 0.1),
        (5e-4, 0.0),
        (1e-3, 0.1),
        (1e-3, 0.0),
    ]


def test_a_track_counts_only_if_visible_in_both_frames(settings: Make) -> None:
    s = settings()
    dataset = ClipDataset(open_snapshots(s.data), s.data, seed=1)
    batch = next(iter(Loader(dataset, dataset.sampler(4))))
    embeddings = embed_batch(s, batch)
    assert embeddings.student.shape == (4, 2, 36, 16)
    assert embeddings.teacher.shape == (4, 36, 16)
    assert embeddings.references.shape == (4, 3, 16, 16)
    torch.testing.assert_close(embeddings.student.norm(dim=-1), torch.ones(4, 2, 36))
    seen = track_mask(batch, s.tracks)
    assert not seen[:, 0].all()  # the crop leaves out part of the anchor frame
    assert torch.equal(embeddings.weights.bool(), seen[:, :1] & seen[:, [2, 3]])


def test_with_student_only_the_teacher_sees_the_anchor_frame_in_its_original_colours(
    settings: Make,
) -> None:
    plain, coloured = (
        settings(),
        settings(data={"colour": {"jitter": 1, "grey": 1, "student_only": True}}),
    )
    both = []
    for s in (plain, coloured):
        dataset = ClipDataset(open_snapshots(s.data), s.data, seed=1)
        both.append(embed_batch(s, next(iter(Loader(dataset, dataset.sampler(4))))))
    torch.testing.assert_close(both[0].teacher, both[1].teacher)
    assert not torch.allclose(both[0].student, both[1].student, atol=1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        {"objective": "published", "sorter": "odd_even"},
        {"objective": "teacher_student", "sorter": "bitonic", "teacher_steepness": 20},
        {"objective": "spearman", "sorter": "bitonic"},
    ],
    ids=lambda loss: f"{loss['objective']}-{loss['sorter']}",
)
def test_every_objective_runs(settings: Make, loss: dict[str, Any]) -> None:
    assert train(settings(loss=loss, run={"steps": 2})).is_file()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Use two threads: the order in which they add up gradients must not change a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("recipe", ["pretrack", pytest.param("upstream", marks=pytest.mark.slow)])
def test_a_killed_and_resumed_run_equals_an_unbroken_one(
    settings: Make, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = settings(recipe, run={"steps": 6, "out": tmp_path / "unbroken", "pictures": 1})
    train(unbroken)

    changes = {"out": tmp_path / "broken", "checkpoint_every": 2, "workers": 1, "pictures": 1}
    broken = settings(recipe, run={"steps": 6, **changes})
    original = training.TrainingRun.take_step

    def killed_at_step_5(run: TrainingRun, batch: Any, indices: Any) -> Any:
        if run.step == 4:
            raise KeyboardInterrupt
        return original(run, batch, indices)

    monkeypatch.setattr(training.TrainingRun, "take_step", killed_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    monkeypatch.undo()
    assert last_state(broken)["step"] == 4
    train(broken)

    a, b = last_state(unbroken), last_state(broken)
    for part in ("step", "snapshots", "student", "teacher", "optimizer"):
        assert_same(a[part], b[part], part)
    assert len(list((tmp_path / "broken" / "checkpoints").iterdir())) == 2  # run.keep


def test_frames_may_be_resized_and_decoded_elsewhere_in_a_resumed_run(
    settings: Make, tmp_path: Path
) -> None:
    def run(name: str, steps: int, resize: str, decode: str = "worker") -> TrainSettings:
        run = {"steps": steps, "out": tmp_path / name, "accumulate": 2}
        data = {"resize": resize, "decode": decode, "reduced_decoding": False}
        return settings(data=data, optim={"lr": 1e-3, "period": 4}, run=run)

    train(run("unbroken", 4, "worker"))
    train(run("broken", 2, "device"))
    train(run("broken", 3, "device", "device"))
    train(run("broken", 4, "worker"))
    a, b = (last_state(run(name, 4, "worker")) for name in ("unbroken", "broken"))
    for part in ("step", "student", "teacher", "optimizer"):
        assert_same(a[part], b[part], part)


def test_a_resumed_run_keeps_its_snapshot(settings: Make, tmp_path: Path) -> None:
    out = tmp_path / "build"
    publish(out, [panning_clip(f"made-{i}", i) for i in range(6)])
    s = settings(data={"out": str(out)}, run={"steps": 2})
    train(s)
    publish(out, [panning_clip(f"made-{i}", i) for i in range(8)])
    train(settings(data={"out": str(out)}, run={"steps": 3}))
    assert last_state(s)["snapshots"] == ["000001"]
    assert last_state(s)["step"] == 3


def test_a_finished_run_has_nothing_left_to_do(settings: Make) -> None:
    s = settings(run={"steps": 1})
    first = train(s).read_bytes()
    assert train(s).read_bytes() == first


def test_a_run_with_other_settings_or_clips_is_not_resumed(settings: Make, tmp_path: Path) -> None:
    train(settings(run={"steps": 1}))
    with pytest.raises(
        PretrackError, match=r"started with other settings \(optim.lr was 0.001, now 0.1\)"
    ):
        train(settings(run={"steps": 2}, optim={"lr": 0.1}))
    with pytest.raises(PretrackError, match="already holds a run"):
        train(settings(run={"steps": 2, "resume": False}))
    publish(tmp_path / "other", [panning_clip(f"other-{i}", i) for i in range(10)])
    with pytest.raises(
        PretrackError, match=r"other holds other clips .* started with: take another 'run\.out'"
    ):
        train(settings(data={"out": str(tmp_path / "other")}, run={"steps": 2}))


def test_a_run_of_another_version_is_refused_but_its_weights_can_be_used(
    settings: Make, tmp_path: Path
) -> None:
    s = settings(run={"steps": 1})
    train(s)
    path, state = checkpoint_path(s.run.out, 1), last_state(s)
    start = (
        f"take another 'run.out', and 'model.weights={path}' to start from what its teacher has "
        "learned"
    )
    torch.save(
        state
        | {
            "settings": state["settings"]
            | {"references": {"count": 3, "crop_ratio": 0.5, "where": "here"}}
        },
        path,
    )
    differing = (
        "perhaps by another version of pretrack (references.across_ranks was unknown, now False, "
        "references.where was here, now"
    )
    with pytest.raises(PretrackError, match=re.escape(differing) + f".*: {re.escape(start)}$"):
        train(s)
    del state["losses"]
    torch.save(state, path)
    with pytest.raises(
        PretrackError,
        match=rf"is of another version of pretrack \(it lacks losses\): {re.escape(start)}$",
    ):
        train(s)
    restarted = settings(
        model={**s.model.model_dump(), "weights": str(path)},
        run={"steps": 1, "out": tmp_path / "restarted"},
    )
    exported = load_file(train(restarted).with_name("step_00000000.safetensors"))
    assert_same(exported, {name: state["teacher"][f"backbone.model.{name}"] for name in exported})


def test_temporary_files_of_a_killed_run_are_removed(settings: Make) -> None:
    s = settings(run={"steps": 1})
    for folder in ("checkpoints", "weights", "mine"):
        (s.run.out / folder).mkdir(parents=True)
        (s.run.out / folder / ".tmp-0a1b2c").touch()
    train(s)
    assert [path.parent.name for path in s.run.out.rglob(".tmp-*")] == ["mine"]


def test_a_damaged_checkpoint_is_named(settings: Make) -> None:
    s = settings(run={"steps": 1})
    train(s)
    path = newest_checkpoint(s.run.out)
    assert path is not None
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PretrackError, match=r"step_00000001.pt cannot be read .* delete it"):
        train(s)


def test_a_checkpoint_that_the_system_cannot_read_is_not_to_be_deleted(tmp_path: Path) -> None:
    """The file may be intact: a folder stands for what the system refuses to read."""
    with pytest.raises(AccessError, match=r"cannot be read: Is a directory$"):
        load_checkpoint(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(settings: Make) -> None:
    s = settings(optim={"lr": 1e30})
    with pytest.raises(
        PretrackError,
        match=r"step 2: the loss is nan .* of this rank were made-0\d, made-0\d, .*: lower 'optim",
    ):
        train(s)
    assert newest_checkpoint(s.run.out) is None


def test_only_time_spent_on_the_loader_counts_as_waiting_for_clips(settings: Make) -> None:
    s = settings(data={"resize": "device", "colour": {"jitter": 1.0}})
    run = TrainingRun(s, Rank(0, 1, torch.device("cpu")))
    batch = next(iter(run.loader))
    run.loader = repeat(batch)  # type: ignore[assignment]
    waits: list[float] = []
    monitor: Any = SimpleNamespace(
        count_step=lambda step, loss, waited: waits.append(waited), log_metrics=lambda *_: None
    )
    run.run_to_end(monitor, threading.Event())
    started = time.perf_counter()
    run.prepare(batch)
    assert len(waits) == 5
    # Resizing takes milliseconds, and taking a batch that is there takes microseconds.
    assert min(waits) < (time.perf_counter() - started) / 20


def test_too_few_clips_for_a_batch_is_an_error(settings: Make) -> None:
    with pytest.raises(PretrackError, match=r"'run.batch_size: 32' is more than the 10 clips"):
        train(settings(run={"batch_size": 32}))
    with pytest.raises(PretrackError, match="takes 2 frames of other clips"):
        train(settings(run={"batch_size": 1}))


def test_a_run_from_before_scores_cameras_and_controls_goes_on(settings: Make) -> None:
    """Settings that did not exist when it began are at their defaults, which change nothing."""
    s = settings()
    original = s.model_dump(mode="json")
    del original["data"]["cameras"], original["tracks"]["max_epipolar_px"]
    for added in ("control", "frames_by", "angle"):
        del original["data"][added]
    del original["model"]["train_embeddings"]
    check_same_run(Path("run/checkpoints/step_00000001.pt"), original, s)
    with pytest.raises(PretrackError, match=r"data.control was none, now shuffled"):
        check_same_run(
            Path("run/checkpoints/step_00000001.pt"),
            original,
            settings(data={**s.data.model_dump(), "control": "shuffled"}),
        )
    with pytest.raises(PretrackError, match=r"tracks.max_epipolar_px was unknown, now 2.0"):
        check_same_run(
            Path("run/checkpoints/step_00000001.pt"),
            original,
            settings(tracks={"max_epipolar_px": 2}),
        )


def test_a_run_that_filters_tracks_by_scores_needs_scores(settings: Make) -> None:
    with pytest.raises(PretrackError, match=r"'tracks.max_epipolar_px' needs scores of tracks"):
        train(settings(tracks={"max_epipolar_px": 2.0}))


def test_exported_weights_load_with_timm_alone(settings: Make) -> None:
    s = settings(run={"steps": 2})
    weights = train(s)
    description = json.loads(weights.with_suffix(".json").read_bytes())
    model = timm.create_model(
        description["timm_id"],
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(weights)},
        **description["options"],
    )
    trained = last_state(s)["student"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"backbone.model.{name}"]), name
    assert description["step"] == 2
    assert description["img_size"] == 64
    assert description["snapshots"][0]["snapshot"] == "000001"


def test_the_command(settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings().model_dump(mode="json")))
    assert main([str(config), "run.steps=1"]) == 0
    assert "trained weights: " in capsys.readouterr().out
    assert main([str(config), "run.stepz=1"]) == 1
    assert (
        capsys.readouterr().err
        == f"trainer: {config}: unknown key 'run.stepz' (did you mean 'steps'?)\n"
    )
    assert main([]) == 2


@pytest.mark.slow
def test_a_run_whose_loader_worker_is_killed_ends_with_one_sentence(
    settings: Make, tmp_path: Path
) -> None:
    s = settings(run={"steps": 500, "out": tmp_path / "run", "workers": 2, "log_every": 1})
    config = tmp_path / "config.json"
    config.write_text(s.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "trainer", str(config)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith("step 2/"):
            assert process.poll() is None
        workers = [
            child
            for child in psutil.Process(process.pid).children()
            if "trainer" in " ".join(child.cmdline())
        ]
        workers[0].kill()
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors.startswith(f"trainer: a worker of the data loader (process {workers[0].pid}) was")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_and_goes_on_as_if_nothing_had_been(
    settings: Make, tmp_path: Path
) -> None:
    assert torch.get_num_threads() == 1, (
        "as in the process below: with others, sums are rounded in another way"
    )
    unbroken = settings(run={"steps": 12, "out": tmp_path / "unbroken", "workers": 1})
    train(unbroken)
    s = settings(run={"steps": 12, "out": tmp_path / "stopped", "workers": 1, "log_every": 1})
    config = tmp_path / "config.json"
    config.write_text(s.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "trainer", str(config)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 3/"):
                os.killpg(
                    process.pid, 15
                )  # all of a job's processes, the loader's too, as Slurm does
    assert process.returncode == 143
    assert "which is saved" in lines[-1], lines
    assert 3 <= last_state(s)["step"] < 12
    train(s)
    for part in ("student", "teacher", "optimizer"):
        assert_same(last_state(s)[part], last_state(unbroken)[part], part)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_stays_fused_or_not_whatever_the_checkpoint_says(
    settings: Make, fused: bool
) -> None:
    """A GPU fuses AdamW, and a CPU does not, so a run can be resumed on the other."""
    s = settings(run={"steps": 1})
    train(s)
    saved = last_state(s)["optimizer"]
    for group in saved["param_groups"]:
        group["fused"] = not fused or None
    optimizer = make_optimizer(make_step(s, None, torch.device("cpu")), s.optim, fused=fused)
    load_optimizer(optimizer, saved)
    assert [group["fused"] for group in optimizer.param_groups] == [fused or None] * 4
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert_same(optimizer.state_dict()["state"][0][name], saved["state"][0][name])
