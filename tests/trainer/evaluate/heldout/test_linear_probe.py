"""The ridge regression of the probe, and what it is kept from seeing."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluate.heldout.linear_probe import Moments, cross_validated


def test_a_ridge_regression_of_a_few_rows() -> None:
    """x has mean 2 and variance 2, y = 3 x + 1: with a strength of 1 half of the slope is left."""
    x = np.array([[0.0], [2.0], [2.0], [4.0]])
    exact, half = Moments.of(x, 3 * x + 1).regressions([0.0, 1.0])
    assert exact.predict(np.array([[10.0]])) == pytest.approx(np.array([[31.0]]))
    assert half.weights == pytest.approx(np.array([[1.5]]))
    assert half.predict(np.array([[2.0]])) == pytest.approx(np.array([[7.0]]))  # the mean stays
    # A feature that never varies changes nothing, and moments add up.
    constant = np.concatenate([x, np.full((4, 1), 0.1)], axis=1)
    [found] = (
        Moments.of(constant[:1], 3 * x[:1] + 1) + Moments.of(constant[1:], 3 * x[1:] + 1)
    ).regressions([1.0])
    assert found.predict(constant) == pytest.approx(half.predict(x))


def test_what_is_linear_is_found_and_unknown_targets_are_left_out() -> None:
    random = np.random.default_rng(0)
    features = [random.normal(size=(20, 3)) for _ in range(8)]
    targets = [x @ np.array([[1.0, 0], [2, 1], [0, -1]]) + 5 for x in features]
    spoilt = [y.copy() for y in targets]
    for y in spoilt:
        y[3] = np.nan
    found = cross_validated(features, spoilt, [i // 2 for i in range(8)])
    assert np.stack(found) == pytest.approx(np.stack(targets), abs=0.01)


def test_no_clip_is_predicted_from_its_own_group() -> None:
    """Features tell the group, whose target is its own: from other groups nothing can be known."""
    random = np.random.default_rng(1)
    names, own = random.normal(size=(20, 20)), random.normal(size=20)
    groups = [i // 2 for i in range(40)]
    features = [names[group] + random.normal(0, 0.1, (10, 20)) for group in groups]
    targets = [np.full((10, 1), own[group]) for group in groups]

    def error(named: list[int]) -> float:
        found = cross_validated(features, targets, named)
        return float(np.square(np.array(found) - np.array(targets)).mean())

    assert error(groups) > 0.9 * own.var()
    assert error(list(range(40))) < 0.8 * error(groups)  # twins are learned from
