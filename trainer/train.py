"""The training loop: `python -m trainer CONFIG [key=value ...]`, or the same under torchrun.

    torchrun --nproc-per-node 4 -m trainer configs/train/pretrack/dino_base.yaml data.out=out/mixed

Read from top to bottom: `train` sets a run up, `TrainingRun.run_to_end` is the loop,
`TrainingRun.take_step` one optimiser step, `forward_backward` its gradient. What is trained, and by
which loss, is the method's (`trainer/methods/`).

OUT (`run.out`) then holds checkpoints/, weights/ (timm state dicts from before the first step and
after the last), tensorboard/ and settings.json; with `run.evaluate_every` also heldout.json.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import PretrackError
from shards.files import atomic_write
from trainer.checkpoint import load_on_all_ranks, remove_temporary_files, save_checkpoint
from trainer.config import TrainSettings
from trainer.cuda_device import check_precision, explain_out_of_memory
from trainer.data.batch import Batch, slice_batch
from trainer.data.clip_table import open_snapshots
from trainer.data.control import CONTROLS
from trainer.data.dataset import ClipDataset
from trainer.data.device_batches import CopyStream
from trainer.data.device_decoding import check_decoder
from trainer.data.device_frames import make_frames
from trainer.data.loader import Loader, explain_killed_workers
from trainer.distributed import (
    Rank,
    StopAgreement,
    all_reduce_mean,
    broadcast_from_rank0,
    init_distributed,
)
from trainer.export import weights_path
from trainer.feature_colours import frames_above_features
from trainer.heldout_evaluation import HeldOutEvaluation, read_scores
from trainer.methods.chosen import METHODS
from trainer.methods.draws import Draws, pack_draws, unpack_draws
from trainer.methods.method import Method
from trainer.metric_logging import TrainingMonitor
from trainer.run_setup import (
    check_batch_split,
    check_compiler,
    load_optimizer,
    make_optimizer,
)
from trainer.schedule import learning_rate
from trainer.step_record import StepRecord, check_weights
from trainer.stop_signal import stop_on_sigterm
from trainer.training_footage import (
    CHECKPOINT_KEY,
    UNKNOWN,
    TrainingFootage,
    training_footage,
)

log = logging.getLogger(__name__)


class Stopped(PretrackError):
    """The run was asked to stop; it saved a checkpoint and can be resumed."""


def train(settings: TrainSettings) -> Path:
    """Train, or resume training; return the path of the exported weights.

    The first rank writes them. Raises PretrackError for settings that do not fit the data, for a
    loss or gradient that is not finite, and if a worker of the loader was killed; raises Stopped,
    after saving a checkpoint, if this process received SIGTERM.
    """
    with (
        explain_killed_workers(),
        init_distributed(settings.run.device) as rank,
        stop_on_sigterm() as stop_requested,
        explain_out_of_memory(rank.device),
    ):
        check_precision(rank.device, settings.run.precision)
        run = TrainingRun(settings, rank)
        run.prepare_folder()
        with TrainingMonitor(
            settings,
            rank,
            first_step=run.step,
            last_step=run.last_step,
            steps_per_epoch=run.sampler.steps_per_epoch,
            flops_per_step=run.flops_per_step,
            shown=run.method.console,
        ) as monitor:
            run.run_to_end(monitor, stop_requested)
        return run.export()


@dataclass(frozen=True)
class StepResult:
    """The results of a step on one rank.

    loss:       the weighted sum of the losses, a scalar
    parts:      each unweighted loss by name, scalars
    kept:       what the method's figures are computed from, of the step's last part
    draws:      what was drawn for that part
    metrics:    learning rate, gradient norm, and what the method reports after a step

    Tensors are on the device, and may not have been computed yet.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    kept: Any
    draws: Draws
    metrics: dict[str, float | Tensor]


class TrainingRun:
    """The state of a run on one rank: clips, models and optimizer, new or from a checkpoint.

    Raises PretrackError for settings that do not fit the data or the run that is resumed.
    """

    def __init__(self, settings: TrainSettings, rank: Rank) -> None:
        self.settings, self.rank = settings, rank
        run, on_cuda = settings.run, rank.device.type == "cuda"
        checkpoint, snapshots = load_on_all_ranks(settings, rank)
        self.step: int = checkpoint["step"] if checkpoint else 0
        """Steps taken so far."""
        self.before = _footage_before(settings, checkpoint) if rank.first else UNKNOWN
        """What the start weights were trained on; after resuming, also this run's clips."""

        self.dataset = ClipDataset(
            open_snapshots(settings.data, snapshots),
            settings.data,
            run.seed,
            settings.tracks.max_epipolar_px,
            settings.tracks.epipolar_weight_px,
        )
        self._check_clips(checkpoint["clips"] if checkpoint else None)
        self.sampler = self.dataset.sampler(run.batch_size, rank.number, rank.world, self.step)
        check_batch_split(settings, rank.world)
        if settings.data.decode == "device":
            check_decoder(rank.device)
        epochs = run.epochs or 0
        self.last_step = run.steps or max(1, round(epochs * self.sampler.steps_per_epoch))
        self.loader = Loader(self.dataset, self.sampler, run.workers, pin=on_cuda)
        self.copies = CopyStream(rank.device)

        torch.manual_seed(run.seed)
        self.method: Method = METHODS[settings.method](
            settings, checkpoint, rank, self.dataset.points
        )
        self.model = self.method.model
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        # Only the first rank evaluates.
        self.evaluation = HeldOutEvaluation.of(settings) if rank.first else None
        if self.evaluation:
            self.evaluation.check_not_trained_on(self._trained_on_at_the_end())
        self.record = StepRecord(rank.device, deferred=on_cuda)
        self.optimizer = make_optimizer(self.model, settings.optim, fused=on_cuda)
        if on_cuda:
            self.optimizer.found_inf = self.record.not_finite  # type: ignore[attr-defined]
        if checkpoint:
            load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.flops_per_step = self.method.flops_per_clip() * run.batch_size

        self.forward: nn.Module = self.model
        if rank.world > 1:
            # No `static_graph`, which does not allow the first parts of a step to be `no_sync`.
            with warnings.catch_warnings():
                # torch 2.15 warns that `broadcast_buffers` has a new name, which 2.11 lacks.
                warnings.simplefilter("ignore", FutureWarning)
                self.forward = DistributedDataParallel(
                    self.model, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        # DistributedDataParallel may have replaced the weights by those of rank 0.
        if on_cuda and run.precision == "bfloat16":
            self.method.keep_bfloat16()
        if run.compile:
            check_compiler(rank.device)
            self.method.compile()

    def _check_clips(self, identity: str | None) -> None:
        """Raise PretrackError unless this rank has the clips of the checkpoint and of rank 0."""
        expected = broadcast_from_rank0(lambda: identity or self.dataset.identity, self.rank)
        if self.dataset.identity != expected:
            folders = ", ".join(str(out) for out in self.settings.data.out)
            raise PretrackError(
                f"{folders} holds other clips than those this run was started with: take another "
                "'run.out', or, with several nodes, the same build on each of them"
            )

    def prepare_folder(self) -> None:
        """Log the run's data, remove temporary files, and write what precedes the first step.

        That is settings.json and the start weights. Only the first rank writes.
        """
        s = self.settings
        folders = [
            f"{snapshot.out} (snapshot {snapshot.name})" for snapshot in self.dataset.snapshots
        ]
        log.info("training on %s", ", ".join(folders))
        log.info(
            "%d clips, batches of %d, %d steps per epoch; ranks: %d",
            len(self.dataset),
            s.run.batch_size,
            self.sampler.steps_per_epoch,
            self.rank.world,
        )
        if s.data.control != "none":
            log.info("control '%s': %s", s.data.control, CONTROLS[s.data.control])
        if self.rank.first:
            remove_temporary_files(s.run.out)
        if self.rank.first and self.step == 0:
            atomic_write(s.run.out / "settings.json", s.model_dump_json(indent=1).encode())
            self.export()

    def run_to_end(self, monitor: TrainingMonitor, stop_requested: threading.Event) -> None:
        """Train to the last step. Raises Stopped, after saving, if any rank was asked to stop."""
        run, stop = self.settings.run, StopAgreement(self.rank)
        batches = iter(self.loader)
        if self.rank.first:
            if self.step == 0:
                draw_features(monitor, self.method, self.dataset, run.pictures, 0)
                self.evaluate(monitor)
            else:
                self.catch_up(monitor)
        # On CUDA the host only queues a step. It waits for the device where it reads values: to
        # report, to save, and at the end of an epoch.
        while self.step < self.last_step:
            wait_started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - wait_started
            result = self.take_step(*self.prepare(batch))

            stopping = stop.agreed(stop_requested.is_set())
            ending = self.step == self.last_step or stopping
            reporting = self.step % run.log_every == 0 or ending
            saving = self.step % run.checkpoint_every == 0 or ending
            if reporting or saving:
                self.record.check()
            monitor.count_step(self.step, result.loss, waited)
            if reporting:
                monitor.log_metrics(self.step, self.mean_metrics(result))
            if saving:
                # all ranks wait for the save: torchrun ends the others as soon as one has ended
                broadcast_from_rank0(lambda: self.save(monitor), self.rank)
            if self._is_due(run.export_every) and self.step < self.last_step:
                self.export()
            if self._is_due(run.evaluate_every):
                broadcast_from_rank0(lambda: self.evaluate(monitor), self.rank)
            if stopping and self.step < self.last_step:
                raise Stopped(
                    f"stopped after step {self.step} of {self.last_step}, which is saved: "
                    "the same command resumes there"
                )

    def prepare(self, batch: Batch) -> tuple[Batch, list[Draws]]:
        """Return the loader's next batch with frames, and the draws of its parts, on the device.

        It is not part of the time spent waiting for the loader.
        """
        parts = self.method.draw(self.step)
        batch, packed = self.copies.copy(batch, pack_draws(parts))
        return make_frames(batch, self.settings.data), unpack_draws(packed, parts)

    def take_step(self, batch: Batch, draws: Sequence[Draws]) -> StepResult:
        """Take one optimiser step on this rank's clips, which are on the device.

        A step that is not finite changes no weight: on the CPU this raises PretrackError; on CUDA
        `record.check` does.
        """
        s, step = self.settings, self.step
        loss, parts, kept = forward_backward(self.forward, batch, draws)
        norm = self._clip_gradients()
        self.record.add(loss, norm, step + 1, list(batch["key"]))

        rate = learning_rate(step, self.last_step, s.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        metrics: dict[str, float | Tensor] = {"lr": rate, "gradient_norm": norm}
        metrics |= self.method.after_step(step, self.last_step)
        self.step += 1
        return StepResult(loss, parts, kept, draws[-1], metrics)

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient's norm if the settings ask for it; return the norm before."""
        if limit := self.settings.optim.clip_norm:
            return nn.utils.clip_grad_norm_(self.trained, limit)
        return nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])

    def mean_metrics(self, result: StepResult) -> dict[str, float]:
        """Return a step's metrics, averaged over all ranks; every rank must call this."""
        s = self.settings
        values: dict[str, float | Tensor] = {"loss": result.loss}
        if len(result.parts) > 1:
            values |= {f"loss_{name}": part for name, part in result.parts.items()}
        if s.data.on_error == "skip":
            # times the number of ranks: the mean is then the sum over ranks
            values["skipped_clips"] = self.loader.skipped * self.rank.world
        values |= {**self.method.figures(result.kept, result.draws), **result.metrics}
        # one read for all that is on the device
        on_device = {name: v.float() for name, v in values.items() if isinstance(v, Tensor)}
        values |= zip(on_device, torch.stack([*on_device.values()]).tolist(), strict=True)
        means = all_reduce_mean(torch.tensor([*values.values()]), self.rank)
        return dict(zip(values, means, strict=True))

    def save(self, monitor: TrainingMonitor) -> None:
        """Save a checkpoint, and log pictures of the student's features.

        Raises PretrackError, and saves nothing, if a weight is not finite.
        """
        check_weights(self.trained, self.step)
        state = {
            "step": self.step,
            "settings": self.settings.model_dump(mode="json"),
            "snapshots": [snapshot.name for snapshot in self.dataset.snapshots],
            "clips": self.dataset.identity,
            **{part: self.model.get_submodule(part).state_dict() for part in self.method.parts},
            "optimizer": self.optimizer.state_dict(),
            CHECKPOINT_KEY: self.trained_on().to_checkpoint(),
        }
        run = self.settings.run
        save_checkpoint(run.out, state, run.keep)
        draw_features(monitor, self.method, self.dataset, run.pictures, self.step)

    def trained_on(self) -> TrainingFootage:
        """Return what the weights after the steps so far were trained on, on the first rank."""
        return self._trained_on_at_the_end() if self.step else self.before

    def _trained_on_at_the_end(self) -> TrainingFootage:
        return self.before.union(TrainingFootage.of(self.dataset.footage))

    def _is_due(self, every: int | None) -> bool:
        """Tell whether what is done every `every` steps, and after the last, is due."""
        return every is not None and (self.step % every == 0 or self.step == self.last_step)

    def evaluate(self, monitor: TrainingMonitor) -> None:
        """Log the scores of the model on held-out clips, if the settings ask for them."""
        if self.evaluation:
            monitor.log_scores(self.step, self.evaluation.score(self.method, self.step))

    def catch_up(self, monitor: TrainingMonitor) -> None:
        """Export and evaluate what was due when the run was killed after saving its checkpoint."""
        run = self.settings.run
        if self._is_due(run.export_every) and not weights_path(run.out, self.step).exists():
            self.export()
        evaluated = {row["step"] for row in read_scores(run.out)}
        if self._is_due(run.evaluate_every) and self.step not in evaluated:
            self.evaluate(monitor)

    def export(self) -> Path:
        """Export the current weights, on the first rank; return their path on every rank."""
        if self.rank.first:
            self.method.export(self.dataset.snapshots, self.step, self.trained_on())
        return weights_path(self.settings.run.out, self.step)


def _footage_before(
    settings: TrainSettings, checkpoint: Mapping[str, Any] | None
) -> TrainingFootage:
    """Return what the weights that a run starts or resumes from were trained on."""
    # Checkpoints of earlier versions do not say it.
    if checkpoint and CHECKPOINT_KEY in checkpoint:
        return TrainingFootage.from_checkpoint(checkpoint)
    return training_footage(settings.model.weights)


def forward_backward(
    forward: nn.Module, batch: Batch, draws: Sequence[Draws]
) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Accumulate the gradient of a rank's clips, one part after the other.

    forward: the method's model, or DistributedDataParallel around it
    batch:   on its device, as `draws` are: those of each part (`Method.draw`)

    Returns the mean loss, the means of its parts by name, and what the model keeps of the last
    part.
    """
    parts, frames = len(draws), batch["frames"]
    clips = len(frames) // parts
    mean_loss, mean_parts = torch.zeros((), device=frames.device), dict[str, Tensor]()
    for part, draws_of_part in enumerate(draws):
        clips_of_part = slice_batch(batch, slice(part * clips, (part + 1) * clips))
        # gradients are all-reduced once, with the last part
        defer_sync = isinstance(forward, DistributedDataParallel) and part < parts - 1
        with forward.no_sync() if defer_sync else nullcontext():  # type: ignore[operator]
            loss, losses, kept = forward(clips_of_part, draws_of_part)
            (loss / parts).backward()
        mean_loss += loss.detach() / parts
        for name, value in losses.items():
            mean_parts[name] = mean_parts.get(name, 0) + value / parts
    return mean_loss, mean_parts, kept


def draw_features(
    monitor: TrainingMonitor, method: Method, dataset: ClipDataset, pictures: int, step: int
) -> None:
    """Log the frames of the same few clips, with the model's features as colours."""
    for index in range(min(pictures, len(dataset))):
        clip = dataset[0, index]
        picture = frames_above_features(clip["frames"], method.features(clip).cpu())
        monitor.log_image(step, f"features/{index}", picture)
