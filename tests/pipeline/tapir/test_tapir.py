"""Compare TAPIR with outputs of the published code, and test what it refuses."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.settings import check_settings
from pipeline.tapir import tracking
from pipeline.tapir.cost_volume import soft_argmax
from pipeline.tapir.model import (
    Tapir,
    TrackEstimates,
    correlate,
    neighbourhoods,
    sample_in_frames,
)
from pipeline.tapir.sides import level_sides
from pipeline.tapir.tracking import _parts, track
from pipeline.tapir.weights import load_model
from pipeline.trackers.tapir import TapirSettings
from shards.errors import PretrackError, SettingsError
from shards.geometry import grid_points
from tests.helpers.clips import make_clip
from tests.helpers.panning import panning_frames
from tests.pipeline.tapir.golden_outputs import (
    CASES,
    GOLDEN,
    GoldenCase,
    golden_model,
    golden_outputs,
    golden_queries,
    golden_video,
    golden_weights,
)

ODD_GRID = CASES[0]
SIDE = 32
"""Pixels: small frames, for what does not depend on their size."""


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return golden_outputs()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return golden_weights("bootstapir")


@pytest.fixture(scope="module")
def small(weights: dict[str, Tensor]) -> Tapir:
    return small_model(weights)


def small_model(weights: dict[str, Tensor], causal: bool = False) -> Tapir:
    return golden_model(GoldenCase("small", SIDE, SIDE, causal=causal), weights)


def make_video(clips: int = 1, frames: int = 3) -> Tensor:
    made = [np.stack(panning_frames(seed, frames, 64, 48)) for seed in range(clips)]
    return torch.from_numpy(np.stack(made)).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("kind", ["bootstapir", "tapir"])
def test_keys_and_shapes_are_those_of_the_official_checkpoints(kind: str) -> None:
    with torch.device("meta"):
        model = Tapir(1 if kind == "bootstapir" else 0, extra_convs=kind == "bootstapir")
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert ours == json.loads((GOLDEN / f"state_dict_{kind}.json").read_text())


def test_the_mixer_equals_golden(weights: dict[str, Tensor], golden: dict[str, np.ndarray]) -> None:
    mixer = small_model(weights).torch_pips_mixer
    got = mixer(torch.from_numpy(golden["square/mixer_in_1"]))
    expected = torch.from_numpy(golden["square/mixer_out_1"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_tracks_equal_golden(weights: dict[str, Tensor], golden: dict[str, np.ndarray]) -> None:
    """With an odd map. `python -m benchmarks.tapir` compares all cases.

    The published code counts positions from the corner of a frame: half a pixel more than ours.
    """
    model, queries = golden_model(ODD_GRID, weights), golden_queries(ODD_GRID, golden)
    tracked = track(model, golden_video(ODD_GRID, golden), queries=queries)
    own = torch.arange(12)[:, None] == queries[0, :, 0]
    expected = torch.from_numpy(golden["odd_grid/iter_tracks"][4]).transpose(0, 1) - 0.5
    torch.testing.assert_close(tracked.positions[0][~own], expected[~own], rtol=0, atol=1e-3)
    assert torch.equal(tracked.positions[0].transpose(0, 1)[own.T], queries[0, :, 1:])
    for name, value in (("occlusion", tracked.visibility), ("expected_dist", tracked.confidence)):
        logits = torch.from_numpy(golden[f"odd_grid/iter_{name}"][4]).T
        torch.testing.assert_close(value[0][~own], (1 - logits.sigmoid())[~own], rtol=0, atol=1e-4)
        assert (value[0][own] == 1).all()


def test_neighbourhoods_equal_grid_sample_rows_first() -> None:
    correlation = torch.randn(5, 12, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[3.3, 4.7], [0.0, 11.0], [-2.4, 5.5], [17.2, -3.1], [1e9, 0.25]])
    got = neighbourhoods(correlation, positions)
    offsets = torch.tensor([[j - 3.0, i - 3.0] for i in range(7) for j in range(7)])
    grid = 2 * (positions[:, None] + offsets) / torch.tensor([16.0, 12.0]) - 1
    expected = F.grid_sample(correlation[:, None], grid[:, None], align_corners=False)[:, 0, 0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_query_is_sampled_in_its_own_clip_and_frame_up_to_the_border() -> None:
    level = torch.randn(2, 3, 6, 8, 5, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([[0, 2, 1], [2, 1, 0]])
    positions = torch.tensor([[[3.3, 4.7], [0.0, 6.0], [8.0, 0.2]]] * 2)
    got = sample_in_frames(level, times, positions)
    grid = 2 * positions / torch.tensor([8.0, 6.0]) - 1
    for clip in range(2):
        for query in range(3):
            frame = level[clip, times[clip, query]].permute(2, 0, 1)[None]
            place = grid[clip, query].view(1, 1, 1, 2)
            expected = F.grid_sample(frame, place, padding_mode="border", align_corners=False)
            torch.testing.assert_close(got[clip, query], expected[0, :, 0, 0])


def test_correlations_are_products_with_the_vectors_of_each_frame() -> None:
    level, vectors = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 7, 6)
    got = correlate(level, vectors)
    expected = torch.einsum("btijc,btqc->btqij", level, vectors)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_soft_argmax_averages_cell_centres_nearer_than_five_cells() -> None:
    """Weights 4 : 2 : 1; the third is at a distance of exactly 5 cells (3, 4) and left out."""
    scores = torch.full((1, 8, 12), -1e9)
    scores[0, 1, 2], scores[0, 1, 6], scores[0, 5, 5] = np.log(4), np.log(2), np.log(1)
    x, y = soft_argmax(scores)[0].tolist()
    assert x == pytest.approx((4 * 2.5 + 2 * 6.5) / 6)
    assert y == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("base", "side", "sides"),
    [
        (256, 256, [256]),
        (256, 384, [256, 384]),
        (256, 512, [256, 512]),
        (256, 640, [256, 400, 640]),  # 256 * 2.5 ** 0.5 = 404.8
        (256, 1024, [256, 512, 1024]),
    ],
)
def test_larger_frames_are_reached_in_steps_of_at_most_two(
    base: int, side: int, sides: list[int]
) -> None:
    assert level_sides(base, side) == sides


@pytest.mark.parametrize(
    ("queries", "most", "parts"),
    [
        (4, 100, [(0, 3, 0, 4)]),
        (4, 9, [(0, 2, 0, 4), (2, 4, 0, 4)]),
        (4, 4, [(0, 1, 0, 4), (1, 2, 0, 4), (2, 3, 0, 4)]),
        (5, 4, [(c, c + 1, q, q + 3) for c in range(3) for q in (0, 3)]),
    ],
)
def test_queries_are_refined_in_even_parts(
    queries: int, most: int, parts: list[tuple[int, int, int, int]]
) -> None:
    """Of three clips: whole clips together, or some queries of one clip."""
    got = [(c.start, c.stop, q.start, q.stop) for c, q in _parts(3, queries, most)]
    assert got == parts


@pytest.mark.slow
def test_clips_anchors_and_chunks_do_not_change_tracks(
    small: Tapir, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(2, 2)
    together = track(small, video, grid=3, anchors=(0, 1), iterations=2, memory=1 << 30)
    monkeypatch.setattr("pipeline.tapir.memory.LEAST_QUERIES", 5)
    alone = [
        track(small, video[b : b + 1], grid=3, anchors=(a,), iterations=2, memory=0)
        for b in range(2)
        for a in (0, 1)
    ]
    for name in ("positions", "visibility", "confidence"):
        expected = torch.cat([getattr(one, name) for one in alone]).unflatten(0, (2, 2)).squeeze(2)
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_larger_frames_are_refined_at_every_side_and_averaged(small: Tapir) -> None:
    """Positions go on from side to side; logits start from the first estimates each time."""
    video, points = make_video(1, 2), torch.tensor([[[0.0, 20.0, 30.0], [1.0, 50.0, 10.0]]])
    tracked = track(small, video, queries=points, side=2 * SIDE, iterations=1)
    queries, results = tracking._queries(small, video, points), []
    maps = tracking.encode(small, video, [SIDE, 2 * SIDE])
    features = [small.query_features(level, queries.times, queries.positions) for level in maps]
    initial = tracking.pinned(small.initial_estimates(maps[0][1], features[0], 20.0), queries)
    positions = initial.positions
    for level, vectors in zip(maps, features, strict=True):
        results.append(small.refine(level, vectors, TrackEstimates(positions, initial.logits), 1))
        positions = results[-1].positions
    mean = (results[0].positions + results[1].positions) / 2 * torch.tensor([64.0, 48.0]) / SIDE
    torch.testing.assert_close(tracked.positions[0, 1, 0], mean[0, 0, 1] - 0.5, rtol=0, atol=1e-3)
    logit = (results[0].logits[0, 0, 1] + results[1].logits[0, 0, 1]) / 2
    expected = torch.sigmoid(-logit)
    torch.testing.assert_close(tracked.visibility[0, 1, 0], expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(tracked.confidence[0, 1, 0], expected[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_causal_tracks_do_not_depend_on_later_frames_in_either_direction(
    weights: dict[str, Tensor],
) -> None:
    model, video = small_model(weights, causal=True), make_video(1, 4)
    tracked = partial(track, model, iterations=1)
    queries = torch.tensor([[[1.0, 20.0, 30.0], [1.0, 50.0, 10.0]]])
    both = tracked(video, queries=queries)
    changed = video.clone()
    changed[:, 3] = 255 - changed[:, 3]
    after = tracked(changed, queries=queries)
    torch.testing.assert_close(after.positions[:, 1:3], both.positions[:, 1:3], rtol=0, atol=1e-3)
    mirrored = queries + torch.tensor([1.0, 0.0, 0.0])
    reverse = tracked(video.flip(1), queries=mirrored, backward=False).positions.flip(1)
    torch.testing.assert_close(both.positions[:, :2], reverse[:, :2], rtol=0, atol=1e-3)
    forward = tracked(video, queries=queries, backward=False)
    assert not torch.allclose(forward.positions[:, 0], both.positions[:, 0])


@pytest.mark.slow
def test_fast_stays_near_exact(small: Tapir) -> None:
    """With one iteration: with random weights, unlike trained ones, each one magnifies rounding."""
    video = make_video()
    exact, fast = (
        track(small, video, grid=4, anchors=(1,), iterations=1, fast=fast) for fast in (False, True)
    )
    assert 0 < (exact.positions - fast.positions).norm(dim=-1).median() < 0.2
    assert fast.positions.dtype == torch.float32


@pytest.mark.slow
def test_a_build_stores_what_track_gives() -> None:
    """At a side of 64, in the frames after the anchor only."""
    settings = TapirSettings(
        tracker="tapir",
        weights="random",
        precision="exact",
        device="cpu",
        side=64,
        iterations=1,
        temperature=10.0,
        directions="forward",
    )
    frames = np.stack(panning_frames(0, 3, 64, 48))
    queries = grid_points(2, 64, 48)
    tracker = settings.load()
    (stored,) = tracker.track([frames], [make_clip().info], (1,), queries)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    alone = track(
        tracker._model,
        video,
        grid=torch.from_numpy(queries),
        anchors=(1,),
        iterations=1,
        temperature=10,
    )
    limits = torch.tensor([64.0, 48.0])
    expected = alone.positions[0, 0].clamp(-limits, 2 * limits).numpy()
    np.testing.assert_array_equal(stored.positions[0, 1:], expected[1:])
    visible = np.rint(alone.visibility[0, 0, 2].numpy() * 255)
    np.testing.assert_array_equal(stored.visibility[0, 2], visible)
    assert (stored.positions[0, 0] == queries).all()
    assert not stored.visibility[0, 0].any()


@pytest.mark.parametrize("side", [24, 100])
def test_sides_that_the_network_cannot_take_are_named(small: Tapir, side: int) -> None:
    with pytest.raises(
        PretrackError, match=f"32 or more pixels that is a multiple of 8: not {side}"
    ):
        track(small, make_video(), grid=2, side=side)


def test_checkpoints_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pt")
    for name, says in (
        ("other.pt", r"other.pt is not a TAPIR checkpoint \('torch_pips_mixer.linear.weight'\)"),
        ("absent.pt", "there is no TAPIR checkpoint .*one of bootstapir, causal_bootstapir, rand"),
    ):
        with pytest.raises(PretrackError, match=says):
            load_model(tmp_path / name)
    download = r"hf download google/tapnet bootstapir_checkpoint_v2.pt.*Apache-2.0: commercial use"
    with pytest.raises(PretrackError, match=download):
        load_model("bootstapir")
    with pytest.raises(SettingsError, match="are of the causal kind, and mode is offline: change"):
        check_settings(TapirSettings, {"tracker": "tapir", "weights": "causal_bootstapir"}, "test")


@pytest.mark.slow
def test_a_checkpoint_tells_which_network_it_is_of(tmp_path: Path) -> None:
    """The first TAPIR has no smaller map and no extra convolutions."""
    torch.save(golden_weights("tapir"), tmp_path / "tapir.pt")
    model = load_model(tmp_path / "tapir.pt", mode="causal")
    assert model.pyramid_levels == 0
    assert model.causal


def test_the_fingerprint_has_what_decides_tracks_and_the_digest_of_the_weights(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    settings = TapirSettings(tracker="tapir", weights=str(path), memory_gb=1.0, device="cpu")
    assert settings.of_content() == {
        "tracker": "tapir",
        "version": 1,
        "weights": hashlib.sha256(b"weights").hexdigest(),
        "mode": "offline",
        "precision": "fast",
        "iterations": 4,
        "side": 256,
        "temperature": 20.0,
        "grid": 16,
        "anchors": [0, 16, 32],
    }
