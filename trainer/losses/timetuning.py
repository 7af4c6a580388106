"""TimeTuning: the teacher's clusters of a clip's first frame, forwarded, are the last frame's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.losses.clusters import sinkhorn
from trainer.losses.embeddings import Embeddings, PatchMaps, mean_over_tracks
from trainer.losses.settings import TimeTuningSettings


class TimeTuning(nn.Module):
    """Trained prototypes, their average for the teacher, and the loss of Salehi et al. (2023).

    `prototypes` [K, E] get gradients from the student's scores. `average` [K, E] has unit rows and
    follows them as the teacher follows the student.
    """

    average: Tensor

    def __init__(self, settings: TimeTuningSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.prototypes = nn.Parameter(normalize(torch.randn(settings.prototypes, width), dim=-1))
        self.register_buffer("average", self.prototypes.detach().clone())

    def forward(self, e: Embeddings) -> Tensor:
        """Return the cross-entropy of the student's scores in the last frame: a scalar.

        The target of a patch is the largest entry of its forwarded assignment. The mean is over all
        patches. With `carry: tracks` the target of a track is the largest entry of the patch that
        it starts in, and the mean is that of all losses on tracks. Sinkhorn balances over all
        anchor patches of all ranks, so every rank must call this.

        Raises ValueError if patch maps are missing.
        """
        if e.patches is None:
            raise ValueError("TimeTuning needs maps of patches: set 'patches'")
        s, prototypes = self.settings, normalize(self.prototypes, dim=-1)
        assigned = self.assignments(e.patches)
        if s.carry == "affinity":
            target = forward_labels(
                e.patches.features,
                assigned,
                window=s.window,
                top=s.top,
                temperature=s.affinity_temperature,
                earlier=s.earlier,
            ).argmax(dim=-1)
            scores = e.patches.student.flatten(1, 2) @ prototypes.T / s.temperature
            return cross_entropies(scores, target).mean()
        start = patch_of(e.anchor_positions, e.patches.teacher.shape[1:3])
        target = assigned.argmax(dim=-1).gather(1, start)
        scores = e.student[:, -1] @ prototypes.T / s.temperature
        return mean_over_tracks(cross_entropies(scores, target)[:, None], e.weights[:, -1:])

    @torch.no_grad()
    def assignments(self, patches: PatchMaps) -> Tensor:
        """Return the teacher's assignments of the anchor frames' patches, [B, h * w, K]."""
        scores = patches.teacher.flatten(1, 2) @ self.average.T
        points, s = scores.flatten(0, 1), self.settings
        every = torch.ones(len(points), dtype=torch.bool, device=points.device)
        return sinkhorn(points, every, s.epsilon, s.iterations).view(scores.shape)

    @torch.no_grad()
    def update_average(self, momentum: float) -> None:
        """Update the teacher's prototypes after a step, and give their rows length 1 again."""
        self.average.lerp_(normalize(self.prototypes, dim=-1), 1 - momentum)
        self.average.copy_(normalize(self.average, dim=-1))


def cross_entropies(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each softmax with its target: [..., K], [...] → [...]."""
    return -scores.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]


@torch.no_grad()
def forward_labels(
    features: Tensor,
    labels: Tensor,
    *,
    window: int,
    top: int,
    temperature: float,
    earlier: int,
) -> Tensor:
    """Forward soft labels of the first frame to the last, frame by frame: [B, h * w, K].

    features: [B, T, h, w, D]
    labels:   [B, h * w, K], of the first frame

    A frame's labels are means of those of the first frame and of up to `earlier` frames before it.
    Patch i has the weight exp(cos(i, j) / temperature) for patch j if it is at most `window` rows
    and columns away and among the `top` largest of all those frames together.
    """
    frames, h, w = features.shape[1:4]
    units = normalize(features, dim=-1).flatten(2, 3)
    near = neighbourhood(h, w, window, features.device)
    forwarded = [labels]
    for t in range(1, frames):
        sources = [0, *range(max(1, t - earlier), t)]
        # [B, h * w of this frame, frames, h * w of theirs]
        seen = torch.stack([units[:, f] for f in sources], dim=1)
        cosines = torch.einsum("bjd,bfid->bjfi", units[:, t], seen)
        affinity = torch.exp(cosines / temperature) * near[:, None]
        affinity = affinity.flatten(2)
        smallest = affinity.topk(min(top, affinity.shape[-1]), dim=-1).values[..., -1:]
        affinity = affinity.where(affinity >= smallest, 0)
        affinity = affinity / affinity.sum(dim=-1, keepdim=True)
        forwarded.append(affinity @ torch.cat([forwarded[f] for f in sources], dim=1))
    return forwarded[-1]


def neighbourhood(h: int, w: int, window: int, device: torch.device) -> Tensor:
    """Return whether patches are at most `window` rows and columns apart, [h * w, h * w] bool."""
    row, column = (torch.arange(n, device=device) for n in (h, w))
    rows = (row[:, None] - row).abs() <= window
    columns = (column[:, None] - column).abs() <= window
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(h * w, h * w)


def patch_of(points: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the patches, row by row, that points [..., 2] lie in; fractions of a frame's side."""
    h, w = grid
    x, y = points.unbind(-1)
    column, row = ((v * n).long().clamp(0, n - 1) for v, n in ((x, w), (y, h)))
    return row * w + column
