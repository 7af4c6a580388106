"""The label-free measures: right on known features, at chance on noise, equal to plain NumPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from trainer.evaluate.heldout.measures import (
    METRICS,
    FramePair,
    aggregate,
    consistency_gap,
    drift,
    effective_rank,
    localisation,
    match,
    mean_cosine,
    measure_chance,
    measure_model,
    measure_static,
    moving_points,
    patch_centres,
    rank_agreement,
    sample_features,
    track_retrieval,
)

GRID = 16


def knowing_features(shift: float, grid: int = GRID) -> Tensor:
    """Patch features [h, w, D] that tell the position in a picture moved right by `shift`.

    They are smooth bumps over the plane.
    """
    bumps = torch.cartesian_prod(torch.linspace(-0.5, 1.5, 35), torch.linspace(-0.1, 1.1, 20))
    there = patch_centres(grid, grid) - torch.tensor([shift, 0.0])
    return normalize((-torch.cdist(there, bumps).square() / (2 * 0.06**2)).exp(), dim=-1).unflatten(
        0, (grid, grid)
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random unit features."""
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def somewhere(points: int, shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in the left of a picture, and where they are after it moved right."""
    queries = torch.rand(points, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [1 - shift, 1.0]
    )
    return queries, queries + torch.tensor([shift, 0.0])


def test_features_that_know_the_answer_find_it() -> None:
    queries, targets = somewhere(200, 0.15)
    found = measure_model(
        knowing_features(0), knowing_features(0.15), queries, targets, noise(320, 700)
    )
    assert found["pck@0.1"].mean() == 1
    assert (
        found["error"].max() < 0.75 / GRID
    )  # half a patch's diagonal is 0.71 patches: the nearest one was taken
    assert found["track@1"].mean() > 0.98
    assert found["consistency"].mean() > 0.8


def test_features_that_stay_where_they_are_score_as_an_answer_that_never_moves() -> None:
    queries, targets = somewhere(200, 0.15)
    found = measure_model(
        knowing_features(0), knowing_features(0), queries, targets, noise(320, 700)
    )
    still = measure_static(queries, targets, GRID, GRID)
    assert found["pck@0.1"].mean() < 0.05
    assert still["pck@0.1"].mean() == 0
    assert still["pck@0.2"].mean() == 1
    assert still["error"] == pytest.approx(0.15)
    assert found["auc"].mean() == pytest.approx(still["auc"].mean(), abs=0.03)


def test_noise_scores_what_chance_is_said_to_be() -> None:
    targets, random = patch_centres(GRID, GRID), torch.Generator().manual_seed(3)
    chance = measure_chance(targets, GRID, GRID, 320)
    runs = []
    for seed in range(20):
        queries = torch.rand(len(targets), 2, generator=random)
        runs.append(
            measure_model(
                noise(GRID, GRID, 64, seed=seed),
                noise(GRID, GRID, 64, seed=99 - seed),
                queries,
                targets,
                noise(320, 64),
            )
        )
    for name, expected in chance.items():
        if name != "error":  # of chance it is a median at each point
            assert np.mean([found[name].mean() for found in runs]) == pytest.approx(
                expected.mean(), abs=0.012
            ), name
    assert chance["pck@0.05"].mean() == pytest.approx(1 / 256)
    assert chance["pck@0.1"].mean() == pytest.approx(0.031, abs=0.002)
    assert chance["pck@0.2"].mean() == pytest.approx(0.116, abs=0.005)
    assert chance["auc"].mean() == pytest.approx(0.18, abs=0.01)
    assert chance["overlap@10"].mean() == pytest.approx(0.031, abs=0.001)


def test_measures_are_those_of_a_few_lines_of_numpy() -> None:
    rng = np.random.default_rng(0)
    queries, targets = somewhere(40, 0.2)
    anchor, later, references = noise(8, 8, 16), noise(8, 8, 16, seed=1), noise(50, 16, seed=2)
    found = measure_model(anchor, later, queries, targets, references)

    def read(maps: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
        x, y = np.clip([x * 8 - 0.5, y * 8 - 0.5], 0, 7)
        x0, y0 = min(int(x), 6), min(int(y), 6)
        top = maps[y0, x0] * (1 - x + x0) + maps[y0, x0 + 1] * (x - x0)
        bottom = maps[y0 + 1, x0] * (1 - x + x0) + maps[y0 + 1, x0 + 1] * (x - x0)
        value: NDArray[np.float64] = top * (1 - y + y0) + bottom * (y - y0)
        return value / np.linalg.norm(value)

    a, b, bank = (values.double().numpy() for values in (anchor, later, references))
    p, q = queries.double().numpy(), targets.double().numpy()
    from_a, from_b = (np.stack([read(m, *at) for at in where]) for m, where in ((a, p), (b, q)))
    for n in rng.permutation(len(p))[:20]:
        row, column = np.unravel_index(np.argmax(b @ from_a[n]), (8, 8))
        d = math.hypot((column + 0.5) / 8 - q[n, 0], (row + 0.5) / 8 - q[n, 1])
        assert found["error"][n] == pytest.approx(d, abs=1e-5)
        assert found["auc"][n] == pytest.approx(1 - min(d / 0.5, 1), abs=1e-5)
        assert [found[f"pck@{t}"][n] for t in (0.05, 0.1, 0.2)] == [d < 0.05, d < 0.1, d < 0.2]
        order = np.argsort(-(from_b @ from_a[n]))
        close = [np.linalg.norm((q[m] - q[n]) * 8) < 1 for m in order]
        assert (found["track@1"][n], found["track@5"][n]) == (close[0], any(close[:5]))
        first, second = bank @ from_a[n], bank @ from_b[n]
        assert found["rank_correlation"][n] == pytest.approx(
            spearmanr(first, second).statistic, abs=1e-5
        )
        common = set(np.argsort(first)[-10:]) & set(np.argsort(second)[-10:])
        assert found["overlap@10"][n] == pytest.approx(len(common) / 10)
        others = [from_b[m] @ from_a[n] for m in range(len(q)) if m != n]
        assert found["consistency"][n] == pytest.approx(
            from_b[n] @ from_a[n] - np.mean(others), abs=1e-5
        )


def test_features_that_are_all_alike_have_no_order() -> None:
    queries, targets = somewhere(9, 0.2)
    found = measure_model(
        torch.ones(4, 4, 1), torch.ones(4, 4, 1), queries, targets, torch.ones(20, 1)
    )
    assert np.isnan(found["rank_correlation"]).all()
    assert found["consistency"] == pytest.approx(0)
    alone = measure_model(noise(4, 4, 8), noise(4, 4, 8), queries[:1], targets[:1], noise(0, 8))
    assert [
        math.isnan(alone[name][0])
        for name in ("rank_correlation", "overlap@10", "consistency", "track@1")
    ] == [True] * 3 + [False]
    assert consistency_gap(torch.eye(3)).tolist() == [1, 1, 1]


def test_figures_count_the_points_that_they_speak_of() -> None:
    queries = torch.zeros(4, 2)
    targets = torch.tensor([[0.0, 0.0], [0.05, 0.0], [0.11, 0.0], [0.3, 0.0]])
    measures = {metric.measure: np.array([1.0, 1.0, 0.0, 1.0]) for metric in METRICS} | {
        "error": np.array([0.1, 0.2, 0.4, 9.0])
    }
    pair = FramePair(0, 1, math.nan, moving_points(queries, targets), measures)
    named = {metric.name: aggregate(metric, [pair]) for metric in METRICS}
    assert named["moving_pck@0.1"] == 0.5
    assert named["pck@0.1"] == 0.75
    assert named["error"] == pytest.approx(0.3)
    still = FramePair(0, 2, math.nan, np.zeros(4, np.bool_), measures)
    assert math.isnan(aggregate(METRICS[0], [still]))
    assert math.isnan(aggregate(METRICS[0], []))


def test_a_point_moves_if_it_goes_further_than_a_tenth_of_the_image() -> None:
    queries = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [0.45, 0.55], [0.42, 0.58], [0.1, 0.0]])
    assert moving_points(queries, targets).tolist() == [False, False, True, False]


def test_an_answer_that_never_moves_takes_the_point_that_is_now_where_the_query_was() -> None:
    """The first point stays, the other two change places."""
    queries = torch.tensor([[0.1, 0.5], [0.5, 0.5], [0.9, 0.5]])
    measures = measure_static(queries, queries[[0, 2, 1]], rows=8, columns=8)
    assert measures["track@1"].tolist() == [1, 0, 0]
    assert set(measures) == {metric.measure for metric in METRICS} - {"epipolar@4px"}
    for name in ("rank_correlation", "overlap@10", "consistency"):  # it has no features
        assert np.isnan(measures[name]).all(), name


def test_what_shows_collapse_and_drift() -> None:
    spread = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(spread) == pytest.approx(16, rel=0.01)
    assert effective_rank(spread[:, :1] @ torch.ones(1, 16)) == pytest.approx(1, abs=0.01)
    features = noise(30, 8)
    alike = (features @ features.T).double().numpy()
    assert mean_cosine(features) == pytest.approx(alike[~np.eye(30, dtype=bool)].mean(), abs=1e-6)
    assert mean_cosine(torch.ones(5, 1)) == pytest.approx(1)
    assert drift(features, features) == pytest.approx(0, abs=1e-6)
    assert drift(-features, features) == pytest.approx(2, abs=1e-6)
    assert math.isnan(drift(features, noise(30, 4)))


def test_distances_become_pck_auc_and_error() -> None:
    """A distance equal to a threshold is a miss; the AUC falls linearly to 0 at half the image."""
    distances = torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.9])
    measures = localisation(torch.stack([0.6 * distances, -0.8 * distances], dim=1))
    assert measures["city_block"].tolist() == pytest.approx((1.4 * distances).tolist())
    assert measures["pck@0.05"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert measures["pck@0.1"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert measures["pck@0.2"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert measures["auc"].tolist() == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0, 0])
    assert torch.equal(measures["error"], distances)


def test_the_location_error_is_from_the_matched_patch_to_the_target() -> None:
    """One row of four patches; the feature of the first is found at the third, centred on 0.625."""
    anchor = torch.eye(4).view(1, 4, 4)
    later = anchor[:, [1, 2, 0, 3]]
    query, target = torch.tensor([[0.125, 0.5]]), torch.tensor([[0.625, 0.2]])
    assert match(anchor, later, query).tolist() == [[0.625, 0.5]]
    measures = measure_model(anchor, later, query, target, torch.zeros(0, 4))
    assert measures["error"] == pytest.approx(0.3)
    assert measures["auc"] == pytest.approx(0.4)
    assert measure_static(query, target, 1, 4)["error"] == pytest.approx(math.hypot(0.5, 0.3))


def test_centres_and_samples_of_a_map_that_is_not_square() -> None:
    assert patch_centres(2, 1).tolist() == [[0.5, 0.25], [0.5, 0.75]]
    assert patch_centres(1, 2).tolist() == [[0.25, 0.5], [0.75, 0.5]]
    features = torch.eye(2).view(1, 2, 2)
    at = torch.tensor([[0.25, 0.5], [0.5, 0.9], [0.0, 0.1], [1.0, 0.5]])
    outside = torch.tensor([[-3.0, 0.5], [4.0, 0.5]])
    assert sample_features(features, outside).flatten().tolist() == [1, 0, 0, 1]
    half = 0.5**0.5  # between two centres, back to unit length
    assert sample_features(features, at).flatten().tolist() == pytest.approx(
        [1, 0, half, half, 1, 0, 0, 1]
    )


def test_a_point_less_than_a_patch_away_counts_as_the_same_track() -> None:
    """On 2 rows and 4 columns 0.4 down is 0.8 patches, and 0.4 across is 1.6 patches."""
    targets = torch.tensor([[0.1, 0.1], [0.1, 0.5], [0.5, 0.1]])
    always_the_second = torch.tensor([[0.0, 1.0, -1.0]]).expand(3, 3)
    measures = track_retrieval(always_the_second, targets, rows=2, columns=4)
    assert measures["track@1"].tolist() == [1, 1, 0]
    always_the_third = torch.tensor([[0.0, -1.0, 1.0]]).expand(3, 3)
    measures = track_retrieval(always_the_third, targets, rows=2, columns=4)
    assert measures["track@1"].tolist() == [0, 0, 1]
    assert measures["track@5"].tolist() == [1, 1, 1]  # all three are among the first five
    one_patch_away = torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    swapped = 1 - torch.eye(2)
    assert track_retrieval(swapped, one_patch_away, 2, 4)["track@1"].tolist() == [0, 0]
    # and among many, where a matrix product would round some of the distances below 1
    row = (torch.arange(30) + 37 / 1024) / 32
    the_next = torch.eye(30).roll(1, dims=1)
    retrieved = track_retrieval(the_next, torch.stack([row, 0 * row + 31.3 / 32], dim=1), 32, 32)
    assert not retrieved["track@1"].any()


def test_agreement_of_two_orders() -> None:
    first = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 2.0]])
    second = torch.tensor([[1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [5.0, 7.0, 9.0]])
    # Spearman: 1 - 6 * (0 + 1 + 1) / (3 * 8); reversed; and 1.5 / sqrt(1.5 * 2) with a tie.
    assert rank_agreement(first, second)["rank_correlation"].tolist() == pytest.approx(
        [0.5, -1, 0.75**0.5]
    )
    # A tie in the middle of others takes the mean rank: (0.5, 0.5, 2, 3) against (0, 1, 2, 3).
    tied, straight = torch.tensor([[1.0, 1.0, 2.0, 3.0]]), torch.arange(4.0)[None]
    assert rank_agreement(tied, straight)["rank_correlation"].item() == pytest.approx(0.9**0.5)
    two = rank_agreement(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]))
    assert two["rank_correlation"].item() == pytest.approx(-1)
    assert two["overlap@10"].item() == 1
    up, down = torch.arange(12.0)[None], -torch.arange(12.0)[None]
    assert rank_agreement(up, up)["overlap@10"].item() == 1
    assert rank_agreement(up, down)["overlap@10"].item() == pytest.approx(0.8)


def test_the_consistency_gap_is_to_the_mean_of_the_other_points() -> None:
    similarities = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.5, 0.3], [0.6, 0.0, 0.2]])
    assert consistency_gap(similarities).tolist() == pytest.approx([0.6, 0.3, -0.1])
    assert consistency_gap(similarities[:2, :2]).tolist() == pytest.approx([0.7, 0.4])


def test_chance_of_points_far_apart() -> None:
    """Ten points, each several patches from the others: one in ten, five in ten."""
    targets = torch.stack([torch.linspace(0.05, 0.95, 10), torch.full((10,), 0.5)], dim=1)
    chance = measure_chance(targets, 32, 32, 40)
    assert chance["track@1"] == pytest.approx(0.1)
    assert chance["track@5"] == pytest.approx(0.5)
    assert chance["overlap@10"] == pytest.approx(0.25)
    assert (chance["rank_correlation"].tolist(), chance["consistency"].tolist()) == (
        [0] * 10,
        [0] * 10,
    )
    assert measure_chance(targets, 32, 32, 4)["overlap@10"] == pytest.approx(1)
    assert measure_chance(targets, 32, 32, 2)["rank_correlation"] == pytest.approx(0)
    assert np.isnan(measure_chance(targets, 32, 32, 1)["rank_correlation"]).all()
    assert np.isnan(measure_chance(targets, 32, 32, 0)["overlap@10"]).all()
    corner = measure_chance(torch.tensor([[0.0, 0.0]]), 1, 3, 0)  # patches at 1/6, 1/2 and 5/6
    assert corner["error"] == pytest.approx(math.hypot(0.5, 0.5))
    assert corner["track@5"] == pytest.approx(1)
    # At the first and the second of these patches: 0, 1/3 and 2/3 away; 1/3, 0 and 1/3 away.
    border_and_middle = measure_chance(torch.tensor([[1 / 6, 0.5], [0.5, 0.5]]), 1, 3, 0)
    assert border_and_middle["auc"] == pytest.approx([4 / 9, 5 / 9])
    assert border_and_middle["pck@0.1"] == pytest.approx([1 / 3, 1 / 3])


def test_effective_rank_mean_cosine_and_drift_of_a_few_rows() -> None:
    """Variances of 3 to 1 have an entropy of 0.562, so a rank of 1.755."""
    rows = torch.tensor([[3**0.5, 0], [-(3**0.5), 0], [0, 1], [0, -1]]) + 5
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(rows) == pytest.approx(math.exp(entropy), abs=1e-6)
    assert math.isnan(effective_rank(torch.ones(4, 2)))
    x, y = torch.eye(2)
    assert mean_cosine(torch.stack([x, x, y])) == pytest.approx(1 / 3)
    features, base = torch.stack([x, y, y, y]), torch.stack([x, x, y, y])
    assert drift(features, base) == pytest.approx(0.25)
    assert drift(features[None], base[None]) == pytest.approx(0.25)  # clip by clip
    assert math.isnan(drift(torch.ones(2, 8, 8), torch.ones(2, 8, 4)))
    assert math.isnan(drift(torch.ones(2, 8, 4), torch.ones(2, 8, 8)))
