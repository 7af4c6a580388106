"""One step, without what a step does not need; 3DPoV's numbers stay.

The frozen blocks see every frame once, for student and teacher together. The student's own blocks see the frames that are compared
or that hold a reference, the teacher's only the anchor frames. References are cut from the student's features of the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import TrainSettings
from trainer.data.batch import Sample, track_mask
from trainer.losses.embeddings import Embeddings
from trainer.losses.weighted_sum import Losses
from trainer.model.backbone import Tokens, normalised_images
from trainer.model.feature_sampling import References, frames_of_clips
from trainer.model.student_teacher import Embedder


@dataclass(frozen=True)
class Batch:
    """Clips on the device that trains.

    frames:  [B, T, 3, S, S] uint8, RGB; frame 0 is the anchor
    own:     [B, 3, S, S] uint8, the anchor frame as the teacher sees it, or None where that is the same
    points:  [B, T, N, 2] in pixels of the frames
    visible: [B, T, N] float32, 1 where a point counts
    """

    frames: Tensor
    own: Tensor | None
    points: Tensor
    visible: Tensor


def batch_of(
    sample: Sample, settings: TrainSettings, device: torch.device, clips: slice = slice(None)
) -> Batch:
    """Some of a sample's clips, on a device."""
    own = sample.get("teacher_frame")
    return Batch(
        sample["frames"][clips].to(device, non_blocking=True),
        None if own is None else own[clips].to(device, non_blocking=True),
        sample["positions"][clips].to(device, non_blocking=True),
        track_mask(sample, settings.tracks)[clips].to(device, torch.float32, non_blocking=True),
    )


class Step(nn.Module):
    """Student, teacher and losses: from clips to a loss. What DistributedDataParallel wraps."""

    def __init__(
        self, student: Embedder, teacher: Embedder, losses: Losses, settings: TrainSettings
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.losses = losses
        self.settings = settings

    def forward(
        self, batch: Batch, compared: Sequence[int], references: References, side: int
    ) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
        """Compares F frames of every clip with its anchor frame → the loss, its parts by name, and what was compared.

        Transformers run in the settings' precision, and the losses in float32.
        """
        device = batch.frames.device.type
        half = self.settings.run.precision == "bfloat16" and device == "cuda"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            embeddings = self.embed(batch, list(compared), references, side)
        return *self.losses(embeddings), embeddings

    def embed(
        self, batch: Batch, compared: list[int], references: References, side: int
    ) -> Embeddings:
        """The embeddings that are compared, float32 whatever the transformers' precision."""
        (b, t), size = batch.frames.shape[:2], batch.frames.shape[-1]
        tokens, anchors = self.trunks(batch)
        tracks, crops = self.student(tokens, batch.points, size, compared, references, side)
        with torch.no_grad():
            anchor = self.teacher.tracks(anchors, batch.points[:, 0], size)
            others = None
            if self.losses.needs_teacher_frames:
                chosen = frames_of_clips(b, t, compared).to(tokens.values.device)
                others = self.teacher.tracks(
                    tokens[chosen], batch.points[:, compared].flatten(0, 1), size
                ).view_as(tracks)
        places = (batch.points + 0.5) / size
        return Embeddings(
            student=tracks,
            teacher=anchor,
            references=crops,
            weights=batch.visible[:, :1] * batch.visible[:, compared],
            positions=places[:, compared],
            anchor_positions=places[:, 0],
            teacher_frames=others,
        )

    def trunks(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """What the frozen blocks make of all B * T frames, and of the B anchor frames that the teacher goes on with.

        The teacher has its own trunk only where its frozen weights are averaged too, and so differ by rounding.
        """
        data = self.settings.data
        frames = normalised_images(batch.frames, data.mean, data.std)
        own = (
            frames[:, 0] if batch.own is None else normalised_images(batch.own, data.mean, data.std)
        )
        images, clips = frames.flatten(0, 1), len(own)
        if self.settings.teacher.average == "all":
            return self.student.backbone.trunk(images), self.teacher.backbone.trunk(own)
        if batch.own is None:
            tokens = self.student.backbone.trunk(images)
            return tokens, tokens[:: frames.shape[1]]
        tokens = self.student.backbone.trunk(torch.cat([images, own]))
        return tokens[:-clips], tokens[-clips:]


def step_flops(model: Step, size: int) -> float:
    """Floating-point operations of the transformers for one clip of a step, as torch counts them; heads and losses are left out.

    All frames are taken to be compared, and each weight of the tail to be trained.
    """
    t, teacher = model.settings.data.frames, model.teacher.backbone
    shared = (
        model.settings.teacher.average == "trained" and not model.settings.data.colour.student_only
    )
    followed = t if model.losses.needs_teacher_frames else 1
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    with torch.no_grad():
        with FlopCounterMode(display=False) as trunk:
            tokens = teacher.trunk(image)
        with FlopCounterMode(display=False) as tail:
            teacher.tail(tokens)
    return trunk.get_total_flops() * (t if shared else t + 1) + tail.get_total_flops() * (
        3 * t + followed
    )  # backward is two forwards
