"""Trains a backbone on stored tracks with the sorting loss (3DPoV): `python -m trainer CONFIG [key=value ...]`, or under torchrun.

    torchrun --nproc-per-node 4 -m trainer configs/train/pretrack/dinov2_reg_base.yaml data.out=out/mixed

OUT (`run.out`) then holds checkpoints/, weights/ (timm state dicts from before and after), tensorboard/ and settings.json.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from shards.errors import PretrackError
from shards.files import write_whole
from trainer.backbone import make_backbone, normalised_images
from trainer.checkpoint import check_same_run, load_checkpoint, newest_checkpoint, save_checkpoint, sweep_checkpoints
from trainer.clips import open_snapshots
from trainer.config import LossSettings, OptimSettings, RunSettings, TrainSettings
from trainer.data import ClipDataset, Loader, Sample, counted
from trainer.export import export_weights
from trainer.objective import diagnostics, make_objective, sorting_loss
from trainer.sampling import References, check_references, choose_references
from trainer.student_teacher import Embedder, Projection, make_teacher, update_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """This process among those that train together."""

    number: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.number == 0


def train(settings: TrainSettings) -> Path:
    """Trains, or goes on training; returns the path of the exported weights (written by the first rank).

    Raises PretrackError for settings that do not fit the data, and for a loss or gradient that is not finite.
    """
    with joined(settings.run) as rank:
        return _train(settings, rank)


def _train(settings: TrainSettings, rank: Rank) -> Path:
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
    check_references(share, s.data.frames, s.references.count)

    torch.manual_seed(run.seed)
    student, teacher = make_models(s, checkpoint, rank.device)
    grid = student.backbone.grid(s.data.size)
    side = round(grid * s.references.crop_ratio)
    if side < 2:
        raise PretrackError(
            f"a reference would have {side}x{side} patches of a grid of {grid}x{grid}, which leaves nothing to sort: enlarge "
            "'data.size' or 'references.crop_ratio'"
        )
    optimizer = make_optimizer(student, s.optim)
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    forward: nn.Module = student
    if rank.world > 1:
        forward = DistributedDataParallel(student, device_ids=[rank.device] if rank.device.type == "cuda" else None)
    trained = [p for p in student.parameters() if p.requires_grad]
    exported = (student if run.export == "student" else teacher).backbone
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
    with Report(run, start, steps, rank) as report:
        for step in range(start, steps):
            batch = next(stream)
            generator = torch.manual_seed(step_seed(run.seed, step, rank.number))
            references = choose_references(share, s.data.frames, s.references.count, grid, side, generator)
            compared = compared_frames(step, s.data.frames, s.loss)
            embeddings = embed(forward, teacher, batch, references, compared, side, s, rank.device)
            loss = sorting_loss(*embeddings, make_objective(s.loss), s.loss.detach_teacher)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, s.optim.clip_norm or math.inf)
            check_finite(loss, norm, step, batch)

            rate = learning_rate(step, steps, s.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update_teacher(teacher, student, s.teacher.momentum, s.teacher.average == "trained")

            done, last = step + 1, step + 1 == steps
            if done % run.log_every == 0 or last:
                values = {"loss": mean_over_ranks(loss, rank), "lr": rate, "gradient_norm": norm.item(), "frames": len(compared)}
                values |= {"skipped_clips": loader.skipped} if s.data.on_error == "skip" else {}
                report(done, values | diagnostics(*embeddings, s.loss))
            else:
                report(done)
            if rank.first and (done % run.checkpoint_every == 0 or last):
                save_checkpoint(run.out, state_of(s, dataset, done, student, teacher, optimizer), run.keep)

    if rank.first:
        export_weights(exported, s, snapshots, max(start, steps))
    return run.out / "weights" / f"step_{max(start, steps):08d}.safetensors"


def embed(
    student: nn.Module,
    teacher: Embedder,
    batch: Sample,
    references: References,
    compared: list[int],
    side: int,
    settings: TrainSettings,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the loss compares: the student's tracks, the teacher's, the references' patches, and which tracks count.

    Shapes are those of `sorting_loss`; embeddings are float32 whatever the transformers' precision.
    """
    frames, *own = (
        normalised_images(batch[name].to(device, non_blocking=True), settings.data.mean, settings.data.std)  # type: ignore[literal-required]
        for name in ("frames", "teacher_frame")
        if name in batch
    )
    points = batch["positions"].to(device, non_blocking=True)
    visible = counted(batch, settings.tracks).to(device, torch.float32)
    half = settings.run.precision == "bfloat16" and device.type == "cuda"
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        tracks, crops = student(frames, points, compared, references.to(device), side)
        with torch.no_grad():
            anchor = teacher.anchor(own[0] if own else frames[:, 0], points[:, 0])
    return tracks, anchor, crops, visible[:, :1] * visible[:, compared]


@contextmanager
def joined(run: RunSettings) -> Iterator[Rank]:
    """This process's rank, as torchrun's environment says; joins and leaves the others where there are any."""
    number, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if run.device == "cuda" and not torch.cuda.is_available():
        raise PretrackError("'run.device: cuda' was asked for, and torch sees no CUDA device here")
    cuda = run.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    deterministic = torch.are_deterministic_algorithms_enabled()
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.use_deterministic_algorithms(True)  # costs little on a CPU, where adding up gradients is otherwise a race of threads
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Rank(number, world, device)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        if world > 1:
            dist.destroy_process_group()


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
    settings: TrainSettings,
    dataset: ClipDataset,
    step: int,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """What a checkpoint holds after `step` steps."""
    return {
        "step": step,
        "settings": settings.model_dump(mode="json"),
        "snapshots": [snapshot.name for snapshot in dataset.snapshots],
        "clips": dataset.identity,
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def make_models(settings: TrainSettings, checkpoint: dict[str, Any] | None, device: torch.device) -> tuple[Embedder, Embedder]:
    """The student and its teacher, at the beginning or as a checkpoint has them."""
    m = settings.model
    backbone = make_backbone(m.backbone, None if checkpoint else m.weights, m.options)
    backbone.freeze(m.trainable_blocks, m.train_norm)
    student = Embedder(backbone, Projection(backbone.width, m.head), settings.tracks.align_corners)
    teacher = make_teacher(student)
    if checkpoint:
        student.load_state_dict(checkpoint["student"])
        teacher.load_state_dict(checkpoint["teacher"])
    return student.to(device), teacher.to(device)


def make_optimizer(student: Embedder, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW in four groups: backbone and head, each with weight decay on weights of two or more axes only.

    A group's `ratio` is its learning rate as a part of the head's.
    """
    groups = []
    for part, ratio in ((student.backbone, optim.backbone_ratio), (student.head, 1.0)):
        trained = [p for p in part.parameters() if p.requires_grad]
        for decay, chosen in ((optim.weight_decay, [p for p in trained if p.ndim > 1]), (0.0, [p for p in trained if p.ndim < 2])):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "ratio": ratio, "lr": optim.lr * ratio})
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)


def learning_rate(step: int, steps: int, optim: OptimSettings) -> float:
    """The head's learning rate at a step: a linear rise, then a cosine to 0, which climbs again past its period."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    period = (optim.period or steps) - optim.warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(1, period)))


def compared_frames(step: int, frames: int, loss: LossSettings) -> list[int]:
    """Which of a sample's frames 1..T-1 are compared with the anchor frame at a step (`loss.frames` says how)."""
    dropped = 0 if loss.frames == "all" or step == 0 else 1 + (step - 1) // loss.curriculum_steps
    return list(range(1 + min(dropped, frames - 2), frames))


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for everything random in one step of one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def check_finite(loss: Tensor, norm: Tensor, step: int, batch: Sample) -> None:
    """Raises PretrackError, naming the batch's clips, if the loss or the gradient's norm is not finite."""
    if not torch.isfinite(loss + norm):
        raise PretrackError(
            f"step {step + 1}: the loss is {loss.item():.3g} and the gradient's norm {norm.item():.3g}; "
            f"the clips of this rank were {', '.join(batch['key'])}"
        )


def mean_over_ranks(value: Tensor, rank: Rank) -> float:
    """A scalar's mean over all ranks, in each of which this must be called."""
    value = value.detach().clone()
    if rank.world > 1:
        dist.all_reduce(value)
    return value.item() / rank.world


class Report:
    """Progress of the first rank: a line and TensorBoard scalars every now and then, and a bar where there is a terminal."""

    def __init__(self, run: RunSettings, start: int, steps: int, rank: Rank) -> None:
        self.run, self.start, self.steps, self.rank = run, start, steps, rank
        self.console = Console(quiet=not rank.first, soft_wrap=True, highlight=False)
        self.progress = Progress(console=self.console, disable=not (rank.first and self.console.is_terminal))
        self.task = self.progress.add_task("training", total=steps, completed=start)

    def __enter__(self) -> Report:
        self.writer = SummaryWriter(str(self.run.out / "tensorboard"), purge_step=self.start + 1) if self.rank.first else None
        self.progress.start()
        self.last, self.last_time = self.start, time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.writer:
            self.writer.close()

    def __call__(self, step: int, values: dict[str, float] | None = None) -> None:
        """Counts a step; with values, writes them."""
        self.progress.update(self.task, completed=step)
        if not values or not self.writer:
            return
        now = time.perf_counter()
        values = values | {"clips_per_second": (step - self.last) * self.run.batch_size / (now - self.last_time)}
        self.last, self.last_time = step, now
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.console.print(
            f"step {step}/{self.steps}  loss {values['loss']:.4f}  spearman {values['spearman']:.3f}  "
            f"visible {values['visible']:.2f}  lr {values['lr']:.2e}  {values['clips_per_second']:.1f} clips/s"
        )
