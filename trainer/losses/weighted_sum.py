"""The training loss: the weighted sum of the losses that the settings name."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from trainer.losses.clusters import Clusters
from trainer.losses.embeddings import Embeddings, Loss
from trainer.losses.info_nce import info_nce
from trainer.losses.keep_base import keep_base
from trainer.losses.lifted import lifted
from trainer.losses.self_supervision import self_supervision
from trainer.losses.settings import LossSettings
from trainer.losses.smooth_ap import smooth_ap
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.timetuning import TimeTuning
from trainer.losses.track_mean import track_mean
from trainer.losses.view_agreement import ViewAgreement

FEATURE_LOSSES = {"keep_base", "lifted"}
"""Losses on features of the backbone, which they compare with the base model's."""


class Losses(nn.Module):
    """The losses of a run by name, with their weights.

    Losses that are modules (those with parameters) are registered as submodules, so their
    parameters are trained, saved and resumed together with the student's.
    """

    def __init__(self, losses: dict[str, Loss], weights: dict[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = losses, weights
        self.trained = nn.ModuleDict(
            {name: loss for name, loss in losses.items() if isinstance(loss, nn.Module)}
        )
        self.base: nn.Module | None = None
        """The base model, if a loss needs it: `make_step` sets it, so that it is saved too."""
        self.queue: nn.Module | None = None
        """The queue of references, if there is one: `make_step` sets it too."""

    @property
    def needs_teacher_frames(self) -> bool:
        """Whether a loss needs `Embeddings.teacher_frames`."""
        return not self.losses.keys().isdisjoint({"track_mean", "view_agreement"})

    @property
    def needs_views(self) -> bool:
        """Whether a loss needs `Embeddings.views`."""
        return "self_supervision" in self.losses

    @property
    def needs_features(self) -> bool:
        """Whether a loss needs `Embeddings.features`, and with them the base model."""
        return not self.losses.keys().isdisjoint(FEATURE_LOSSES)

    @property
    def needs_patches(self) -> bool:
        """Whether a loss needs `Embeddings.patches`."""
        return "timetuning" in self.losses

    @property
    def needs_tracks(self) -> bool:
        """Whether a loss needs anything else of the embeddings."""
        return bool(self.losses.keys() - {"self_supervision"})

    def update_averages(self, momentum: float) -> None:
        """Update what losses average over steps, as the teacher averages the student."""
        for loss in self.losses.values():
            if isinstance(loss, TimeTuning):
                loss.update_average(momentum)

    def forward(self, e: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """Return sum(weight * loss), and each unweighted loss by name, detached.

        Computed in the embeddings' float32, also inside an autocast region.
        """
        with torch.autocast(e.student.device.type, enabled=False):
            parts = {name: loss(e) for name, loss in self.losses.items()}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}


def make_losses(settings: LossSettings, width: int) -> Losses:
    """Make the losses with a weight above 0, for embeddings of `width` numbers.

    Prototypes are drawn from torch's default generator.
    """
    s, objective = settings, make_objective(settings)

    def sorting(e: Embeddings) -> Tensor:
        return sorting_loss(
            e.student,
            e.teacher,
            e.references,
            e.weights,
            objective=objective,
            detach_teacher=s.detach_teacher,
        )

    losses: dict[str, Loss] = {"sorting": sorting, **s.custom_losses()}
    if s.info_nce:
        losses["info_nce"] = partial(info_nce, settings=s.info_nce)
    if s.smooth_ap:
        losses["smooth_ap"] = partial(smooth_ap, settings=s.smooth_ap)
    if s.clusters:
        losses["clusters"] = Clusters(s.clusters, width)
    if s.track_mean:
        losses["track_mean"] = track_mean
    if s.view_agreement:
        losses["view_agreement"] = ViewAgreement(s.view_agreement, width)
    if s.timetuning:
        losses["timetuning"] = TimeTuning(s.timetuning, width)
    if s.self_supervision:
        losses["self_supervision"] = partial(self_supervision, settings=s.self_supervision)
    if s.keep_base:
        losses["keep_base"] = keep_base
    if s.lifted:
        losses["lifted"] = lifted
    return Losses({name: losses[name] for name in s.weights}, s.weights)
