"""Depth and normals on NAVI: metrics equal NumPy's, normals fit known shapes, the probe learns."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.helpers.changing import changed
from tests.helpers.navi_files import colour_features, write_navi
from trainer.evaluate.benchmarks.dpt_probe import (
    Dpt,
    depth_from_bins,
    depth_loss,
    depth_metrics,
    fitted_scale_and_shift,
    learning_rate,
    normals_loss,
    normals_metrics,
)
from trainer.evaluate.benchmarks.navi_data import list_photographs, read_crop, unproject
from trainer.evaluate.benchmarks.navi_depth import (
    crop_normals,
    evaluate_depth,
    evaluate_normals,
    relative_depth,
    surface_normals,
)
from trainer.evaluate.benchmarks.settings import ProbeSettings

QUICK = ProbeSettings(
    size=32, every=2, steps=40, batch=4, rate=1e-2, hidden=8, relative=True, jitter=False, workers=0
)


@pytest.fixture(scope="session")
def navi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_navi(tmp_path_factory.mktemp("navi"))


def levels(images: Tensor) -> list[Tensor]:
    """Four maps of 2x2 patch colours, which tell the position on the ball, and so the depth."""
    return [colour_features(images, 16)] * 4


def some_depth(seed: int, holes: bool = False) -> Tensor:
    depth = 0.3 + torch.rand(3, 12, 10, generator=torch.Generator().manual_seed(seed))
    return (
        depth.where(torch.rand(depth.shape, generator=torch.Generator().manual_seed(9)) > 0.3, 0)
        if holes
        else depth
    )


def test_depth_metrics_are_those_of_numpy() -> None:
    found, truth = some_depth(0), some_depth(1, holes=True)
    metrics = depth_metrics(found, truth)
    for i in range(3):
        p, t = (x[i][truth[i] > 0].double().numpy() for x in (found, truth))
        ratio = np.maximum(p / t, t / p)
        assert [metrics[f"d{k}"][i].item() for k in (1, 2, 3)] == pytest.approx(
            [(ratio < 1.25**k).mean() for k in (1, 2, 3)]
        )
        assert metrics["rmse"][i].item() == pytest.approx(np.sqrt(np.mean((p - t) ** 2)), rel=1e-5)
    assert 0.1 < metrics["d1"].mean() < 0.9
    assert depth_metrics(found, torch.zeros_like(found))["d1"].isnan().all()


def test_scale_invariant_depth_is_a_least_squares_fit() -> None:
    found, truth = some_depth(0), some_depth(1, holes=True)
    fitted = fitted_scale_and_shift(found, truth)
    for i in range(3):
        valid = (truth[i] > 0).numpy()
        p, t = (x[i].double().numpy()[valid] for x in (found, truth))
        (scale, shift), *_ = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), t, rcond=None)
        np.testing.assert_allclose(fitted[i].numpy()[valid], scale * p + shift, atol=1e-5)
    torch.testing.assert_close(
        fitted_scale_and_shift(3 * truth + 2, truth)[truth > 0], truth[truth > 0]
    )
    flat = torch.full_like(truth, 0.7)
    assert torch.equal(
        fitted_scale_and_shift(flat, truth), flat
    )  # no scale can be told from a flat answer


def test_normals_metrics_are_those_of_numpy() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 3, 12, 10, generator=rng)
    found = truth + 0.5 * torch.randn(truth.shape, generator=rng)
    valid = torch.rand(3, 12, 10, generator=rng) > 0.3
    metrics = normals_metrics(found, truth, valid)
    for i in range(3):
        p, t = (x[i].double().numpy()[:, valid[i].numpy()] for x in (found, truth))
        off = np.degrees(
            np.arctan2(np.linalg.norm(np.cross(p, t, axis=0), axis=0), (p * t).sum(axis=0))
        )
        expected = [(off < degrees).mean() for degrees in (11.25, 22.5, 30)]
        assert [metrics[name][i].item() for name in ("11.25°", "22.5°", "30°")] == pytest.approx(
            expected
        )
        assert metrics["rmse"][i].item() == pytest.approx(np.sqrt(np.mean(off**2)), rel=1e-4)


def plane(tilt: float, focal: float, size: int = 64) -> tuple[Tensor, Tensor]:
    """Depth of a plane through (0, 0, 1), tilted about the diagonal, and its normal."""
    turn = math.radians(tilt)
    normal = torch.tensor(
        [math.sin(turn) / 2**0.5, math.sin(turn) / 2**0.5, math.cos(turn)], dtype=torch.float64
    )
    rays = unproject(torch.ones(size, size, dtype=torch.float64), focal, (size / 2, size / 2))
    return normal[2] / (rays @ normal), normal


@pytest.mark.parametrize(
    ("tilt", "focal", "off"),
    [
        (20, 2, 2.7),
        (45, 2, 12.1),
        (60, 2, 17.4),
        (20, 1.25, 4.6),
        (45, 1.25, 21.5),
        (60, 1.25, 29.3),
    ],
)
def test_normals_of_a_tilted_plane(tilt: float, focal: float, off: float) -> None:
    """The principal point in the middle gives the plane's normals.

    In the corner, as in Probe3D, they are `off` degrees off.
    """
    depth, normal = plane(tilt, focal * 64)
    assert (depth > 0).all()
    true = surface_normals(depth, focal * 64, (32.0, 32.0))[:, 1:-1, 1:-1]
    torch.testing.assert_close(
        true.double(), normal[:, None, None].expand(3, 62, 62), atol=1e-4, rtol=0
    )
    probe3d = surface_normals(depth, focal * 64, (0.0, 0.0))[:, 1:-1, 1:-1]
    angles = (probe3d * true).sum(dim=0).clamp(-1, 1).acos().rad2deg()
    assert angles.mean().item() == pytest.approx(off, abs=0.15)


def test_normals_of_the_ball(navi: Path) -> None:
    """They point from the surface to the middle of the ball; the silhouette is left out."""
    for view in list_photographs(navi, "wild_set")[:3]:
        crop = read_crop(view, 64)
        normals, valid = crop_normals(crop, 64, "true")
        inward = normalize(
            torch.from_numpy(view.translation)[:, None, None] - crop.points.movedim(-1, 0).double(),
            dim=0,
        )
        off = (normals * inward).sum(dim=0).clamp(-1, 1).acos().rad2deg()
        assert off[valid].median() < 3
        assert valid.sum() < (crop.depth > 0).sum()
        probe3d, everywhere = crop_normals(crop, 64, "probe3d")
        assert torch.equal(everywhere, crop.depth > 0)
        assert (probe3d * inward).sum(dim=0).clamp(-1, 1).acos().rad2deg()[valid].median() > 4


def test_losses_fall_to_nothing_at_the_truth() -> None:
    truth = some_depth(1, holes=True)
    assert depth_loss(truth.where(truth > 0, 0.5), truth) < 1e-3
    assert depth_loss(some_depth(0), truth) > 1
    scaled = depth_loss(truth * 2, truth).item()
    g = np.log((2 * truth + 0.001)[truth > 0].double()) - np.log(
        (truth + 0.001)[truth > 0].double()
    )
    assert scaled == pytest.approx(
        10 * math.sqrt(float((g**2).mean() - 0.85 * g.mean() ** 2)), abs=0.02
    )  # nearly no gradient

    normals = normalize(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    sure, unsure = (
        torch.cat([normals, torch.full((2, 1, 8, 8), kappa)], dim=1) for kappa in (5.0, -5.0)
    )
    assert normals_loss(sure, normals, valid) < normals_loss(unsure, normals, valid)
    wrong = sure * torch.tensor([-1, -1, -1, 1])[:, None, None]
    assert normals_loss(wrong, normals, valid) > normals_loss(sure, normals, valid) + 10
    kappa = 6.01  # elu(5) + 1.01; the angle is cut at acos(1 - 1e-4)
    expected = (
        math.log(1 + math.exp(-kappa * math.pi))
        - math.log(kappa**2 + 1)
        + kappa * math.acos(1 - 1e-4)
    )
    assert normals_loss(sure, normals, valid).item() == pytest.approx(expected, abs=1e-3)


def test_the_gradient_loss_looks_at_neighbouring_pixels() -> None:
    """Scattered errors cost more than the same ones side by side, whatever else is in the batch."""
    truth = torch.full((1, 24, 24), 0.5)
    halves = torch.where((torch.arange(24) < 12)[:, None], 0.6, 0.4).expand(1, 24, 24)
    scattered = halves.flatten()[
        torch.randperm(576, generator=torch.Generator().manual_seed(0))
    ].view(1, 24, 24)
    assert depth_loss(scattered, truth) > depth_loss(halves, truth) + 0.2
    for found in (scattered, halves):
        torch.testing.assert_close(
            depth_loss(found.repeat(3, 1, 1), truth.repeat(3, 1, 1)), depth_loss(found, truth)
        )


def test_depth_is_the_mean_of_the_bins() -> None:
    outputs = torch.full((1, 256, 2, 2), -3.0)
    assert depth_from_bins(outputs, 1.0).flatten().tolist() == pytest.approx(
        [0.5005] * 4
    )  # even weights: the middle of 0.001 to 1
    outputs[:, 255] = 1e9
    assert depth_from_bins(outputs, 1.0).flatten().tolist() == pytest.approx([1.0] * 4)


def test_the_rate_goes_up_straight_and_down_a_cosine() -> None:
    rates = [learning_rate(step, 100, 15) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[15] == pytest.approx(1)
    assert rates[100] == pytest.approx(0.01)
    assert rates[5] - rates[4] == pytest.approx(0.99 / 15)
    assert rates[57] == pytest.approx(0.99 * math.cos(math.pi / 2 * 42 / 85) + 0.01)
    assert learning_rate(0, 10, 0) == 1


def test_the_probe_is_sixteen_times_as_fine() -> None:
    torch.manual_seed(0)
    probe = Dpt([6, 6, 8, 8], 4, hidden=8)
    maps = [torch.randn(2, 3, 5, width) for width in (6, 6, 8, 8)]
    assert probe(maps).shape == (2, 4, 48, 80)
    for level in range(4):  # every level counts
        changed = [m + (i == level) for i, m in enumerate(maps)]
        assert not torch.allclose(probe(changed), probe(maps))


def test_relative_depth() -> None:
    depth = torch.tensor([[0.0, 0.4], [0.5, 0.6]])
    torch.testing.assert_close(relative_depth(depth), torch.tensor([[0.0, 0.01], [0.505, 1.0]]))


@pytest.mark.slow
def test_the_probe_learns_depth(navi: Path) -> None:
    result = evaluate_depth(levels, 16, navi, QUICK)
    untrained = evaluate_depth(levels, 16, navi, changed(QUICK, steps=1))
    assert np.mean(result.losses[-10:]) < 0.6 * np.mean(result.losses[:5])
    for kind in ("scale-aware", "scale-invariant"):
        assert result.figures[kind]["d1"] > untrained.figures[kind]["d1"] + 10
        assert result.figures[kind]["rmse"] < untrained.figures[kind]["rmse"]
    assert result.figures["scale-invariant"]["rmse"] <= result.figures["scale-aware"]["rmse"]
    assert len(result.losses) == 40
    assert result.trained_on == 8
    assert len(result.images) == 7
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    mean = np.mean([image["scale-aware"]["d1"] for image in stored["images"].values()])
    assert stored["figures"]["scale-aware"]["d1"] == pytest.approx(mean)
    assert f"{result.figures['scale-aware']['d1']:.3f}" in str(result)
    assert "7 photographs; probe trained on 8 for 40 steps" in str(result)


def test_the_probe_learns_normals(navi: Path) -> None:
    settings = changed(QUICK, snorm_gt="true")
    result = evaluate_normals(levels, 16, navi, settings)
    untrained = evaluate_normals(levels, 16, navi, changed(settings, steps=1))
    assert result.figures["normals"]["rmse"] < untrained.figures["normals"]["rmse"] - 10
    assert result.figures["normals"]["30°"] > untrained.figures["normals"]["30°"] + 10
    assert "normals as true" in str(result)


def test_the_same_call_gives_the_same_result(navi: Path) -> None:
    settings = changed(QUICK, steps=3, jitter=True)
    state = torch.random.get_rng_state()
    first = evaluate_depth(levels, 16, navi, settings)
    assert torch.equal(torch.random.get_rng_state(), state)  # a caller's draws are not disturbed
    torch.rand(5)
    assert evaluate_depth(levels, 16, navi, settings) == first
    assert evaluate_depth(levels, 16, navi, changed(settings, jitter=False)).losses != first.losses
    assert evaluate_depth(levels, 16, navi, changed(settings, seed=9)).losses != first.losses
    assert (
        len(evaluate_depth(levels, 16, navi, changed(settings, steps=None, epochs=2)).losses) == 4
    )  # two batches an epoch


def test_workers_change_nothing_without_jitter(navi: Path) -> None:
    settings = changed(QUICK, steps=3)
    alone, helped = (
        evaluate_depth(partial(levels), 16, navi, changed(settings, workers=n)) for n in (0, 2)
    )
    assert alone.losses == helped.losses


def test_depth_metrics_of_a_few_pixels() -> None:
    """Ratios of 1.25 (no longer good), 1.5, 1.8 and 1, both ways; a pixel without truth."""
    predicted = torch.tensor([[[1.0, 1.5, 1.0, 0.5, 9.0]]])
    truth = torch.tensor([[[1.25, 1.0, 1.8, 0.5, 0.0]]])
    metrics = {name: value.item() for name, value in depth_metrics(predicted, truth).items()}
    squares = 0.25**2 + 0.5**2 + 0.8**2
    assert metrics == pytest.approx(
        {"d1": 0.25, "d2": 0.75, "d3": 1.0, "rmse": math.sqrt(squares / 4)}, abs=1e-6
    )


def test_normals_metrics_of_a_few_pixels() -> None:
    """Normals that are 5, 20, 25 and 90 degrees off, of any length; an invalid pixel."""
    off = torch.tensor([5.0, 20.0, 25.0, 90.0, 70.0]).deg2rad()
    predicted = 3 * torch.stack([off.sin(), torch.zeros(5), off.cos()])[None, :, None]
    truth = torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 1, 5)
    valid = torch.tensor([True, True, True, True, False]).view(1, 1, 5)
    metrics = {k: v.item() for k, v in normals_metrics(predicted, truth, valid).items()}
    rmse = math.sqrt((5**2 + 20**2 + 25**2 + 90**2) / 4)
    assert metrics == pytest.approx(
        {"11.25°": 0.25, "22.5°": 0.5, "30°": 0.75, "rmse": rmse}, rel=1e-4
    )


def test_scale_and_shift_of_three_pixels() -> None:
    """1, 2, 3 become 2 x + 1; the pixel without truth has no say."""
    predicted = torch.tensor([[[1.0, 2.0, 3.0, 50.0]]])
    truth = torch.tensor([[[3.0, 5.0, 7.0, 0.0]]])
    assert fitted_scale_and_shift(predicted, truth).flatten().tolist() == pytest.approx(
        [3, 5, 7, 101], rel=1e-5
    )
