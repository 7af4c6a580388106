"""Pictures of features show their principal components, with the same sign for every model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.feature_colours import frames_above_features, principal_colours


def test_the_first_principal_component_becomes_the_first_colour() -> None:
    rng = np.random.default_rng(0)
    x = np.tile(np.linspace(0, 1, 8), (2, 8, 1))
    axis = rng.normal(size=6)
    colours = principal_colours(x[..., None] * axis + 1e-4 * rng.normal(size=(2, 8, 8, 6)))
    assert abs(np.corrcoef(colours[..., 0].ravel(), x.ravel())[0, 1]) > 0.99
    mirrored = principal_colours(-x[..., None] * axis, like=colours)
    assert np.corrcoef(colours[..., 0].ravel(), mirrored[..., 0].ravel())[0, 1] > 0.99
    assert np.percentile(colours[0, ..., 0], [1, 99]) == pytest.approx([0, 1])
    assert np.isfinite(principal_colours(np.ones((2, 4, 4, 2)))).all()


def test_frames_lie_above_their_own_features() -> None:
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4) * 100
    features = torch.zeros(3, 2, 2, 1)
    features[0, 0, 0] = -1.0  # the anchor frame's first patch differs from all others
    picture = frames_above_features(frames, features)
    assert picture.shape == (8, 12, 3)
    assert [int(picture[0, 4 * t, 0]) for t in range(3)] == [0, 100, 200]
    dark = picture[4:, :, 0] < 128
    assert dark[:2, :2].all()  # 2 x 2 px per patch
    assert dark.sum() == 4
