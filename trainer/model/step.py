"""One training step without redundant forward passes; same results as 3DPoV.

The frozen blocks see every frame once, for student and teacher together. The student's trained
blocks see only the frames that are compared or that hold a reference, the teacher's only the anchor
frames. References are cropped from the student's features of the same batch, or come from a queue
of the teacher's patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import OptimSettings, TrainSettings
from trainer.data.batch import Batch, track_mask
from trainer.losses.embeddings import Embeddings, Features, PatchMaps, ViewEmbeddings
from trainer.losses.weighted_sum import Losses
from trainer.model.backbone import Tokens, normalised_images
from trainer.model.feature_sampling import sample_points
from trainer.model.frame_views import make_views
from trainer.model.reference_queue import take_patches
from trainer.model.step_indices import StepIndices
from trainer.model.student_teacher import Embedder


class Step(nn.Module):
    """Student, teacher and losses: from a batch to a loss. DistributedDataParallel wraps it."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, student: Embedder, teacher: Embedder, losses: Losses, settings: TrainSettings
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.losses = losses
        self.settings = settings
        data = settings.data
        # On the device, and in no checkpoint: a tuple would be copied there in every step.
        self.register_buffer("mean", torch.tensor(data.mean), persistent=False)
        self.register_buffer("std", torch.tensor(data.std), persistent=False)

    def rates(self, optim: OptimSettings) -> list[tuple[list[nn.Module], float]]:
        """Return the backbone with its own learning rate, then the head and the losses."""
        student = self.student
        return [([student.backbone], optim.backbone_ratio), ([student.head, self.losses], 1.0)]

    def forward(
        self, batch: Batch, indices: StepIndices
    ) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
        """Compare F frames of every clip with its anchor frame.

        batch, indices: on this module's device

        Returns the loss, its parts by name, and the embeddings that were compared. Transformers
        run in the settings' precision, losses in float32. The host never waits for the device,
        unless a loss makes it wait (SmoothAP does).
        """
        device = batch["frames"].device.type
        bfloat16 = self.settings.run.precision == "bfloat16" and device == "cuda"
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            embeddings = self.embed(batch, indices)
        return *self.losses(embeddings), embeddings

    def embed(self, batch: Batch, indices: StepIndices) -> Embeddings:
        """Return the embeddings to compare, float32 whatever the transformers' precision."""
        positions, compared = batch["positions"], indices.compared
        size = batch["frames"].shape[-1]
        views = self.embed_views(batch) if self.losses.needs_views else None
        if not self.losses.needs_tracks:
            return _without_tracks(views, positions.index_select(1, compared))
        tokens, anchor_tokens = self.trunks(batch)
        # One pass of the student's tail gives both tracks and reference crops.
        maps = self.student.maps(tokens, indices)
        tracks, crops = self.student.embed_maps(maps, positions, size, indices)
        with torch.no_grad():
            anchor_maps = self.teacher.backbone.tail(anchor_tokens)
            anchors = self.teacher.points(anchor_maps, positions[:, 0], size)
            if draws := indices.queue:
                queue: Any = self.losses.queue
                patches = self.teacher.embed(take_patches(anchor_maps, draws.stored))
                crops = queue.exchange(patches, draws)
            # Only some losses need the teacher in other frames: F more tail passes per clip.
            teacher_frames = None
            if self.losses.needs_teacher_frames:
                teacher_frames = self.teacher.tracks(
                    tokens[indices.compared_frames],
                    positions.index_select(1, compared).flatten(0, 1),
                    size,
                ).view_as(tracks)
        mask = track_mask(batch, self.settings.tracks).to(torch.float32)
        # A track counts in a frame if it is visible there and in the anchor frame.
        weights = mask[:, :1] * mask.index_select(1, compared)
        if "track_weights" in batch:
            weights = weights * batch["track_weights"][:, None]
        # From pixels (centres at integers) to fractions of the side (centre of pixel 0 at 0.5 / S).
        fractions = (positions + 0.5) / size
        return Embeddings(
            student=tracks,
            teacher=anchors,
            references=crops,
            weights=weights,
            positions=fractions.index_select(1, compared),
            anchor_positions=fractions[:, 0],
            teacher_frames=teacher_frames,
            views=views,
            features=self._features(batch, maps, indices, (tokens, anchor_tokens))
            if self.losses.needs_features
            else None,
            patches=self._patch_maps(maps, anchor_maps, indices, tokens)
            if self.losses.needs_patches
            else None,
        )

    def _patch_maps(
        self, maps: Tensor, anchor_maps: Tensor, indices: StepIndices, tokens: Tokens
    ) -> PatchMaps:
        """Return all patches of the anchor frames and the compared frames.

        maps, anchor_maps: the student's, of the frames `indices.tail_frames`; the teacher's
        tokens:            of all frames
        """
        clips = len(anchor_maps)
        compared = maps[indices.tracked].unflatten(0, (clips, -1))
        with torch.no_grad():
            anchors = self.student.backbone.tail(tokens[:: self.settings.data.frames])
            teacher = self.teacher.embed(anchor_maps)
        return PatchMaps(
            features=torch.cat([anchors[:, None], compared.detach()], dim=1).float(),
            teacher=teacher,
            student=self.student.embed(compared[:, -1]),
        )

    def _features(
        self, batch: Batch, maps: Tensor, indices: StepIndices, tokens: tuple[Tokens, Tokens]
    ) -> Features:
        """Return features of the student and of the base model, for losses on features.

        maps:   the student's, of the frames `indices.tail_frames`
        tokens: of all frames, and of the anchor frames
        """
        base: Any = self.losses.base
        positions, size = batch["positions"], batch["frames"].shape[-1]
        clips, frames, points = positions.shape[:3]
        compared = positions.index_select(1, indices.compared).flatten(0, 1)

        def at_tracks(features: Tensor) -> Tensor:
            corners = self.settings.tracks.align_corners
            sampled = sample_points(features[indices.tracked], compared, size, corners)
            return sampled.view(clips, -1, points, sampled.shape[-1])

        with torch.no_grad():
            if self.student.backbone.trains_embeddings:
                # Then the base model's trunk is another.
                images = normalised_images(batch["frames"], self.mean, self.std).flatten(0, 1)
                of_frames = base.trunk(images)
                of_anchors = of_frames[::frames]
                if "teacher_frame" in batch:
                    shown = normalised_images(batch["teacher_frame"], self.mean, self.std)
                    of_anchors = base.trunk(shown)
            else:
                of_frames, of_anchors = tokens
            base_maps = base.tail(of_frames[indices.tail_frames]).float()
            base_anchors = sample_points(
                base.tail(of_anchors), positions[:, 0], size, self.settings.tracks.align_corners
            )
        maps = maps.float()
        return Features(
            student=maps,
            base=base_maps,
            tracks=at_tracks(maps),
            base_tracks=at_tracks(base_maps),
            base_anchors=base_anchors,
        )

    def embed_views(self, batch: Batch) -> ViewEmbeddings:
        """Embed points of n frames in two views: n is B * T, or B if only anchors are used."""
        settings = self.settings.loss.self_supervision
        assert settings is not None  # a loss needs views only if it has settings
        frames = batch["frames"] if settings.every_frame else batch["frames"][:, :1]
        images = normalised_images(frames.flatten(0, 1), self.mean, self.std)
        views, size = make_views(images, self.student.backbone.patch, settings), images.shape[-1]
        student, teacher = self.student.backbone, self.teacher.backbone
        features = student.tail(student.trunk(views.images))
        with torch.no_grad():
            target = self.teacher.points(teacher(images), views.frame_points, size)
        return ViewEmbeddings(
            student=self.student.points(features, views.view_points, size),
            teacher=target,
            points=(views.frame_points + 0.5) / size,
        )

    def trunks(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Run the frozen blocks: tokens of all B * T frames, and of the teacher's B anchor frames.

        The teacher has a trunk of its own only if its trunk differs from the student's: if
        embeddings are trained, or, by rounding, if frozen weights are averaged too.
        """
        frames = normalised_images(batch["frames"], self.mean, self.std)
        teacher_frame = batch.get("teacher_frame")
        anchors = (
            frames[:, 0]
            if teacher_frame is None
            else normalised_images(teacher_frame, self.mean, self.std)
        )
        images, clips = frames.flatten(0, 1), len(anchors)
        if self.settings.teacher.average == "all" or self.student.backbone.trains_embeddings:
            return self.student.backbone.trunk(images), self.teacher.backbone.trunk(anchors)
        if teacher_frame is None:
            # Frame 0 of every clip has been through the shared trunk already.
            tokens = self.student.backbone.trunk(images)
            return tokens, tokens[:: frames.shape[1]]
        # The teacher's anchor frames differ in colour: append them to the same pass.
        tokens = self.student.backbone.trunk(torch.cat([images, anchors]))
        return tokens[:-clips], tokens[-clips:]


def _without_tracks(views: ViewEmbeddings | None, positions: Tensor) -> Embeddings:
    """Return embeddings of views alone, for positions [B, F, N, 2]: their N is 0."""
    assert views is not None  # there is no loss without tracks and views
    clips, frames = positions.shape[:2]
    nothing = views.teacher.new_zeros(clips, frames, 0, views.teacher.shape[-1])
    return Embeddings(
        student=nothing,
        teacher=nothing[:, 0],
        references=nothing,
        weights=positions.new_zeros(clips, frames, 0),
        positions=positions[:, :, :0],
        anchor_positions=positions[:, 0, :0],
        views=views,
    )


def step_flops(model: Step, size: int) -> float:
    """Return the transformers' floating-point operations per clip and step, as torch counts them.

    Heads, losses and views (`frame_views`) are not counted. All frames are assumed to be compared,
    and all weights of the tail to be trained.
    """
    t, teacher = model.settings.data.frames, model.teacher.backbone
    trunk_is_shared = (
        model.settings.teacher.average == "trained" and not model.settings.data.colour.student_only
    )
    trunk_frames = t if trunk_is_shared else t + 1
    teacher_frames = t if model.losses.needs_teacher_frames else 1
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    with torch.no_grad():
        with FlopCounterMode(display=False) as trunk:
            tokens = teacher.trunk(image)
        with FlopCounterMode(display=False) as tail:
            teacher.tail(tokens)
    # The student's backward pass costs two forward passes.
    tail_passes = 3 * t + teacher_frames + (t + 1 if model.losses.needs_features else 0)
    tail_passes += 1 if model.losses.needs_patches else 0
    return trunk.get_total_flops() * trunk_frames + tail.get_total_flops() * tail_passes
