"""Self-supervision needs no tracks: two views of a frame, and InfoNCE between points in both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings, ViewEmbeddings
from trainer.losses.self_supervision import self_supervision
from trainer.losses.settings import SelfSupervisionSettings
from trainer.model.frame_views import make_views

SIZE = 40
SETTINGS = SelfSupervisionSettings(temperature=0.5, apart=0.2)


def loss(student: Tensor, teacher: Tensor, points: list[list[float]]) -> float:
    nothing = torch.zeros(1, 1, 0, 2)
    views = ViewEmbeddings(student[None], teacher[None], torch.tensor([points]))
    embeddings = Embeddings(
        student=nothing,
        teacher=nothing[:, 0],
        references=nothing,
        weights=nothing[..., 0],
        positions=nothing,
        anchor_positions=nothing[:, 0],
        views=views,
    )
    return float(self_supervision(embeddings, SETTINGS))


def test_a_point_must_match_itself_and_no_point_away_from_it() -> None:
    """Cosines 1 with itself and 0 with the other are 2 and 0 at temperature 0.5."""
    a, b = torch.eye(2)
    apart, near = [[0.1, 0.5], [0.31, 0.5]], [[0.1, 0.5], [0.29, 0.5]]
    right = math.log(1 + math.exp(-2))
    assert abs(loss(torch.stack([a, b]), torch.stack([a, b]), apart) - right) < 1e-6
    assert abs(loss(torch.stack([a, b]), torch.stack([b, a]), apart) - (right + 2)) < 1e-6
    # Points nearer than 0.2 are not told apart: nothing is left to choose from.
    assert loss(torch.stack([a, b]), torch.stack([b, a]), near) == 0


def test_points_of_a_view_and_of_its_frame_show_the_same_place() -> None:
    """Pixels say where they are, so a view sampled at a point must say where that is."""
    ramp = torch.arange(SIZE, dtype=torch.float32)
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    frames = torch.stack([x, y, torch.full_like(x, 7.0)]).expand(64, 3, SIZE, SIZE)
    torch.manual_seed(1)
    plain = SelfSupervisionSettings(recolour=0, covered=0, points=30, smallest=0.25)
    views = make_views(frames, 8, plain)
    assert views.frame_points.min() >= -0.5
    assert views.frame_points.max() <= SIZE - 0.5

    grid = ((views.view_points + 0.5) / SIZE * 2 - 1)[:, None]
    shown = torch.nn.functional.grid_sample(
        views.images, grid, padding_mode="border", align_corners=False
    )[:, :, 0].transpose(1, 2)
    # Half a pixel at a view's border, which is at most half a pixel of the frame.
    assert (shown[..., :2] - views.frame_points).abs().max() <= 0.5
    assert (shown[..., 2] - 7).abs().max() < 1e-4

    spans = views.images[:, 0, 0, -1] - views.images[:, 0, 0, 0]
    assert 20 < int((spans < 0).sum()) < 44  # mirrored ones, of 64
    # A box of between a quarter and all of the area has between half and all of the side.
    sides = spans.abs() / (SIZE - 1)
    assert 0.49 < float(sides.min()) < 0.6
    assert 0.9 < float(sides.max()) <= 1


def test_whole_patches_of_a_view_are_covered() -> None:
    torch.manual_seed(0)
    covering = SelfSupervisionSettings(recolour=0, covered=0.25, points=4)
    views = make_views(torch.ones(20, 3, SIZE, SIZE), 8, covering)
    patches = views.images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2)
    assert ((patches == 0).all(-1) | (patches > 0.999).all(-1)).all()
    assert abs(float((patches == 0).float().mean()) - 0.25) < 0.05
