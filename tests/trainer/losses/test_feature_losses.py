"""Losses on backbone features equal their formulas, and compare with the start weights for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.plain_losses import mean_over_tracks
from tests.trainer.losses.test_losses import example_embeddings
from tests.trainer.model.test_step import a_step, all_compared
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
from trainer.losses.embeddings import Embeddings, Features
from trainer.losses.keep_base import keep_base
from trainer.losses.lifted import lifted
from trainer.model.backbone import normalised_images
from trainer.model.feature_sampling import choose_references, sample_points
from trainer.train import train

Make = Callable[..., TrainSettings]
BOTH: dict[str, Any] = {"sorting": 0, "keep_base": {}, "lifted": {}}


def example(requires_grad: bool = False) -> Embeddings:
    random = torch.Generator().manual_seed(1)
    e = example_embeddings()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, 5, generator=random, dtype=torch.float64)

    features = Features(
        student=draw(4, 3, 2).requires_grad_(requires_grad),
        base=draw(4, 3, 2).requires_grad_(requires_grad),
        tracks=draw(*e.weights.shape).requires_grad_(requires_grad),
        base_tracks=draw(*e.weights.shape).requires_grad_(requires_grad),
        base_anchors=draw(*e.anchor_positions.shape[:2]).requires_grad_(requires_grad),
    )
    return replace(e, features=features)


def test_staying_near_the_base_model_equals_its_formula() -> None:
    e = example()
    assert e.features
    f, g = (x.numpy().reshape(-1, 5) for x in (e.features.student, e.features.base))
    lengths = [abs(np.linalg.norm(a) / np.linalg.norm(b) - 1) for a, b in zip(f, g, strict=True)]
    turned = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(f, g, strict=True)]
    assert keep_base(e).item() == pytest.approx(np.mean(lengths) + np.mean(turned), rel=1e-9)


def test_lifted_features_equal_their_formula() -> None:
    e = example()
    assert e.features
    tracks, seen = e.features.tracks.numpy(), e.features.base_tracks.numpy()
    anchors, weights = e.features.base_anchors.numpy(), e.weights.numpy()
    losses = np.zeros(weights.shape)
    for b, f, n in np.ndindex(*weights.shape):
        vectors = [anchors[b, n], *(seen[b, k, n] for k in range(len(seen[b])))]
        mean = np.average(vectors, axis=0, weights=[1, *weights[b, :, n]])
        losses[b, f, n] = np.abs(tracks[b, f, n] - mean).mean()
    assert lifted(e).item() == pytest.approx(mean_over_tracks(losses, weights), rel=1e-6)


@pytest.mark.parametrize("loss", [keep_base, lifted])
def test_gradients_reach_the_students_features_alone(
    loss: Callable[[Embeddings], Tensor],
) -> None:
    e = example(requires_grad=True)
    assert e.features
    loss(e).backward()
    reached = {
        name
        for name in ("student", "base", "tracks", "base_tracks", "base_anchors")
        if (gradient := getattr(e.features, name).grad) is not None and gradient.abs().max() > 0
    }
    assert reached == ({"student"} if loss is keep_base else {"tracks"})
    with pytest.raises(ValueError, match="set 'features'"):
        loss(replace(e, features=None))


@pytest.mark.parametrize("kind", ["pretrack", "upstream", "lora"])
def test_features_are_those_of_whole_passes(settings: Make, kind: str) -> None:
    """`upstream` samples points in another way, and its teacher has a trunk of its own."""
    recipe = "upstream" if kind == "upstream" else "pretrack"
    s = settings(recipe, loss=BOTH, model={"lora": {"rank": 2}} if kind == "lora" else {})
    model, batch = a_step(s)
    with torch.no_grad():  # the student moves away from its start weights
        for weight in model.student.backbone.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    references = choose_references(
        4, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0)
    )
    indices = all_compared(4, references)
    found = model.embed(batch, indices).features
    assert found
    images = normalised_images(batch["frames"], s.data.mean, s.data.std).flatten(0, 1)
    corners = s.tracks.align_corners
    base: Any = model.losses.base
    maps = model.student.backbone(images), base(images)
    assert (maps[0] - maps[1]).abs().max() > 1e-3
    # Embeddings are not trained, so no rank waits for gradients of the head.
    model(batch, indices)[0].backward()
    assert all(w.grad is not None for w in model.parameters() if w.requires_grad)
    points = batch["positions"].flatten(0, 1)
    (tracks, base_tracks) = (sample_points(m, points, 64, corners).view(4, 4, 36, -1) for m in maps)
    for ours, expected in (
        (found.student, maps[0][indices.tail_frames]),
        (found.base, maps[1][indices.tail_frames]),
        (found.tracks, tracks[:, 1:]),
        (found.base_tracks, base_tracks[:, 1:]),
        (found.base_anchors, base_tracks[:, 0]),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_base_model_stays_what_it_was_over_a_resumed_run(
    settings: Make, tmp_path: Path
) -> None:
    def run(name: str, steps: int) -> TrainSettings:
        optim = {"lr": 1e-2, "period": 4}
        return settings(loss=BOTH, optim=optim, run={"steps": steps, "out": tmp_path / name})

    train(run("unbroken", 4))
    train(run("broken", 2))
    middle = last_state(run("broken", 2))["losses"]
    train(run("broken", 4))
    a, b = (last_state(run(name, 4)) for name in ("unbroken", "broken"))
    for part in ("student", "teacher", "losses", "optimizer"):
        assert_same(a[part], b[part], part)
    assert_same(middle, b["losses"])
    weight = "model.blocks.2.mlp.fc1.weight"
    assert not torch.equal(b["student"][f"backbone.{weight}"], b["losses"][f"base.{weight}"])
