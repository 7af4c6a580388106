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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import PretrackError, SettingsError
from shards.files import atomic_write
from trainer.checkpoint import (
    check_same_run,
    load_checkpoint,
    newest_checkpoint,
    remove_temporary_files,
    save_checkpoint,
)
from trainer.config import OptimSettings, TrainSettings
from trainer.data.batch import Batch, slice_batch, to_device
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import (
    Rank,
    all_reduce_any,
    all_reduce_mean,
    broadcast_from_rank0,
    init_distributed,
)
from trainer.export import export_weights, weights_path
from trainer.feature_colours import frames_above_features
from trainer.losses.embeddings import Embeddings
from trainer.losses.sorting.objective import diagnostics
from trainer.metric_logging import TrainingMonitor
from trainer.model.backbone import Backbone, make_backbone, normalised_images
from trainer.model.feature_sampling import check_references, choose_references, rank_references
from trainer.model.lora import add_adapters
from trainer.model.step import Step, step_flops
from trainer.model.student_teacher import Embedder, Projection, make_teacher, update_teacher
from trainer.schedule import compared_frames, learning_rate, step_seed, teacher_momentum

log = logging.getLogger(__name__)


class Stopped(PretrackError):
    """The run was asked to end, and can go on where it was."""


def train(settings: TrainSettings) -> Path:
    """Trains, or goes on training; returns the path of the exported weights (written by the first rank).

    Raises PretrackError for settings that do not fit the data, and for a loss or gradient that is not finite; Stopped, after
    writing a checkpoint, if this process was sent SIGTERM.
    """
    with init_distributed(settings.run.device) as rank, asked_to_stop() as asked:
        run = TrainingRun(settings, rank)
        run.begin()
        with TrainingMonitor(
            settings, run.done, run.steps, run.order.steps_per_epoch, rank, run.flops
        ) as watch:
            run.go_on(watch, asked)
        return run.export()


@dataclass(frozen=True)
class StepResult:
    """What a rank knows of a step that it took: its loss, that loss's parts by name, what was compared, and other figures."""

    loss: Tensor
    parts: dict[str, Tensor]
    embeddings: Embeddings
    figures: dict[str, float]


class TrainingRun:
    """A run on one of its ranks: clips, models and optimizer, at the beginning or as the newest checkpoint has them.

    Raises PretrackError for settings that do not fit the data, or that the run was not begun with.
    """

    def __init__(self, settings: TrainSettings, rank: Rank) -> None:
        s, run = settings, settings.run
        # other nodes may see another 'run.out', or a snapshot that was published since
        checkpoint, snapshots = broadcast_from_rank0(lambda: load_state(s), rank)
        self.settings, self.rank = s, rank
        self.done = checkpoint["step"] if checkpoint else 0
        """Steps that were taken."""
        self.dataset = ClipDataset(open_snapshots(s.data, snapshots), s.data, run.seed)
        if self.dataset.identity != broadcast_from_rank0(
            lambda: checkpoint["clips"] if checkpoint else self.dataset.identity, rank
        ):
            folders = ", ".join(str(out) for out in s.data.out)
            raise PretrackError(
                f"{folders} holds other clips than those this run was begun with: take another 'run.out', or, with several nodes, "
                "the same build on each of them"
            )
        self.order = self.dataset.sampler(run.batch_size, rank.number, rank.world, self.done)
        check_parts(s, rank.world)
        self.steps = run.steps or max(1, round((run.epochs or 0) * self.order.steps_per_epoch))
        self.loader = Loader(self.dataset, self.order, run.workers, pin=rank.device.type == "cuda")

        torch.manual_seed(run.seed)
        self.model = make_step(s, checkpoint, rank.device)
        self.patches = reference_patches(self.model.student.backbone, s)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, s.optim)
        if checkpoint:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.flops = step_flops(self.model, s.data.size) * run.batch_size
        if run.compile:
            check_compiler(rank.device)
            self.model.student.backbone.compile()
            self.model.teacher.backbone.compile()
        self.forward: nn.Module = self.model
        if rank.world > 1:
            self.forward = DistributedDataParallel(
                self.model, device_ids=[rank.device] if rank.device.type == "cuda" else None
            )

    def begin(self) -> None:
        """Says what is trained on what, clears what a killed run left, and writes what there is to keep before the first step."""
        s = self.settings
        folders = ", ".join(
            f"{snapshot.out} (snapshot {snapshot.name})" for snapshot in self.dataset.snapshots
        )
        log.info("training on %s", folders)
        clips, epoch = len(self.dataset), self.order.steps_per_epoch
        log.info(
            "%d clips, batches of %d, %d steps an epoch; ranks: %d",
            clips,
            s.run.batch_size,
            epoch,
            self.rank.world,
        )
        if self.rank.first:
            remove_temporary_files(s.run.out)
        if self.rank.first and not self.done:
            atomic_write(s.run.out / "settings.json", s.model_dump_json(indent=1).encode())
            self.export()

    def go_on(self, watch: TrainingMonitor, asked: threading.Event) -> None:
        """Trains up to the last step. Raises Stopped, after writing a checkpoint, where any rank was `asked`."""
        run = self.settings.run
        stream = iter(self.loader)
        if self.rank.first and not self.done:
            draw_features(watch, self.model, self.dataset, 0)
        while self.done < self.steps:
            begun = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - begun
            trained = self.step(batch)
            (stopped,) = all_reduce_any(torch.tensor([asked.is_set()]), self.rank)
            last = self.done == self.steps or stopped
            watch.step(self.done, trained.loss.item(), waited)
            if self.done % run.log_every == 0 or last:
                watch.figures(self.done, self.figures(trained))
            if self.done % run.checkpoint_every == 0 or last:
                broadcast_from_rank0(
                    lambda: self.save(watch), self.rank
                )  # all wait: when one ends, torchrun ends the others
            if stopped and self.done < self.steps:
                raise Stopped(
                    f"stopped after step {self.done} of {self.steps}, which is saved: the same command goes on from there"
                )

    def step(self, batch: Batch) -> StepResult:
        """Takes a step on this rank's clips. Raises PretrackError where the loss or the gradient is not finite."""
        s, step = self.settings, self.done
        compared = compared_frames(step, s.data.frames, s.loss)
        loss, parts, embeddings = forward_backward(
            self.forward, batch, compared, self.patches, step, s, self.rank
        )
        norm = nn.utils.clip_grad_norm_(self.trained, s.optim.clip_norm or math.inf)
        check_finite(loss, norm, step, batch)

        rate = learning_rate(step, self.steps, s.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        momentum = teacher_momentum(step, self.steps, s.teacher)
        update_teacher(
            self.model.teacher, self.model.student, momentum, s.teacher.average == "trained"
        )
        self.done += 1
        figures = {
            "lr": rate,
            "momentum": momentum,
            "gradient_norm": norm.item(),
            "frames": len(compared),
        }
        return StepResult(loss, parts, embeddings, figures)

    def figures(self, trained: StepResult) -> dict[str, float]:
        """What is written of a step: means over all ranks, each of which must call this."""
        s, values = self.settings, {"loss": trained.loss.item()}
        values |= (
            {f"loss_{name}": part.item() for name, part in trained.parts.items()}
            if len(trained.parts) > 1
            else {}
        )
        values |= (
            {"skipped_clips": self.loader.skipped * self.rank.world}
            if s.data.on_error == "skip"
            else {}
        )  # their sum
        values |= diagnostics(trained.embeddings, s.loss) | trained.figures
        return dict(
            zip(
                values, all_reduce_mean(torch.tensor(list(values.values())), self.rank), strict=True
            )
        )

    def save(self, watch: TrainingMonitor) -> None:
        """Writes a checkpoint, and pictures of where the run is."""
        state = {
            "step": self.done,
            "settings": self.settings.model_dump(mode="json"),
            "snapshots": [snapshot.name for snapshot in self.dataset.snapshots],
            "clips": self.dataset.identity,
            **{
                part: self.model.get_submodule(part).state_dict()
                for part in ("student", "teacher", "losses")
            },
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(self.settings.run.out, state, self.settings.run.keep)
        draw_features(watch, self.model, self.dataset, self.done)

    def export(self) -> Path:
        """The path of the weights as they are; the first rank writes them."""
        s = self.settings
        if self.rank.first:
            backbone = (
                self.model.student if s.run.export == "student" else self.model.teacher
            ).backbone
            export_weights(backbone, s, self.dataset.snapshots, self.done)
        return weights_path(s.run.out, self.done)


def check_parts(settings: TrainSettings, world: int) -> None:
    """Raises PretrackError if a rank's clips cannot be shared by the parts of a step, or are too few for their references."""
    run, references = settings.run, settings.references
    share = run.batch_size // world
    if share % run.accumulate:
        raise PretrackError(
            f"the {share} clips of a rank cannot be shared by 'run.accumulate: {run.accumulate}' parts"
        )
    together = share // run.accumulate * (world if references.across_ranks else 1)
    check_references(together, settings.data.frames, references.count)


def forward_backward(
    forward: nn.Module,
    batch: Batch,
    compared: list[int],
    patches: tuple[int, int],
    step: int,
    settings: TrainSettings,
    rank: Rank,
) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
    """Adds the gradient of a rank's clips, `run.accumulate` parts one after the other; `patches` as from `reference_patches`.

    Returns the mean loss, the means of what it is the sum of, and what was compared in the last part.
    """
    across, count = settings.references.across_ranks, settings.run.accumulate
    generator = torch.manual_seed(
        step_seed(settings.run.seed, step, rank.number)
    )  # for whatever else is random, too
    if across:  # the same draw on every rank
        generator = torch.Generator().manual_seed(step_seed(settings.run.seed, step, 0))
    clips = len(batch["frames"]) // count
    total, means = torch.zeros((), device=rank.device), dict[str, Tensor]()
    for part in range(count):
        drawn = choose_references(
            clips * (rank.world if across else 1),
            settings.data.frames,
            settings.references.count,
            *patches,
            generator,
        )
        references = rank_references(drawn, clips, rank.number) if across else drawn
        part_of_batch = slice_batch(batch, slice(part * clips, (part + 1) * clips))
        part_of_batch = to_device(part_of_batch, rank.device)
        waiting = isinstance(forward, DistributedDataParallel) and part < count - 1
        with forward.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            loss, losses, embeddings = forward(part_of_batch, compared, references, patches[1])
            (loss / count).backward()
        total += loss.detach() / count
        means = {name: means.get(name, 0) + value / count for name, value in losses.items()}
    return total, means, embeddings


@torch.no_grad()
def draw_features(watch: TrainingMonitor, model: Step, dataset: ClipDataset, done: int) -> None:
    """Shows what the student sees in a few clips, always the same: frames above, their features as colours below."""
    data, backbone = model.settings.data, model.student.backbone
    model.student.eval()  # without the dropout of adapters
    for index in range(min(model.settings.run.pictures, len(dataset))):
        sample = dataset[0, index]
        device = next(backbone.parameters()).device
        features = backbone(normalised_images(sample["frames"].to(device), data.mean, data.std))
        watch.picture(
            done, f"features/{index}", frames_above_features(sample["frames"], features.cpu())
        )
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


def load_state(settings: TrainSettings) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint of the run's folder, if there is one, and the names of the snapshots that the run trains on.

    Raises PretrackError if this run may not, or cannot, go on.
    """
    path = newest_checkpoint(settings.run.out)
    if path is None:
        return None, [snapshot.name for snapshot in open_snapshots(settings.data)]
    if not settings.run.resume:
        raise PretrackError(
            f"{settings.run.out} already holds a run: take another 'run.out', or go on with 'run.resume=true'"
        )
    state = load_checkpoint(path)
    check_same_run(path, state["settings"], settings)
    log.info("going on from %s", path)
    return state, state["snapshots"]


def make_step(
    settings: TrainSettings, checkpoint: dict[str, Any] | None, device: torch.device
) -> Step:
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
    except (
        Exception
    ) as error:  # torch has many types for it: no C++ compiler, no Triton, a Python too new
        reason = str(error).strip().split("\n")[0]
        raise SettingsError(
            f"'run.compile' needs a C++ compiler here, and on CUDA Triton ({reason}): leave it out"
        ) from error


def make_optimizer(model: Step, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW in groups: the backbone, and the head and losses, each with weight decay on weights of two or more axes only.

    A group's `ratio` is its learning rate as a part of the head's.
    """
    groups = []
    for parts, ratio in (
        ([model.student.backbone], optim.backbone_ratio),
        ([model.student.head, model.losses], 1.0),
    ):
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        for decay, chosen in (
            (optim.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "weight_decay": decay,
                        "ratio": ratio,
                        "lr": optim.lr * ratio,
                    }
                )
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)


def check_finite(loss: Tensor, norm: Tensor, step: int, batch: Batch) -> None:
    """Raises PretrackError, naming the batch's clips, if the loss or the gradient's norm is not finite."""
    if not torch.isfinite(loss + norm):
        raise PretrackError(
            f"step {step + 1}: the loss is {loss.item():.3g} and the gradient's norm {norm.item():.3g}; "
            f"the clips of this rank were {', '.join(batch['key'])}: lower 'optim.lr', set 'optim.clip_norm', or leave bad "
            "ones out with 'data.where'"
        )
