"""Trains a backbone on stored tracks with the sorting loss (3DPoV): `python -m trainer CONFIG [key=value ...]`, or under torchrun.

    torchrun --nproc-per-node 4 -m trainer configs/train/pretrack/dinov2_reg_base.yaml data.out=out/mixed

OUT (`run.out`) then holds checkpoints/, weights/ (timm state dicts from before and after), tensorboard/ and settings.json.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import PretrackError, SettingsError
from shards.files import write_whole
from trainer.adapters import add_adapters
from trainer.backbone import Backbone, make_backbone, normalised_images
from trainer.checkpoint import check_same_run, load_checkpoint, newest_checkpoint, save_checkpoint, sweep_checkpoints
from trainer.clips import open_snapshots
from trainer.config import OptimSettings, TrainSettings
from trainer.data import ClipDataset, Loader, Sample
from trainer.export import export_weights
from trainer.losses.embeddings import Embeddings
from trainer.objective import diagnostics
from trainer.ranks import Rank, any_rank, joined, mean_over_ranks
from trainer.sampling import check_references, choose_references, rank_references
from trainer.schedule import compared_frames, learning_rate, step_seed, teacher_momentum
from trainer.step import Step, batch_of, step_flops
from trainer.student_teacher import Embedder, Projection, make_teacher, update_teacher
from trainer.watch import Watch, features_below

log = logging.getLogger(__name__)


class Stopped(PretrackError):
    """The run was asked to end, and can go on where it was."""


def train(settings: TrainSettings) -> Path:
    """Trains, or goes on training; returns the path of the exported weights (written by the first rank).

    Raises PretrackError for settings that do not fit the data, and for a loss or gradient that is not finite; Stopped, after
    writing a checkpoint, if this process was sent SIGTERM.
    """
    with joined(settings.run) as rank, asked_to_stop() as asked:
        return _train(settings, rank, asked)


def _train(settings: TrainSettings, rank: Rank, asked: threading.Event) -> Path:
    s, run = settings, settings.run
    checkpoint = load_state(settings)
    snapshots = open_snapshots(s.data, checkpoint["snapshots"] if checkpoint else None)
    start = checkpoint["step"] if checkpoint else 0
    dataset = ClipDataset(snapshots, s.data, run.seed)
    if checkpoint and checkpoint["clips"] != dataset.identity:
        folders = ", ".join(str(out) for out in s.data.out)
        raise PretrackError(f"{folders} holds other clips than those this run was begun with: take another 'run.out'")
    order = dataset.order(run.batch_size, rank.number, rank.world, start)
    steps = run.steps or max(1, round((run.epochs or 0) * order.steps_per_epoch))

    share = run.batch_size // rank.world
    if share % run.accumulate:
        raise PretrackError(f"the {share} clips of a rank cannot be shared by 'run.accumulate: {run.accumulate}' parts")
    check_references(share // run.accumulate * (rank.world if s.references.across_ranks else 1), s.data.frames, s.references.count)

    torch.manual_seed(run.seed)
    model = make_step(s, checkpoint, rank.device)
    patches = reference_patches(model.student.backbone, s)
    optimizer = make_optimizer(model, s.optim)
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    flops = step_flops(model, s.data.size) * run.batch_size
    if run.compile:
        check_compiler(rank.device)
        model.student.backbone.compile()
        model.teacher.backbone.compile()
    forward: nn.Module = model
    if rank.world > 1:
        forward = DistributedDataParallel(model, device_ids=[rank.device] if rank.device.type == "cuda" else None)
    trained = [p for p in model.parameters() if p.requires_grad]
    exported = (model.student if run.export == "student" else model.teacher).backbone
    log.info("training on %s", ", ".join(f"{snapshot.out} (snapshot {snapshot.name})" for snapshot in snapshots))
    log.info(
        "%d clips, batches of %d, %d steps an epoch; ranks: %d", len(dataset), run.batch_size, order.steps_per_epoch, rank.world
    )
    if rank.first:
        sweep_checkpoints(run.out)
    if rank.first and not checkpoint:
        write_whole(run.out / "settings.json", s.model_dump_json(indent=1).encode())
        export_weights(exported, s, snapshots, 0)

    loader = Loader(dataset, order, run.workers, pin=rank.device.type == "cuda")
    stream = iter(loader)
    with Watch(s, start, steps, order.steps_per_epoch, rank, flops) as watch:
        if rank.first and not checkpoint:
            draw_features(watch, model, dataset, 0)
        for step in range(start, steps):
            begun = time.perf_counter()
            sample = next(stream)
            waited = time.perf_counter() - begun
            compared = compared_frames(step, s.data.frames, s.loss)
            loss, parts, embeddings = forward_backward(forward, sample, compared, patches, step, s, rank)
            norm = nn.utils.clip_grad_norm_(trained, s.optim.clip_norm or math.inf)
            check_finite(loss, norm, step, sample)

            rate = learning_rate(step, steps, s.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            momentum = teacher_momentum(step, steps, s.teacher)
            update_teacher(model.teacher, model.student, momentum, s.teacher.average == "trained")

            done = step + 1
            (stopped,) = any_rank(torch.tensor([asked.is_set()]), rank)
            last = done == steps or stopped
            watch.step(done, loss.item(), waited)
            if done % run.log_every == 0 or last:
                values = {"loss": mean_over_ranks(loss, rank), "lr": rate, "momentum": momentum, "gradient_norm": norm.item()}
                values |= {"frames": len(compared)} | ({f"loss_{k}": v.item() for k, v in parts.items()} if len(parts) > 1 else {})
                values |= {"skipped_clips": loader.skipped} if s.data.on_error == "skip" else {}
                watch.figures(done, values | diagnostics(embeddings, s.loss))
            if rank.first and (done % run.checkpoint_every == 0 or last):
                save_checkpoint(run.out, state_of(s, dataset, done, model, optimizer), run.keep)
                draw_features(watch, model, dataset, done)
            if stopped and done < steps:
                raise Stopped(f"stopped after step {done} of {steps}, which is saved: the same command goes on from there")

    if rank.first:
        export_weights(exported, s, snapshots, max(start, steps))
    return run.out / "weights" / f"step_{max(start, steps):08d}.safetensors"


def forward_backward(
    forward: nn.Module,
    sample: Sample,
    compared: list[int],
    patches: tuple[int, int],
    step: int,
    settings: TrainSettings,
    rank: Rank,
) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
    """Adds the gradient of a rank's clips, `run.accumulate` parts one after the other; `patches` as from `reference_patches`.

    Returns the mean loss, and of the last part the loss's parts and what was compared.
    """
    across, count = settings.references.across_ranks, settings.run.accumulate
    generator = torch.manual_seed(step_seed(settings.run.seed, step, rank.number))  # for whatever else is random, too
    if across:  # the same draw on every rank
        generator = torch.Generator().manual_seed(step_seed(settings.run.seed, step, 0))
    clips = len(sample["frames"]) // count
    total = torch.zeros((), device=rank.device)
    for part in range(count):
        drawn = choose_references(
            clips * (rank.world if across else 1), settings.data.frames, settings.references.count, *patches, generator
        )
        references = rank_references(drawn, clips, rank.number) if across else drawn
        batch = batch_of(sample, settings, rank.device, slice(part * clips, (part + 1) * clips))
        waiting = isinstance(forward, DistributedDataParallel) and part < count - 1
        with forward.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            loss, parts, embeddings = forward(batch, compared, references, patches[1])
            (loss / count).backward()
        total += loss.detach() / count
    return total, parts, embeddings


@torch.no_grad()
def draw_features(watch: Watch, model: Step, dataset: ClipDataset, done: int) -> None:
    """Shows what the student sees in a few clips, always the same: frames above, their features as colours below."""
    data, backbone = model.settings.data, model.student.backbone
    model.student.eval()  # without the dropout of adapters
    for index in range(min(model.settings.run.pictures, len(dataset))):
        sample = dataset[0, index]
        device = next(backbone.parameters()).device
        features = backbone(normalised_images(sample["frames"].to(device), data.mean, data.std))
        watch.picture(done, f"features/{index}", features_below(sample["frames"], features.cpu()))
    model.student.train()


def reference_patches(backbone: Backbone, settings: TrainSettings) -> tuple[int, int]:
    """Patches along a side of the grid and of a reference crop. Raises PretrackError if a crop leaves nothing to sort."""
    grid = backbone.grid(settings.data.size)
    side = round(grid * settings.references.crop_ratio)
    if side < 2:
        raise PretrackError(
            f"a reference would have {side}x{side} patches of a grid of {grid}x{grid}, which leaves nothing to sort: enlarge "
            "'data.size' or 'references.crop_ratio'"
        )
    return grid, side


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Set when this process is sent SIGTERM, as Slurm does before a job's end and clouds before they take a machine back."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def load_state(settings: TrainSettings) -> dict[str, Any] | None:
    """The newest checkpoint of the run's folder, if there is one. Raises PretrackError if this run may not, or cannot, go on."""
    path = newest_checkpoint(settings.run.out)
    if path is None:
        return None
    if not settings.run.resume:
        raise PretrackError(f"{settings.run.out} already holds a run: take another 'run.out', or go on with 'run.resume=true'")
    state = load_checkpoint(path)
    check_same_run(path, state["settings"], settings)
    log.info("going on from %s", path)
    return state


def state_of(
    settings: TrainSettings, dataset: ClipDataset, step: int, model: Step, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What a checkpoint holds after `step` steps."""
    return {
        "step": step,
        "settings": settings.model_dump(mode="json"),
        "snapshots": [snapshot.name for snapshot in dataset.snapshots],
        "clips": dataset.identity,
        **{part: model.get_submodule(part).state_dict() for part in ("student", "teacher", "losses")},
        "optimizer": optimizer.state_dict(),
    }


def make_step(settings: TrainSettings, checkpoint: dict[str, Any] | None, device: torch.device) -> Step:
    """The student, its teacher and the losses, at the beginning or as a checkpoint has them."""
    m = settings.model
    backbone = make_backbone(m.backbone, None if checkpoint else m.weights, m.options)
    backbone.freeze(m.trainable_blocks, m.train_norm)
    if m.lora:
        add_adapters(backbone, m.lora)
    student = Embedder(backbone, Projection(backbone.width, m.head), settings.tracks.align_corners)
    model = Step(student, make_teacher(student), settings.loss.make(m.head[-1]), settings)
    if checkpoint:
        for part in ("student", "teacher", "losses"):
            model.get_submodule(part).load_state_dict(checkpoint[part])
    return model.to(device)


def check_compiler(device: torch.device) -> None:
    """Compiles next to nothing. Raises SettingsError where that cannot be done, since torch would say so in a hundred lines."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))  # type: ignore[no-untyped-call]
    except Exception as error:  # torch has many types for it: no C++ compiler, no Triton, a Python too new
        reason = str(error).strip().split("\n")[0]
        raise SettingsError(f"'run.compile' needs a C++ compiler here, and on CUDA Triton ({reason}): leave it out") from error


def make_optimizer(model: Step, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW in groups: the backbone, and the head and losses, each with weight decay on weights of two or more axes only.

    A group's `ratio` is its learning rate as a part of the head's.
    """
    groups = []
    for parts, ratio in (([model.student.backbone], optim.backbone_ratio), ([model.student.head, model.losses], 1.0)):
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        for decay, chosen in ((optim.weight_decay, [p for p in trained if p.ndim > 1]), (0.0, [p for p in trained if p.ndim < 2])):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "ratio": ratio, "lr": optim.lr * ratio})
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)


def check_finite(loss: Tensor, norm: Tensor, step: int, sample: Sample) -> None:
    """Raises PretrackError, naming the batch's clips, if the loss or the gradient's norm is not finite."""
    if not torch.isfinite(loss + norm):
        raise PretrackError(
            f"step {step + 1}: the loss is {loss.item():.3g} and the gradient's norm {norm.item():.3g}; "
            f"the clips of this rank were {', '.join(sample['key'])}"
        )
