"""The weighted sum of the losses that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.losses.clusters import Clusters
from trainer.losses.embeddings import Embeddings
from trainer.losses.info_nce import info_nce
from trainer.losses.smooth_ap import smooth_ap
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.track_mean import track_mean

if TYPE_CHECKING:
    from trainer.losses.settings import LossSettings

Loss = Callable[[Embeddings], Tensor]
"""A batch → a scalar."""


class Losses(nn.Module):
    """The losses of a run by name, with their weights. Parameters of losses that are modules are trained with the student's."""

    def __init__(self, losses: dict[str, Loss], weights: dict[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = losses, weights
        self.trained = nn.ModuleDict(
            {name: loss for name, loss in losses.items() if isinstance(loss, nn.Module)}
        )

    @property
    def needs_teacher_frames(self) -> bool:
        """Whether `Embeddings.teacher_frames` must be there."""
        return "track_mean" in self.losses

    def forward(self, e: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over losses of weight times loss, and the losses themselves by name, without gradient.

        In the embeddings' own float32, whatever autocast says.
        """
        with torch.autocast(e.student.device.type, enabled=False):
            parts = {name: loss(e) for name, loss in self.losses.items()}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}


def make_losses(settings: LossSettings, width: int, **own: Loss) -> Losses:
    """The losses whose weight is above 0, of embeddings [..., width]. Prototypes are drawn from torch's own generator.

    `own` are losses beyond pretrack's, by the names that they have in the settings.
    """
    s, objective = settings, make_objective(settings)

    def sorting(e: Embeddings) -> Tensor:
        return sorting_loss(
            e.student, e.teacher, e.references, e.weights, objective, s.detach_teacher
        )

    losses: dict[str, Loss] = {"sorting": sorting, **own}
    if s.info_nce:
        losses["info_nce"] = partial(info_nce, settings=s.info_nce)
    if s.smooth_ap:
        losses["smooth_ap"] = partial(smooth_ap, settings=s.smooth_ap)
    if s.clusters:
        losses["clusters"] = Clusters(s.clusters, width)
    if s.track_mean:
        losses["track_mean"] = track_mean
    return Losses({name: losses[name] for name in s.weights}, s.weights)
