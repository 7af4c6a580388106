"""Outputs of the published TAPIR code on 12 frames, with random weights that anyone can make again.

`golden/tapir.npz` holds, per case, queries (t, y, x), and tracks and logits after each iteration.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.tapir import tracking
from pipeline.tapir.model import Tapir, TrackEstimates
from pipeline.tapir.sides import level_sides

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One run of the published code.

    name:        its name in the file
    base_side:   the network's own side
    side:        of the frames, in pixels
    weights:     `bootstapir` or `tapir`
    causal:      whether the network sees earlier frames only
    pinned:      whether a query is put into its own frame before the refinement
    temperature: that of the softmax
    """

    name: str
    base_side: int
    side: int
    weights: str = "bootstapir"
    causal: bool = False
    pinned: bool = True
    temperature: float = 20.0


CASES = (
    GoldenCase("odd_grid", 72, 72),
    GoldenCase("square", 128, 128),
    GoldenCase("square_temperature10", 128, 128, temperature=10.0),
    GoldenCase("pyramid_square", 64, 128),
    GoldenCase("upsampled_input", 128, 128),
    GoldenCase("native256", 256, 256),
    GoldenCase("tapir_level0", 128, 128, weights="tapir"),
    GoldenCase("causal_batch", 128, 128, causal=True),
    GoldenCase("causal_online", 128, 128, causal=True, pinned=False),
)


@dataclass(frozen=True)
class Deviation:
    """The largest differences from the published code."""

    pixels: float
    logits: float


def golden_outputs() -> dict[str, np.ndarray]:
    """Read the file."""
    return dict(np.load(GOLDEN / "tapir.npz"))


def golden_weights(kind: str) -> dict[str, Tensor]:
    """Make the weights of the golden outputs: random numbers seeded by each key."""
    shapes: dict[str, list[int]] = json.loads((GOLDEN / f"state_dict_{kind}.json").read_text())
    offset = int(np.load(GOLDEN / "tapir.npz")["key_offset"])
    weights = {}
    for key, shape in shapes.items():
        generator = np.random.Generator(np.random.Philox(key=zlib.crc32(key.encode()) + offset))
        values = generator.standard_normal(shape)
        if key.endswith("bias"):
            values *= 0.02
        elif len(shape) > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values = 1 + 0.1 * values
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


def golden_model(case: GoldenCase, weights: dict[str, Tensor] | None = None) -> Tapir:
    """Make the network of a case."""
    first = case.weights == "tapir"
    with torch.device("meta"):  # weights that are replaced anyway are not drawn
        model = Tapir(
            pyramid_levels=0 if first else 1,
            extra_convs=not first,
            causal=case.causal,
            base_side=case.base_side,
        )
    model.load_state_dict(weights or golden_weights(case.weights), assign=True)
    return model.eval().requires_grad_(False)


def golden_video(case: GoldenCase, golden: dict[str, np.ndarray]) -> Tensor:
    """Return the frames of a case: uint8 [1, T, 3, H, W]."""
    video = golden["video"]
    if case.name == "odd_grid":
        video = video[:, :72, :72]
    elif case.name == "upsampled_input":
        video = video[:, ::2, ::2]
    elif case.name == "native256":
        video = video[:4].repeat(2, axis=1).repeat(2, axis=2)
    return torch.from_numpy(video.copy()).permute(0, 3, 1, 2)[None]


def golden_queries(case: GoldenCase, golden: dict[str, np.ndarray]) -> Tensor:
    """Return the queries of a case: float32 [1, N, 3] (t, x, y), pixel centres at integers."""
    name = case.name if f"{case.name}/queries_tyx" in golden else "square"
    queries = golden[f"{name}/queries_tyx"][None][..., [0, 2, 1]]
    return torch.from_numpy(queries - np.array([0, 0.5, 0.5], np.float32))


@torch.no_grad()
def deviation(
    case: GoldenCase,
    golden: dict[str, np.ndarray],
    model: Tapir,
    *,
    device: str = "cpu",
    fast: bool = False,
) -> Deviation:
    """Track a case, and compare every level's last estimates with the published code's."""
    video = golden_video(case, golden).to(device)
    queries = tracking._queries(model, video, golden_queries(case, golden))
    sides = level_sides(case.base_side, case.side)
    dtype = torch.bfloat16 if fast else torch.float32
    with torch.autocast(video.device.type, torch.bfloat16, enabled=fast):
        levels = [
            tracking._Level(maps, model.query_features(maps, queries.times, queries.positions))
            for maps in tracking.encode(model, video, sides, dtype)
        ]
        initial = tracking.first_estimates(model, levels[0], case.temperature, 0)
        if case.pinned:
            initial = tracking.pinned(initial, queries)
        estimates, positions = [initial], initial.positions
        for level in levels:
            start = TrackEstimates(positions, initial.logits)
            estimates.append(model.refine(level.maps, level.query_features, start))
            positions = estimates[-1].positions
        mean = tracking.refine(model, levels, initial, 4, 0)
    return _largest(case, golden, estimates, mean, video.shape[-1] / case.base_side)


def _largest(
    case: GoldenCase,
    golden: dict[str, np.ndarray],
    estimates: list[TrackEstimates],
    mean: TrackEstimates,
    scale: float,
) -> Deviation:
    """Compare first estimates, those after each level, and their mean over the levels."""
    entries = [4 * level for level in range(len(estimates))]
    expected = [
        np.stack(
            [golden[f"{case.name}/iter_tracks"][entry] for entry in entries]
            + [golden[f"{case.name}/iter_tracks"][entries[1:]].mean(axis=0)]
        ),
        *(
            np.stack([values[entry] for entry in entries] + [values[entries[1:]].mean(axis=0)])
            for values in (
                golden[f"{case.name}/iter_occlusion"],
                golden[f"{case.name}/iter_expected_dist"],
            )
        ),
    ]
    ours = [*estimates, mean]
    positions = np.stack([one.positions[0].cpu().numpy() * scale for one in ours])
    logits = np.stack([one.logits[0].cpu().numpy() for one in ours])
    distances = np.linalg.norm(positions - expected[0], axis=-1)
    return Deviation(
        pixels=float(distances.max()),
        logits=float(np.abs(logits - np.stack(expected[1:], axis=-1)).max()),
    )
