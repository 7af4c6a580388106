"""Label-free check of a backbone on held-out clips: are tracked points found again by their features?

    python -m trainer.matching OUT --before demo/run --after demo/run

OUT is a build; a run's folder stands for its first weights before, and its last ones after. Both backbones see the same frames and
points. In every clip the points that are visible in the anchor frame and in a later one are looked for:

- `pck`: among the later frame's patches, whose centre lies nearest? The part of *moving* points (more than 0.1 of the image from
  where they were) for which the most similar patch's centre is less than 0.1 of the image away. Standing still earns nothing.
- `auc`: the mean over all points of 1 - min(distance / 0.5, 1), for that same most similar patch.
- `track`: among all points in the later frame, is the most similar one the same point, or one less than a patch away from it?
- `rank`: the effective rank of patch features, exp(entropy of the covariance's eigenvalues): near 1, the features have collapsed.

Each figure but the last is a mean over clips. Differences come with a 95 % interval from a paired bootstrap over clips. The
tracks are a tracker's, not truth: a gain here says that features follow the tracker's points, and wants an independent check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from manifests.settings import check_settings
from manifests.snapshot import open_snapshot
from shards.errors import PretrackError, SettingsError
from trainer.backbone import Backbone, make_backbone, normalised_images
from trainer.config import DataSettings, TrackSettings
from trainer.data import ClipDataset, Sample, counted
from trainer.export import exported_weights, read_description
from trainer.sampling import sample_points

METRICS = {"pck": "moving points found (PCK@0.1)", "auc": "matching AUC", "track": "tracks told apart"}
MOVING = NEAR = 0.1
FARTHEST = 0.5
RESAMPLES = 10_000
FEW = 20


@dataclass(frozen=True)
class ClipScores:
    """One clip's figures; NaN where the clip has no point to count."""

    key: str
    pck: float
    auc: float
    track: float


@dataclass(frozen=True)
class Difference:
    """A figure before and after, as means over the clips that have it, and the 95 % interval of their difference.

    The interval is None for fewer than two clips. `verdict` says in words what follows.
    """

    before: float
    after: float
    clips: int
    interval: tuple[float, float] | None
    verdict: Literal["better", "worse", "not distinguishable from 0", "too few clips to tell"]


@dataclass(frozen=True)
class Comparison:
    """Two backbones on the same clips and points."""

    snapshot: str
    split: str
    clips: tuple[str, ...]
    metrics: dict[str, Difference]
    rank: tuple[float, float]
    standing_still: float
    """PCK@0.1 of all points, not only moving ones, for an answer that never moves: how easy these clips are."""

    def __str__(self) -> str:
        lines = [f"{len(self.clips)} clips of split '{self.split}', snapshot {self.snapshot}: the same points, before and after"]
        for name, title in METRICS.items():
            d = self.metrics[name]
            change = "" if d.interval is None else f"  {d.after - d.before:+.4f} [{d.interval[0]:+.4f}, {d.interval[1]:+.4f}]"
            what = f"the difference is {d.verdict}" if d.verdict.startswith("not") else d.verdict
            lines.append(f"  {title:<30} {d.before:.4f} → {d.after:.4f}{change}  {what} ({d.clips} clips)")
        lines.append(f"  {'effective rank of features':<30} {self.rank[0]:.1f} → {self.rank[1]:.1f}")
        lines.append(f"  for comparison: an answer that never moves is within 0.1 for {self.standing_still:.2f} of all points")
        lines.append("  Intervals are 95 %, from resampling clips; the points are the tracker's, not ground truth.")
        if len(self.clips) < FEW:
            lines.append(f"  {len(self.clips)} clips are few: such intervals are too narrow, and clips of one video are alike.")
        return "\n".join(lines)


@dataclass(frozen=True)
class Subject:
    """A backbone to be checked, how its pixels are normalised, and the size it was trained at."""

    backbone: Backbone
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_subject(weights: str, backbone: str | None, last: bool) -> Subject:
    """A backbone from exported weights, from a run's folder (its last or first export), or by name from any weights.

    Raises SettingsError if there is nothing such, or if the weights do not say whose they are and `backbone` does not either.
    """
    path = Path(weights)
    if path.is_dir():
        exports = exported_weights(path)
        if not exports:
            raise SettingsError(f"{path} holds no exported weights: it should be the 'run.out' of a training run")
        path = exports[-1 if last else 0]
    elif weights not in ("random", "hub") and not path.is_file():
        raise SettingsError(f"there is no run and no weight file {weights}")
    if backbone is None:
        if weights in ("random", "hub"):
            raise SettingsError(f"weights '{weights}' need a backbone's name: add --backbone")
        d = read_description(path)
        made = make_backbone(d["timm_id"], str(path), d["options"]).eval()
        return Subject(made, d["img_size"], tuple(d["mean"]), tuple(d["std"]))
    torch.manual_seed(0)
    default = {name: field.default for name, field in DataSettings.model_fields.items()}
    made = make_backbone(backbone, weights if weights in ("random", "hub") else str(path)).eval()
    return Subject(made, default["size"], default["mean"], default["std"])


def compare(
    dataset: ClipDataset, before: Subject, after: Subject, tracks: TrackSettings, clips: int = 32, device: str = "cpu"
) -> Comparison:
    """Checks two backbones on up to `clips` clips of a dataset, taken evenly from its list. The same call, the same result."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int))
    samples = [dataset[0, int(i)] for i in indices]
    scores, ranks = [], []
    for subject in (before, after):
        subject.backbone.to(device)
        mapped = [_features(sample, subject, device) for sample in samples]
        scores.append([score_clip(sample, features, tracks) for sample, features in zip(samples, mapped, strict=True)])
        ranks.append(effective_rank(torch.cat([features[0].flatten(0, 1) for features in mapped])))
    still = [_standing_still(sample, tracks) for sample in samples]
    return Comparison(
        snapshot=", ".join(snapshot.name for snapshot in dataset.snapshots),
        split=dataset.settings.split,
        clips=tuple(sample["key"] for sample in samples),
        metrics={name: difference(*([getattr(score, name) for score in half] for half in scores)) for name in METRICS},
        rank=(ranks[0], ranks[1]),
        standing_still=float(np.nanmean(still)) if not np.isnan(still).all() else float("nan"),
    )


@torch.no_grad()
def _features(sample: Sample, subject: Subject, device: str) -> Tensor:
    """Unit patch features of a clip's frames: [T, h, w, D]."""
    images = normalised_images(sample["frames"].to(device), subject.mean, subject.std)
    return normalize(subject.backbone(images).float(), dim=-1).cpu()


def score_clip(sample: Sample, features: Tensor, tracks: TrackSettings) -> ClipScores:
    """The figures of one clip, over all its later frames, from its unit patch features [T, h, w, D]."""
    size, (rows, columns) = sample["frames"].shape[-1], features.shape[1:3]
    centres = torch.stack(
        torch.meshgrid((torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows, indexing="xy"), dim=-1
    ).flatten(0, 1)  # (x, y) of every patch, row by row, in parts of the image
    visible = counted(sample, tracks)
    found, moving, close = [], [], []
    for frame in range(1, len(features)):
        both = visible[0] & visible[frame]
        starts, goals = sample["positions"][0, both], sample["positions"][frame, both]
        queries = normalize(sample_points(features[:1], starts[None], size, False)[0], dim=-1)
        places = (goals + 0.5) / size
        best = (queries @ features[frame].flatten(0, 1).T).argmax(dim=1) if len(places) else torch.zeros(0, dtype=torch.long)
        found.append((centres[best] - places).norm(dim=-1))
        moving.append((goals - starts).norm(dim=-1) / size > MOVING)

        candidates = normalize(sample_points(features[frame : frame + 1], goals[None], size, False)[0], dim=-1)
        chosen = (queries @ candidates.T).argmax(dim=1) if len(places) else best
        off = (places[chosen] - places).abs() * torch.tensor([columns, rows])
        close.append((off.norm(dim=-1) < 1).float())
    distances, moved = torch.cat(found), torch.cat(moving)
    return ClipScores(
        key=sample["key"],
        pck=(distances[moved] < NEAR).float().mean().item(),
        auc=(1 - (distances / FARTHEST).clamp(max=1)).mean().item(),
        track=torch.cat(close).mean().item(),
    )


def _standing_still(sample: Sample, tracks: TrackSettings) -> float:
    """The part of a clip's points, in later frames, that are less than 0.1 of the image from where they started."""
    visible, positions = counted(sample, tracks), sample["positions"]
    both = visible[:1] & visible[1:]
    off = (positions[1:] - positions[:1]).norm(dim=-1) / sample["frames"].shape[-1]
    return float((off[both] < NEAR).float().mean())


def difference(before: Sequence[float] | NDArray[np.float64], after: Sequence[float] | NDArray[np.float64]) -> Difference:
    """Compares two lists of per-clip figures: 95 % percentile bootstrap over clips, paired, with a fixed seed."""
    pairs = np.array([before, after], dtype=np.float64).T
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if not len(pairs):
        return Difference(float("nan"), float("nan"), 0, None, "too few clips to tell")
    low, high = pairs.mean(axis=0)
    if len(pairs) < 2:
        return Difference(low, high, len(pairs), None, "too few clips to tell")
    gains: NDArray[np.float64] = pairs[:, 1] - pairs[:, 0]
    chosen = np.random.default_rng(0).integers(len(gains), size=(RESAMPLES, len(gains)))
    first, last = (float(v) for v in np.percentile(gains[chosen].mean(axis=1), [2.5, 97.5]))
    verdict: Any = "better" if first > 0 else "worse" if last < 0 else "not distinguishable from 0"
    return Difference(float(low), float(high), len(pairs), (first, last), verdict)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli, 2007): [rows, D] → 1..D."""
    values = torch.linalg.eigvalsh(features.double().T.cov()).clamp_min(0)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 after printing in one sentence what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.matching", description="Label-free check of two backbones on held-out clips."
    )
    parser.add_argument("out", help="output folder of a build, or its URL")
    parser.add_argument(
        "--before", required=True, help="a run's folder, exported weights, or with --backbone a file, 'hub' or 'random'"
    )
    parser.add_argument("--after", required=True, help="the same")
    parser.add_argument("--backbone", help="backbone of weights that have no description beside them")
    parser.add_argument("--snapshot", help="which snapshot (default: the current one)")
    parser.add_argument("--split", default="eval")
    parser.add_argument("--clips", type=int, default=32, help="at most this many clips")
    parser.add_argument("--frames", type=int, default=4, help="frames a clip")
    parser.add_argument("--step", type=int, default=10, help="stored frames between two of them")
    parser.add_argument("--size", type=int, help="side of the square shown to both, in pixels (default: what AFTER was trained at)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    a = parser.parse_args(arguments)
    still = {"anchor": "first", "direction": "forward", "crop": "squash", "flip": 0.0}
    shown = {"out": [a.out], "snapshot": a.snapshot, "split": a.split, "frames": a.frames, "step": a.step}
    try:
        if a.clips < 1:
            raise SettingsError("'--clips' should be at least 1")
        if a.device.startswith("cuda") and not torch.cuda.is_available():
            raise SettingsError("'--device cuda' was asked for, and torch sees no CUDA device here")
        before, after = load_subject(a.before, a.backbone, last=False), load_subject(a.after, a.backbone, last=True)
        settings = check_settings(DataSettings, shown | still | {"size": a.size or after.size}, "options")
        dataset = ClipDataset([open_snapshot(a.out, a.snapshot)], settings, seed=0)
        for subject in (before, after):
            subject.backbone.grid(settings.size)
        comparison = compare(dataset, before, after, TrackSettings(), a.clips, a.device)
    except PretrackError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(_plain(asdict(comparison)), indent=1) if a.json else comparison)
    return 0


def _plain(value: Any) -> Any:
    """The same with null for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value


if __name__ == "__main__":
    sys.exit(main())
