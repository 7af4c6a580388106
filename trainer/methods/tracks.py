"""`method: tracks`: student and teacher compare tracks across frames (3DPoV and its relatives)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifests.snapshot import Snapshot
from trainer.config import TrainSettings
from trainer.data.batch import Batch
from trainer.distributed import Rank
from trainer.export import export_weights
from trainer.losses.embeddings import Embeddings
from trainer.losses.sorting.objective import diagnostics
from trainer.model.backbone import normalised_images
from trainer.model.feature_sampling import (
    References,
    check_references,
    choose_references,
    rank_references,
)
from trainer.model.reference_queue import (
    QueueDraws,
    check_queue,
    draw_from_queue,
    rank_draws,
)
from trainer.model.step import Step, step_flops
from trainer.model.step_indices import StepIndices, make_indices
from trainer.model.student_teacher import TeacherAverage
from trainer.run_setup import make_step, reference_patches
from trainer.schedule import compared_frames, step_seed, teacher_momentum
from trainer.training_footage import TrainingFootage


class TrackMethod:
    """Student, teacher and the losses of `settings.loss`. See `Method`."""

    parts: ClassVar[tuple[str, ...]] = ("student", "teacher", "losses")
    console: ClassVar[Mapping[str, int]] = {"spearman": 3, "visible": 2}

    def __init__(
        self,
        settings: TrainSettings,
        checkpoint: Mapping[str, Any] | None,
        rank: Rank,
        points: int,
    ) -> None:
        self.settings, self.rank = settings, rank
        references = settings.references
        clips = settings.run.batch_size // rank.world // settings.run.accumulate
        pool = clips * (rank.world if references.across_ranks else 1)
        if references.kind == "crops":
            check_references(pool, settings.data.frames, references.count)
        else:
            check_queue(clips * rank.world, references.queue, references.stored)
        self.model: Step = make_step(settings, checkpoint, rank.device)
        self.patches = reference_patches(self.model.student.backbone, settings)
        self.average = TeacherAverage(
            self.model.teacher, self.model.student, settings.teacher.average == "trained"
        )

    def flops_per_clip(self) -> float:
        """Return the transformers' floating-point operations per clip and step."""
        return step_flops(self.model, self.settings.data.size)

    def draw(self, step: int) -> list[StepIndices]:
        """Draw the compared frames and the references of a step's parts."""
        return draw_indices(step, patches=self.patches, settings=self.settings, rank=self.rank)

    def after_step(self, step: int, last_step: int) -> dict[str, float | Tensor]:
        """Update the teacher, and what losses average with it."""
        momentum = teacher_momentum(step, last_step, self.settings.teacher)
        self.average.update(momentum)
        self.model.losses.update_averages(momentum)
        return {"momentum": momentum}

    def figures(self, kept: Embeddings, draws: StepIndices) -> dict[str, float | Tensor]:
        """Return the sorting loss's figures, if tracks were embedded, and the compared frames."""
        of_tracks = {}
        if self.model.losses.needs_tracks:
            of_tracks = diagnostics(kept, self.settings.loss)
        return {**of_tracks, "frames": len(draws.compared)}

    @torch.no_grad()
    def features(self, clip: Batch) -> Tensor:
        """Return the student's features of a clip's frames."""
        data, backbone = self.settings.data, self.model.student.backbone
        device = next(backbone.parameters()).device
        self.model.student.eval()  # disables the dropout of adapters
        features: Tensor = backbone(
            normalised_images(clip["frames"].to(device), data.mean, data.std)
        )
        self.model.student.train()
        return features

    def keep_bfloat16(self) -> None:
        """Keep the frozen blocks in bfloat16 too."""
        if self.settings.model.train_embeddings:
            return
        self.model.student.backbone.keep_bfloat16_trunk()

    def compile(self) -> None:
        """Compile the blocks of student and teacher."""
        self.model.student.backbone.compile()
        self.model.teacher.backbone.compile()

    def export(self, snapshots: Sequence[Snapshot], step: int, trained_on: TrainingFootage) -> Path:
        """Write the student's or the teacher's backbone, as `run.export` says."""
        source = self.model.student if self.settings.run.export == "student" else self.model.teacher
        return export_weights(source.backbone, self.settings, snapshots, step, trained_on)


def draw_indices(
    step: int, *, patches: tuple[int, int], settings: TrainSettings, rank: Rank
) -> list[StepIndices]:
    """Draw what a step uses of a rank's clips, on the CPU, for each of `run.accumulate` parts.

    step:    steps taken so far; random choices follow from it, the seed and the rank
    patches: sides of the feature grid and of a reference crop (`reference_patches`)

    Seeds torch's default generators too, for dropout and whatever else draws from them.
    """
    run, frames = settings.run, settings.data.frames
    generator = torch.manual_seed(step_seed(run.seed, step, rank.number))
    if settings.references.across_ranks:
        # every rank must draw the same references, to take its own out of them
        generator = torch.Generator().manual_seed(step_seed(run.seed, step, 0))
    clips = run.batch_size // rank.world // run.accumulate
    return [
        make_indices(
            clips,
            frames,
            compared=compared_frames(step, frames, settings.loss),
            references=_draw_references(clips, patches, generator, settings, rank),
            side=patches[1],
            # other shapes would be compiled again
            fixed_shapes=run.compile,
            queue=_draw_queue(step * run.accumulate + part, clips, patches[0], settings, rank),
        )
        for part in range(run.accumulate)
    ]


def _draw_queue(
    parts_before: int, clips: int, grid: int, settings: TrainSettings, rank: Rank
) -> QueueDraws | None:
    """Draw what a part of `clips` clips uses of the queue, if there is one: for all ranks."""
    references = settings.references
    if references.kind != "queue":
        return None
    seed = step_seed(settings.run.seed, parts_before, 0)
    draws = draw_from_queue(
        clips * rank.world,
        parts_before=parts_before,
        size=references.queue,
        grid=grid,
        stored=references.stored,
        references=(references.count, references.patches),
        generator=torch.Generator().manual_seed(seed),
    )
    return rank_draws(draws, clips, rank.number)


def _draw_references(
    clips: int,
    patches: tuple[int, int],
    generator: torch.Generator,
    settings: TrainSettings,
    rank: Rank,
) -> References:
    """Draw the reference crops of a part of `clips` clips, from this rank or from all ranks.

    None with a queue.
    """
    if settings.references.kind == "queue":
        return References(*torch.zeros(3, clips, 0, dtype=torch.int64))
    across_ranks = settings.references.across_ranks
    pool = clips * (rank.world if across_ranks else 1)
    frames, count = settings.data.frames, settings.references.count
    references = choose_references(
        pool, frames, count, grid=patches[0], side=patches[1], generator=generator
    )
    return rank_references(references, clips, rank.number) if across_ranks else references
