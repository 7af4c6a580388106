"""The descriptor of raw pixels: finds what moved, does not mind brightness, sees orientation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from trainer.evaluate.heldout.gradient_histograms import gradient_histograms


def picture(seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return (interpolate(noise, (128, 128), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_a_picture_moved_by_a_patch_has_the_same_descriptors_a_patch_on() -> None:
    still, moved = gradient_histograms(
        torch.cat([picture(), picture().roll((16, 32), dims=(2, 3))]), grid=8
    )
    assert still.shape == (8, 8, 128)
    assert still.norm(dim=-1) == pytest.approx(torch.ones(8, 8), abs=1e-5)
    inner = still[1:6, 1:5]  # away from the borders, before and after
    assert (inner * moved[2:7, 3:7]).sum(dim=-1).min() > 0.999
    similarities = inner.flatten(0, 1) @ moved.flatten(0, 1).T
    expected = [(row + 1) * 8 + column + 2 for row in range(1, 6) for column in range(1, 5)]
    assert similarities.argmax(dim=1).tolist() == expected


def test_brightness_and_contrast_change_nothing_and_flat_pictures_say_nothing() -> None:
    darker = (picture().float() * 0.5 + 20).to(torch.uint8)
    one, other = gradient_histograms(torch.cat([picture(), darker]), grid=8)
    assert (one * other).sum(dim=-1).min() > 0.99
    assert not gradient_histograms(torch.full((1, 3, 64, 64), 90, dtype=torch.uint8), 8).any()


def test_edges_along_and_across_are_different() -> None:
    stripes = ((torch.arange(64) // 8 % 2) * 200).to(torch.uint8).expand(1, 3, 64, 64)
    across, down = gradient_histograms(torch.cat([stripes, stripes.movedim(2, 3)]), grid=8)
    assert (across[4, 4] * down[4, 4]).sum() < 0.05
