"""A model's own matches on epipolar lines: worked-out distances in pixels of the stored frame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.evaluate.heldout import epipolar_recall
from trainer.evaluate.heldout.epipolar_recall import refined_match
from trainer.evaluate.heldout.measures import match


def test_a_match_within_4_px_of_its_line_counts() -> None:
    """Frames of 100x50 pixels; the line y = 20 is at (20 + 0.5) / 50 of the height."""
    line = np.array([[0.0, 1.0, -20.0]] * 5)
    line[4] = math.nan
    y = [20.0, 23.9, 24.1, 15.9, 20.0]
    positions = torch.tensor([[0.7, (value + 0.5) / 50] for value in y])
    found = epipolar_recall.recall(positions, line, (100, 50))["epipolar@4px"]
    assert found[:4].tolist() == [1, 1, 0, 0]
    assert math.isnan(found[4])


def test_chance_is_the_part_of_the_image_that_is_near_the_line() -> None:
    """8 of 50 rows; and of a line beyond the image, nothing."""
    lines = np.array([[0.0, 1.0, -25.0], [0.0, 1.0, 30.0]])
    found = epipolar_recall.chance(lines, (100, 50), 16)["epipolar@4px"]
    assert found == pytest.approx([8 / 50, 0], abs=0.02)


def test_matches_are_refined_between_patches() -> None:
    """Similarities of 0.5, 1 and 0.75 have their top a sixth of a patch from the middle."""
    similarities = torch.full((3, 5), 0.0)
    similarities[1] = torch.tensor([0.0, 0.5, 1.0, 0.75, 0.0])
    similarities[:, 2] = torch.tensor([0.75, 1.0, 0.5])
    later = torch.stack([similarities, (1 - similarities.square()).sqrt()], dim=-1)
    anchor = torch.tensor([1.0, 0.0]).expand(3, 5, 2)
    query = torch.tensor([[0.5, 0.5]])
    assert match(anchor, later, query).tolist() == [[0.5, 0.5]]
    shift = 0.25 / (2 * 0.75)
    assert refined_match(anchor, later, query)[0].tolist() == pytest.approx(
        [0.5 + shift / 5, 0.5 - shift / 3]
    )
    # At the border of the map there is no second neighbour.
    corner = torch.zeros(3, 5)
    corner[0, 0] = 1
    later = torch.stack([corner, 1 - corner], dim=-1)
    assert refined_match(anchor, later, query)[0].tolist() == pytest.approx([0.1, 1 / 6])
    # Features that are all alike have no top: the first patch is taken as it is.
    assert torch.isfinite(refined_match(anchor, anchor, query)).all()
