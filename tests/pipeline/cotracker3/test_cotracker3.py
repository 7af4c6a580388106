"""Compare CoTracker3 with outputs of the published model, and test what `track` refuses.

The outputs were made with random weights that anyone can make again (`golden_weights`).
"""

from __future__ import annotations

import json
import shutil
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.cotracker3 import tracking
from pipeline.cotracker3.encoder import FEATURE_STRIDE
from pipeline.cotracker3.model import (
    CoTracker3,
    TrackEstimates,
    displacement_encoding,
    initial_estimates,
    neighbourhoods,
    sinusoidal_time_embedding,
)
from pipeline.cotracker3.tracking import (
    _grid_queries,
    _in_video_pixels,
    _map_scale,
    _QueryBatch,
    _track_sliding,
    _track_whole,
    _window_starts,
    encode,
    track,
)
from pipeline.cotracker3.weights import WINDOW_FRAMES, load_model
from pipeline.network_trackers.predicted_tracks import PredictedTracks
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.protocol import leave_untracked
from shards.clip import Directions
from shards.errors import PretrackError
from shards.geometry import grid_points
from tests.helpers.clips import make_clip
from tests.helpers.panning import panning_frames

GOLDEN = Path(__file__).parent / "golden"
PIXELS = 2e-3
PROBABILITY = 1e-4
pytestmark = pytest.mark.usefixtures("two_threads")


def golden_weights(kind: str) -> dict[str, Tensor]:
    """Make the weights of the golden outputs: random numbers seeded by each key, and time_emb."""
    shapes: dict[str, list[int]] = json.loads((GOLDEN / f"state_dict_{kind}.json").read_text())
    weights = {}
    for key, shape in shapes.items():
        values = np.random.Generator(
            np.random.Philox(key=zlib.crc32(key.encode()))
        ).standard_normal(shape)
        if key.endswith("weight"):
            values /= np.sqrt(np.prod(shape[1:]))
        elif key.endswith("bias"):
            values *= 0.02
        elif key == "time_emb":
            angles = np.arange(shape[1])[:, None] * 10000.0 ** (-np.arange(555) / 555)
            values = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None]
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> CoTracker3:
    path = tmp_path_factory.mktemp("weights") / "offline.pth"
    torch.save(golden_weights("offline"), path)
    return load_model(path)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> CoTracker3:
    path = tmp_path_factory.mktemp("weights") / "online.pth"
    torch.save({"model": golden_weights("online")}, path)
    return load_model(path)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(values)
        for name, values in np.load(GOLDEN / "cotracker3_offline.npz").items()
    }


@pytest.mark.parametrize("kind", ["offline", "online"])
def test_keys_and_shapes_are_those_of_the_official_checkpoints(kind: str) -> None:
    window = {"offline": 60, "online": 16}[kind]
    ours = {key: list(value.shape) for key, value in CoTracker3(window).state_dict().items()}
    assert ours == json.loads((GOLDEN / f"state_dict_{kind}.json").read_text())


@pytest.mark.slow
def test_network_equals_golden_after_one_and_six_iterations(
    offline: CoTracker3, golden: dict[str, Tensor]
) -> None:
    video = (
        F.interpolate(golden["video"].float(), (384, 512), mode="bilinear", align_corners=True)
        * 2
        / 255
        - 1
    )
    features = offline.fnet(video[:1])[0, :, ::12, ::16]
    torch.testing.assert_close(features, golden["fnet_frame0_8x8"], rtol=0, atol=1e-4)
    maps = offline.encode(video)
    times, positions = (
        golden["raw_queries"][None, :, 0].long(),
        golden["raw_queries"][None, :, 1:] / FEATURE_STRIDE,
    )
    support = offline.support_features(maps, times, positions)
    for iterations in (1, 6):
        state = offline.refine(
            maps,
            torch.arange(10)[None],
            support,
            initial_estimates(positions, 10),
            iterations=iterations,
        )
        for name, ours, tolerance in (
            ("coords", state.positions * FEATURE_STRIDE, PIXELS),
            ("vis", state.visibility.sigmoid(), PROBABILITY),
            ("conf", state.confidence.sigmoid(), PROBABILITY),
        ):
            torch.testing.assert_close(
                ours[0], golden[f"raw_{name}_iter{iterations}"], rtol=0, atol=tolerance
            )


@pytest.fixture
def encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode a video once, however often a test tracks it."""
    monkeypatch.setattr(tracking, "encode", cache(encode))


@pytest.mark.slow
@pytest.mark.usefixtures("encoded_once")
def test_offline_tracks_equal_golden(offline: CoTracker3, golden: dict[str, Tensor]) -> None:
    video = golden["video"][None]
    runs = {
        "grid": track(offline, video, grid=6, anchors=(0,), backward=False),
        "mid_grid": track(offline, video, grid=5, anchors=(4,)),
        "query": track(offline, video, queries=golden["queries"][None]),
    }
    for name, tracked in runs.items():
        positions, visibility = (
            tracked.positions.flatten(0, -4)[0],
            tracked.visibility.flatten(0, -3)[0],
        )
        torch.testing.assert_close(positions, golden[f"{name}_tracks"], rtol=0, atol=PIXELS)
        assert torch.equal(visibility > 0.9, golden[f"{name}_visibility"]), name


@pytest.mark.slow
@pytest.mark.usefixtures("encoded_once")
def test_sliding_tracks_equal_golden(online: CoTracker3) -> None:
    golden = {
        name: torch.from_numpy(values)
        for name, values in np.load(GOLDEN / "cotracker3_online.npz").items()
    }
    video = golden["video"][None]
    grid = torch.cat([torch.zeros(25, 1), torch.from_numpy(grid_points(5, 128, 96))], dim=1)
    for name, queries in (("grid", grid), ("query", golden["queries"])):
        tracked = track(online, video, queries=queries[None], backward=False)
        # In a point's own frame the published model returns a prediction; ours returns the query.
        own = torch.arange(28)[:, None] == queries[None, :, 0]
        torch.testing.assert_close(
            tracked.positions[0][~own], golden[f"{name}_tracks"][~own], rtol=0, atol=PIXELS
        )
        seen = tracked.visibility[0] * tracked.confidence[0] > 0.6
        assert torch.equal(seen[~own], golden[f"{name}_visibility"][~own])
        assert torch.equal(tracked.positions[0].transpose(0, 1)[own.T], queries[:, 1:])


def test_neighbourhoods_equal_grid_sample() -> None:
    level = torch.randn(3, 12, 16, 5, generator=torch.Generator().manual_seed(0))
    frame = torch.tensor([[0, 1, 2, 2, 0]])
    position = torch.tensor([[[3.3, 4.7], [0.0, 11.0], [-2.4, 5.5], [17.2, -3.1], [15.0, 0.25]]])
    got = neighbourhoods(level, frame, position)
    offsets = torch.tensor([[i - 3.0, j - 3.0] for i in range(7) for j in range(7)])
    grid = 2 * (position[0, :, None] + offsets) / torch.tensor([15.0, 11.0]) - 1
    maps = level[frame[0]].permute(0, 3, 1, 2)
    expected = F.grid_sample(maps, grid[:, :, None], padding_mode="border", align_corners=True)[
        ..., 0
    ].transpose(1, 2)
    torch.testing.assert_close(got[0], expected)


def test_displacements_are_relative_to_the_map_and_encoded_component_by_component() -> None:
    """A point moves by (64, 24) of 128 x 96 map pixels: 1/2 of the width and 1/4 of the height."""
    positions = torch.tensor([[0.0, 0.0], [64.0, 24.0]]).view(1, 2, 1, 2)
    first, second = displacement_encoding(positions)[0, :, 0]
    assert first[:4].tolist() == [-0.5, -0.25, 0, 0]
    assert second[:4].tolist() == [0, 0, 0.5, 0.25]
    # Scale 2^1 comes after the four components at 2^0; cosines come after all sines.
    sines, cosines = second[4:44], second[44:]
    assert sines[[2, 3, 6, 7]].tolist() == pytest.approx(np.sin([0.5, 0.25, 1.0, 0.5]).tolist())
    assert cosines[[0, 2, 6]].tolist() == pytest.approx(np.cos([0.0, 0.5, 1.0]).tolist())
    assert sines[39].item() == pytest.approx(np.sin(0.25 * 2**9), abs=1e-4)


def test_the_time_embedding_has_sines_then_cosines() -> None:
    table = sinusoidal_time_embedding(3)[0]
    assert table.shape == (3, 1110)
    assert table[0].tolist() == [0.0] * 555 + [1.0] * 555
    last = 2 * 10000 ** (-554 / 555)
    assert table[2, [0, 554]].tolist() == pytest.approx([np.sin(2), np.sin(last)], rel=1e-4)
    assert table[2, [555, 1109]].tolist() == pytest.approx([np.cos(2), np.cos(last)], rel=1e-4)


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(2, [0]), (16, [0]), (17, [0, 8]), (24, [0, 8]), (25, [0, 8, 16]), (28, [0, 8, 16])],
)
def test_windows_overlap_by_half_until_the_last_frame_is_seen(
    frames: int, starts: list[int]
) -> None:
    assert list(_window_starts(frames, 16)) == starts


def make_video(clips: int = 2, frames: int = 6) -> Tensor:
    made = [np.stack(panning_frames(seed, frames, 64, 48)) for seed in range(clips)]
    return torch.from_numpy(np.stack(made)).permute(0, 1, 4, 2, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
def test_clips_anchors_and_memory_do_not_change_tracks(offline: CoTracker3) -> None:
    video = make_video(2, 3)
    together = track(offline, video, grid=3, anchors=(0, 2), iterations=2)
    alone = [
        track(offline, video[b : b + 1], grid=3, anchors=(a,), iterations=2, memory=1)
        for b in range(2)
        for a in (0, 2)
    ]
    for name in ("positions", "visibility", "confidence"):
        expected = torch.cat([getattr(one, name) for one in alone]).unflatten(0, (2, 2)).squeeze(2)
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-3)


def count_runs(model: CoTracker3, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each refinement of a window appends its number of query sets."""
    runs: list[int] = []
    refine = model.refine

    def counted(maps: Any, frames: Tensor, *arguments: Any, **options: Any) -> Any:
        runs.append(len(frames))
        return refine(maps, frames, *arguments, **options)

    monkeypatch.setattr(model, "refine", counted)
    return runs


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(
    ("anchors", "options", "runs"),
    [
        ((0, 1, 2), {}, 5),  # nothing lies before frame 0
        ((0, 2, 3), {}, 4),  # and nothing after frame 3, the last
        ((0, 1, 2), {"forward": False}, 2),
    ],
)
def test_a_direction_without_frames_is_not_run(
    offline: CoTracker3,
    monkeypatch: pytest.MonkeyPatch,
    anchors: tuple[int, ...],
    options: dict[str, Any],
    runs: int,
) -> None:
    counted = count_runs(offline, monkeypatch)
    track(offline, make_video(1, 4), grid=2, anchors=anchors, iterations=1, **options)
    assert sum(counted) == runs


def track_everywhere(
    model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...]
) -> PredictedTracks:
    """Track each anchor of one clip alone, in both directions even where one has no frames."""
    maps, scale, frames = encode(model, video), _map_scale(video), video.shape[1]
    queries, order = _grid_queries(video, grid, anchors), torch.arange(frames)[None]
    run = _track_whole if model.window == WINDOW_FRAMES["offline"] else _track_sliding
    parts = []
    for points in queries.points.split(1):
        times, positions = points[..., 0].long(), points[..., 1:] * scale
        after = run(model, maps, _QueryBatch(order, times, positions), 1)
        before = run(model, maps, _QueryBatch(order.flip(1), frames - 1 - times, positions), 1)
        earlier = torch.arange(frames)[None, :, None] < times[:, None]
        parts.append(
            TrackEstimates(
                torch.where(earlier[..., None], before.positions.flip(1), after.positions),
                torch.where(earlier, before.visibility.flip(1), after.visibility),
                torch.where(earlier, before.confidence.flip(1), after.confidence),
            )
        )
    # Together, because the last bit of a sigmoid depends on where in memory its number lies.
    estimates = TrackEstimates(
        torch.cat([part.positions for part in parts]),
        torch.cat([part.visibility for part in parts]),
        torch.cat([part.confidence for part in parts]),
    )
    return _in_video_pixels(estimates, queries, scale)


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(
    ("weights", "frames", "anchors"),
    [("random_offline", 3, (0, 1, 2)), ("random_online", 17, (0, 8))],
)
@torch.no_grad()
def test_tracks_equal_bit_for_bit_those_of_all_anchors_in_all_directions(
    weights: str, frames: int, anchors: tuple[int, ...]
) -> None:
    model, video = load_model(weights), make_video(1, frames)
    tracked = track(model, video, grid=2, anchors=anchors, iterations=1)
    expected = track_everywhere(model, video, 2, anchors)
    for name in ("positions", "visibility", "confidence"):
        assert torch.equal(getattr(tracked, name)[0], getattr(expected, name)), name


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("directions", ["forward", "backward"])
def test_a_build_in_one_direction_stores_that_direction_of_both(directions: Directions) -> None:
    frames = np.stack(panning_frames(0, 4, 64, 48))
    queries = grid_points(2, 64, 48)
    both, one = (
        CoTracker3Settings(
            tracker="cotracker3",
            weights="random_offline",
            precision="exact",
            iterations=1,
            device="cpu",
            directions=chosen,
        )
        .load()
        .track([frames], [make_clip().info], (0, 1, 3), queries)[0]
        for chosen in ("both", directions)
    )
    expected = leave_untracked(both, directions)
    for name in ("positions", "visibility", "confidence"):
        np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
def test_points_before_their_anchor_are_tracked_backward(offline: CoTracker3) -> None:
    """Tracking backward equals tracking forward through the reversed video."""
    video = make_video(1, 4)
    forward = track(offline, video.flip(1), grid=3, anchors=(1,), iterations=2)
    backward = track(offline, video, grid=3, anchors=(2,), iterations=2)
    torch.testing.assert_close(
        backward.positions[0, 0, :2], forward.positions[0, 0].flip(0)[:2], rtol=0, atol=1e-3
    )


@pytest.mark.slow
def test_fast_stays_near_exact(offline: CoTracker3) -> None:
    """With one iteration: with random weights, unlike trained ones, each one magnifies rounding."""
    video = make_video(1)
    exact, fast = (
        track(offline, video, grid=4, anchors=(2,), iterations=1, fast=fast)
        for fast in (False, True)
    )
    assert (exact.positions - fast.positions).norm(dim=-1).median() < 0.05
    assert fast.positions.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
@pytest.mark.parametrize("fast", [False, True])
def test_compiled_equals_uncompiled(fast: bool) -> None:
    """In bfloat16 up to rounding: fused kernels skip some, and random weights magnify it."""
    plain, compiled = (
        load_model("random_offline", compiled=compiled) for compiled in (False, True)
    )
    for frames in (3,) if fast else (3, 4):  # the second size is compiled again
        video = make_video(1, frames)
        expected, got = (
            track(model, video, grid=3, anchors=(1,), iterations=1, fast=fast)
            for model in (plain, compiled)
        )
        tolerance = 0.05 if fast else 1e-4
        torch.testing.assert_close(got.positions, expected.positions, rtol=0, atol=tolerance)
        torch.testing.assert_close(got.visibility, expected.visibility, rtol=0, atol=tolerance)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


VIDEO = torch.zeros(1, 4, 3, 48, 64, dtype=torch.uint8)
QUERY = torch.tensor([[[0.0, 5.0, 5.0]]])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"video": VIDEO[0], "grid": 3}, r"has the shape \[B, T, 3, H, W\]"),
        ({"video": VIDEO[:, :1], "grid": 3}, "at least 2 frames"),
        ({"video": VIDEO.float() * float("nan"), "grid": 3}, "not finite"),
        ({"video": VIDEO, "grid": 3, "anchors": (0, 4)}, "not all frames of a video of 4"),
        ({"video": VIDEO, "grid": 3, "anchors": (0, 1, 2, 3, 4)}, "not all frames of a video of 4"),
        ({"video": VIDEO, "grid": 3, "anchors": (-1,)}, "not all frames of a video of 4"),
        ({"video": VIDEO, "grid": 3, "anchors": ()}, "not all frames"),
        ({"video": VIDEO, "grid": 3, "forward": False, "backward": False}, "forward, backward, or"),
        ({"video": VIDEO}, "either queries or a grid"),
        ({"video": VIDEO, "queries": QUERY, "grid": 3}, "either queries or a grid"),
        (
            {"video": VIDEO, "queries": QUERY + torch.tensor([4.0, 0, 0])},
            "frames that a video of 4 does not have",
        ),
        ({"video": VIDEO, "queries": QUERY + torch.tensor([0.5, 0, 0])}, "whole numbers"),
        (
            {"video": VIDEO, "queries": QUERY + torch.tensor([0, 60.0, 0])},
            "outside their frame of 64x48",
        ),
        ({"video": VIDEO, "queries": QUERY * float("nan")}, "not finite"),
        ({"video": VIDEO, "queries": QUERY[0]}, "queries have the shape"),
        (
            {"video": VIDEO, "queries": QUERY - torch.tensor([1.0, 0, 0])},
            "frames that a video of 4 does not have",
        ),
        (
            {"video": VIDEO, "queries": QUERY - torch.tensor([0, 0, 6.0])},
            "outside their frame of 64x48",
        ),
        ({"video": VIDEO, "grid": 0}, "a grid has at least 1 point per side"),
        ({"video": VIDEO, "grid": torch.zeros(4, 3)}, r"points of a grid have the shape \[N, 2\]"),
        (
            {"video": VIDEO, "grid": torch.full((4, 2), float("nan"))},
            "points of a grid .* not finite",
        ),
        (
            {"video": VIDEO, "grid": torch.full((4, 2), 64.0)},
            "points of a grid lie outside their frame of 64x48",
        ),
        ({"video": VIDEO, "grid": 3, "iterations": 0}, "at least 1 iteration"),
        ({"video": VIDEO[..., :0], "grid": 3}, "frames of at least 1x1 pixels"),
        ({"video": VIDEO[:0], "grid": 3}, "at least one clip"),
    ],
)
def test_bad_input_is_named(offline: CoTracker3, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(PretrackError, match=says):
        track(offline, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_odd_sizes_are_tracked(offline: CoTracker3) -> None:
    tracked = track(offline, torch.full((1, 2, 3, 33, 71), 99, dtype=torch.uint8), grid=2)
    assert isinstance(tracked, PredictedTracks)
    assert tracked.positions.shape == (1, 1, 2, 4, 2)
    assert len(encode(offline, VIDEO)) == 4
