"""The label-free measures: right on features that are known, at chance on noise, and what a few lines of NumPy give."""

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
    mean_cosine,
    measure_chance,
    measure_model,
    measure_static,
    moving_points,
    patch_centres,
)

GRID = 16


def knowing_features(shift: float, grid: int = GRID) -> Tensor:
    """Patch features [h, w, D] that say where in a picture moved right by `shift` a patch lies: smooth bumps over the plane."""
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
