"""Held-out clips of a build as every model sees them: the same frames and the same points, whatever its patch size."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import Snapshot
from manifests.tables import read_table
from manifests.wording import pluralise as said
from shards.clip import Camera, ClipInfo
from shards.errors import PretrackError
from shards.reader import read_members
from trainer.config import DataSettings, TrackFilterSettings
from trainer.data.augment import choose_frames
from trainer.data.batch import track_mask
from trainer.data.dataset import ClipDataset
from trainer.evaluate.heldout.measures import angle_between

COLUMNS = ["key", "shard", "json_offset", "json_size", "checksum"]


@dataclass(frozen=True, eq=False)
class HeldOutClip:
    """Frames of a clip, the anchor first, and its points.

    numbers: which of the stored frames these are
    images:  uint8 [T, 3, S, S] for each side S that a model wants
    places:  float32 [T, N, 2] (x, y) in parts of the image, 0 and 1 its borders
    track_mask: bool [T, N]: visible, believed and inside
    angles:  float [T], degrees between the anchor's camera and each frame's; NaN where a pose is not known
    """

    info: ClipInfo
    checksum: str
    numbers: tuple[int, ...]
    images: dict[int, Tensor]
    places: Tensor
    track_mask: Tensor
    angles: NDArray[np.float64]

    def points(self, frame: int) -> tuple[Tensor, Tensor]:
        """Where the points that count in the anchor frame and in another one lie: [n, 2] each."""
        both = self.track_mask[0] & self.track_mask[frame]
        return self.places[0, both], self.places[frame, both]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The clips, and where they come from. `trackers` is empty where the snapshot does not say which made the tracks."""

    snapshot: Snapshot
    settings: DataSettings
    tracks: TrackFilterSettings
    clips: tuple[HeldOutClip, ...]
    trackers: tuple[str, ...]

    @property
    def videos(self) -> list[str]:
        """Which footage each clip is from: clips of one `sequence` are alike."""
        return [clip.info.sequence for clip in self.clips]

    @property
    def exact(self) -> bool:
        """Whether the tracks are the truth, and no tracker's opinion."""
        return self.trackers == ("truth",)

    def described(self) -> dict[str, Any]:
        """What a result says of the data, to find it again."""
        shown = self.settings.model_dump(
            mode="json", include={"split", "where", "frames", "step", "anchor", "direction", "crop"}
        )
        return {
            "out": str(self.snapshot.out),
            "snapshot": self.snapshot.name,
            "clips_digest": fingerprint_lines([clip.checksum for clip in self.clips]),
            "trackers": self.trackers,
            "exact_tracks": self.exact,
            **shown,
            "tracks": self.tracks.model_dump(
                mode="json", include={"visibility", "confidence", "mask_outside"}
            ),
        }

    def __str__(self) -> str:
        steps = sorted({clip.numbers[1] - clip.numbers[0] for clip in self.clips})
        apart = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        by = " and ".join(self.trackers)
        how = "they are exact" if self.exact else "not ground truth"
        return (
            f"{said(len(self.clips), 'clip')} of {said(len(set(self.videos)), 'video')} in {self.snapshot.out}, "
            f"snapshot {self.snapshot.name}, split '{self.settings.split}'\n"
            f"{self.settings.frames} frames of each, {apart} stored frames apart. Tracks are "
            + (f"by '{by}': {how}" if by else "by an unknown tracker: not ground truth")
        )


def read_held_out(
    snapshot: Snapshot,
    settings: DataSettings,
    tracks: TrackFilterSettings,
    sides: Sequence[int],
    most: int = 32,
) -> HeldOut:
    """Up to `most` clips of a snapshot that fit the settings, evenly from its list, for images of these sides in pixels.

    Raises PretrackError if nothing fits, and ShardError for a clip that cannot be read.
    """
    datasets = {
        side: ClipDataset([snapshot], settings.model_copy(update={"size": side}), seed=0)
        for side in sorted(set(sides))
    }
    first = next(iter(datasets.values()))
    indices = np.unique(
        np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int)
    ).tolist()
    rows = _rows(snapshot, [first.clips[i].key for i in indices])
    clips = []
    for index, row in zip(indices, rows, strict=True):
        clip = first.clips[index]
        [data] = read_members(
            snapshot.shard_path(row["shard"]), [row["json_offset"]], [row["json_size"]]
        )
        info = ClipInfo.from_json(data)
        _, numbers = choose_frames(
            clip.frames, clip.anchors.tolist(), settings, np.random.default_rng(0)
        )
        samples = {side: dataset[0, index] for side, dataset in datasets.items()}
        sample = samples[next(iter(datasets))]
        clips.append(
            HeldOutClip(
                info=info,
                checksum=row["checksum"],
                numbers=tuple(numbers),
                images={side: sample["frames"] for side, sample in samples.items()},
                places=(sample["positions"] + 0.5) / sample["frames"].shape[-1],
                track_mask=track_mask(sample, tracks),
                angles=_angles(info.cameras, numbers),
            )
        )
    return HeldOut(
        snapshot,
        settings,
        tracks,
        tuple(clips),
        _trackers(snapshot, {row["shard"] for row in rows}),
    )


def still_settings(
    snapshot: Snapshot, split: str, where: str, frames: int, step: int
) -> dict[str, Any]:
    """`DataSettings` that show a clip whole, the same every time: forward from its first anchor."""
    return {
        "out": [str(snapshot.out)],
        "snapshot": snapshot.name,
        "split": split,
        "where": where,
        "frames": frames,
        "step": step,
        "anchor": "first",
        "direction": "forward",
        "crop": "squash",
        "flip": 0.0,
        "reduced_decoding": False,
    }


def relative_rotation(a: Camera, b: Camera) -> float:
    """Degrees between the directions in which two cameras stand."""
    first, second = (np.reshape(camera.world_to_camera, (3, 4))[:, :3] for camera in (a, b))
    return angle_between(first, second)


def _angles(
    cameras: tuple[Camera | None, ...] | None, numbers: Sequence[int]
) -> NDArray[np.float64]:
    seen = [cameras[number] if cameras else None for number in numbers]
    anchor = seen[0]
    return np.array(
        [relative_rotation(anchor, camera) if anchor and camera else math.nan for camera in seen]
    )


def _rows(snapshot: Snapshot, keys: list[str]) -> list[dict[str, Any]]:
    """The clips' rows of the snapshot's table, in the order of `keys`."""
    table = read_table(snapshot.folder / "clips.parquet", COLUMNS)
    chosen = {
        row["key"]: row for row in table.filter(pc.is_in(table["key"], pa.array(keys))).to_pylist()
    }
    return [chosen[key] for key in keys]


def _trackers(snapshot: Snapshot, shards: set[str]) -> tuple[str, ...]:
    """Which trackers made the tracks of some shards, as the snapshot has it."""
    table = read_table(snapshot.folder / "shards.parquet", ["shard", "tracks_settings"])
    used = (
        table.filter(pc.is_in(table["shard"], pa.array(sorted(shards))))
        .column("tracks_settings")
        .unique()
        .to_pylist()
    )
    try:
        return tuple(sorted({str(json.loads(text)["tracker"]) for text in used}))
    except (ValueError, KeyError, TypeError) as error:
        raise PretrackError(
            f"the shards table of snapshot {snapshot.name} in {snapshot.out} is damaged ({error})"
        ) from error
