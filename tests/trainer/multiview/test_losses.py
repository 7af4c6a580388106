"""Where a point is found: exact on worked-out cases, and equal to a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trainer.model.feature_sampling import sample_points
from trainer.multiview.correspondences import (
    Correspondences,
    choose_correspondences,
    draw_sets,
    sets_of_rank,
)
from trainer.multiview.losses import location_errors, mean_over_sets, still_errors
from trainer.multiview.settings import MultiviewSettings

SIDE, SIZE = 6, 48


def one_hot() -> tuple[Tensor, Tensor]:
    """Return features of two views, each patch a vector of its own, and the patches' centres."""
    features = torch.eye(SIDE * SIDE).view(1, 1, SIDE, SIDE, -1).expand(1, 2, -1, -1, -1)
    x = (torch.arange(SIDE) + 0.5) * SIZE / SIDE - 0.5
    centres = torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1).flatten(0, 1)
    return features, centres.expand(1, 2, -1, -1)


def every_point(count: int) -> Correspondences:
    """Return a correspondence from view 0 to view 1 for each of `count` tracks."""
    zeros = torch.zeros(1, count, dtype=torch.long)
    return Correspondences(zeros, zeros + 1, torch.arange(count)[None], torch.ones(1, count))


def test_a_point_on_its_own_patch_is_found_there() -> None:
    features, centres = one_hot()
    pairs = every_point(SIDE * SIDE)
    arguments: dict[str, Any] = {"size": SIZE, "temperature": 0.02}
    assert location_errors(features, centres, pairs, **arguments).max() < 1e-5
    # The published patches lie on linspace(-1, 1, 6): off by |(2 i + 1) / 6 - 1 - (2 i / 5 - 1)|,
    # which is 5/30, 3/30, 1/30, 1/30, 3/30 and 5/30, so 0.1 on average.
    errors = location_errors(features, centres, pairs, **arguments, corners=True)
    assert errors.mean().item() == pytest.approx(0.1, abs=1e-5)
    assert errors.max().item() == pytest.approx(5 / 30, abs=1e-5)


def test_an_error_is_the_city_block_distance_in_parts_of_the_image() -> None:
    features, centres = one_hot()
    # The target is 12 px right and 6 px down of where the query is: (12 + 6) / 48.
    moved = torch.stack([centres[0, 0], centres[0, 0] + torch.tensor([12.0, 6.0])])[None]
    pairs = every_point(SIDE * SIDE)
    still = still_errors(moved, pairs, SIZE)
    torch.testing.assert_close(still, torch.full_like(still, 18 / 48))
    errors = location_errors(features, moved, pairs, size=SIZE, temperature=0.02)
    torch.testing.assert_close(errors, torch.full_like(errors, 18 / 48))


def random_sets(width: int = 7) -> tuple[Tensor, Tensor, Correspondences]:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, width, generator=random, dtype=torch.float64)
    positions = SIZE * torch.rand(2, 3, 9, 2, generator=random, dtype=torch.float64) - 0.5
    draws = draw_sets(
        2, frames=3, points=9, settings=MultiviewSettings(fewer_views=0), generator=random
    )
    mask = torch.rand(2, 3, 9, generator=random) > 0.4
    return features, positions, choose_correspondences(mask, draws, 12, both=True)


def test_errors_equal_a_plain_loop() -> None:
    features, positions, pairs = random_sets()
    errors = location_errors(features, positions, pairs, size=SIZE, temperature=0.5)
    for b in range(2):
        for q in range(12):
            t, u, n = (index[b, q] for index in (pairs.query, pairs.target, pairs.point))
            point = positions[b, t, n][None, None]
            (vector,) = sample_points(features[b, t][None], point, SIZE, False)[0]
            weights = (
                cosine_similarity(vector, features[b, u].flatten(0, 1), dim=-1) / 0.5
            ).softmax(0)
            found = torch.zeros(2, dtype=torch.float64)
            for cell, weight in enumerate(weights):
                row, column = divmod(cell, 5)
                found += weight * torch.tensor(
                    [(column + 0.5) / 5, (row + 0.5) / 4], dtype=torch.float64
                )
            wanted = (positions[b, u, n] + 0.5) / SIZE
            assert errors[b, q].item() == pytest.approx(
                (found - wanted).abs().sum().item(), abs=1e-9
            )


def test_gradients_are_exact() -> None:
    features, positions, pairs = random_sets(width=2)

    def loss(values: Tensor) -> Tensor:
        errors = location_errors(values, positions, pairs, size=SIZE, temperature=0.5)
        return mean_over_sets(errors, pairs.counted.double())

    assert torch.autograd.gradcheck(loss, features.requires_grad_())


@pytest.mark.parametrize("views", [1, 3])
def test_sets_without_a_correspondence_add_nothing(views: int) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, views, 4, 4, 7, generator=random, requires_grad=True)
    draws = draw_sets(
        2, frames=views, points=9, settings=MultiviewSettings(fewer_views=0), generator=random
    )
    mask = torch.zeros(2, views, 9, dtype=torch.bool)
    mask[1] = True
    pairs = choose_correspondences(mask, draws, 12, both=True)
    errors = location_errors(
        features, torch.zeros(2, views, 9, 2), pairs, size=SIZE, temperature=0.02
    )
    loss = mean_over_sets(errors, pairs.counted)
    # The other set counts as half.
    assert loss.item() == pytest.approx(errors[1].mean().item() / 2 if views > 1 else 0.0)
    loss.backward()
    assert features.grad is not None
    assert features.grad[0].abs().max() == 0


def test_correspondences_are_visible_in_both_views_and_drawn_evenly() -> None:
    random = torch.Generator().manual_seed(0)
    settings = MultiviewSettings(fewer_views=0)
    mask = torch.ones(1, 3, 10, dtype=torch.bool)
    mask[0, 2, 5:] = False  # 10 points between views 0 and 1, and 5 in each of the other pairs
    counts = torch.zeros(3, 3)
    for _ in range(400):
        draws = draw_sets(1, frames=3, points=10, settings=settings, generator=random)
        pairs = choose_correspondences(mask, draws, 8, both=True)
        assert pairs.counted.min() == 1
        assert mask[0, pairs.query, pairs.point].all()
        assert mask[0, pairs.target, pairs.point].all()
        chosen = torch.stack([pairs.query, pairs.target, pairs.point])[:, 0]
        assert len(chosen.unique(dim=1).T) == 8
        counts.index_put_((chosen[0], chosen[1]), torch.ones(8), accumulate=True)
    # 3200 correspondences: a half between views 0 and 1, and either direction alike.
    expected = torch.tensor([[0.0, 800, 400], [800, 0, 400], [400, 400, 0]])
    assert (counts - expected).abs().max() < 120
    draws = draw_sets(1, frames=3, points=10, settings=settings, generator=random)
    forward = choose_correspondences(mask, draws, 99, both=False)
    assert (forward.query < forward.target).all()
    assert forward.counted.sum() == 20


def test_ranks_share_the_draws_of_one() -> None:
    def drawn() -> Any:
        random = torch.Generator().manual_seed(5)
        settings = MultiviewSettings(fewer_views=1.0, drop_poses=0.5)
        return draw_sets(8, frames=4, points=3, settings=settings, generator=random)

    whole, ranks = drawn(), [sets_of_rank(drawn(), rank, 2) for rank in range(2)]
    assert whole.order.shape[1] < 4
    assert sorted(set(whole.posed.tolist())) == [0, 1]
    for number in range(8):
        part = ranks[number % 2]
        assert torch.equal(part.order[number // 2], whole.order[number])
        assert torch.equal(part.keys[number // 2], whole.keys[number])
        assert part.posed[number // 2] == whole.posed[number]
