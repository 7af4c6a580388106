"""Held-out clips of a build: the same frames and points for models of every patch size."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import Snapshot
from manifests.tables import read_table
from manifests.wording import pluralise
from shards.clip import Camera, ClipInfo
from shards.codec import decode_frames
from shards.errors import PretrackError
from shards.files import Location
from shards.reader import read_members
from trainer.data.augment import choose_frames
from trainer.data.batch import track_mask
from trainer.data.clip_reader import named_clip
from trainer.data.dataset import ClipDataset
from trainer.data.footage import FOOTAGE_COLUMNS, Footage, footage_of
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.geometry import angle_between
from trainer.evaluate.heldout.point_labels import PointLabels, label_points

COLUMNS = ["key", "shard", "json_offset", "json_size", "checksum", *FOOTAGE_COLUMNS]
COLUMNS += ["tracks_offset", "anchors", "anchor_sizes", "mask_offsets", "mask_sizes"]


@dataclass(frozen=True, eq=False)
class HeldOutClip:
    """T frames of a clip, the anchor first, and its N points.

    frame_numbers: indices of these frames within the stored clip
    images:     side S in pixels → uint8 [T, 3, S, S], for each side that a model needs
    positions:  float32 [T, N, 2] (x, y) as fractions of the image, 0 and 1 its borders
    track_mask: bool [T, N]: visible, confident and inside the image
    angles:     float [T], degrees between the anchor's camera and each frame's; NaN if a pose is
                unknown
    labels:     what cameras and masks tell about the points
    """

    info: ClipInfo
    checksum: str
    frame_numbers: tuple[int, ...]
    images: dict[int, Tensor]
    positions: Tensor
    track_mask: Tensor
    angles: NDArray[np.float64]
    labels: PointLabels

    def valid(self, frame: int) -> NDArray[np.bool_]:
        """Tell which points are valid in the anchor and in `frame`: bool [N]."""
        return (self.track_mask[0] & self.track_mask[frame]).numpy()

    def points(self, frame: int) -> tuple[Tensor, Tensor]:
        """Return positions [n, 2] in the anchor and in `frame` of points that are valid in both."""
        both = torch.from_numpy(self.valid(frame))
        return self.positions[0, both], self.positions[frame, both]


@dataclass(frozen=True, eq=False)
class HeldOutSet:
    """The held-out clips, and where they come from.

    trackers: names of the trackers that made the tracks; empty if the snapshot does not say
    footage:  names of what the clips show
    """

    snapshot: Snapshot
    settings: DataSettings
    tracks: TrackFilterSettings
    clips: tuple[HeldOutClip, ...]
    trackers: tuple[str, ...]
    footage: Footage

    @property
    def videos(self) -> list[str]:
        """The footage of each clip: clips of one `sequence` are not independent."""
        return [clip.info.sequence for clip in self.clips]

    @property
    def exact(self) -> bool:
        """Whether the tracks are ground truth and not a tracker's estimate."""
        return self.trackers == ("truth",)

    def to_json(self) -> dict[str, Any]:
        """Describe the data for results, so that it can be found again."""
        chosen = {"split", "where", "frames", "step", "anchor", "direction", "crop"}
        return {
            "out": str(self.snapshot.out),
            "snapshot": self.snapshot.name,
            "clips_digest": fingerprint_lines([clip.checksum for clip in self.clips]),
            "trackers": self.trackers,
            "exact_tracks": self.exact,
            **self.settings.model_dump(mode="json", include=chosen),
            "tracks": self.tracks.model_dump(
                mode="json", include={"visibility", "confidence", "mask_outside"}
            ),
        }

    def __str__(self) -> str:
        steps = sorted({clip.frame_numbers[1] - clip.frame_numbers[0] for clip in self.clips})
        apart = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        by = f"by '{' and '.join(self.trackers)}'" if self.trackers else "by an unknown tracker"
        quality = "exact" if self.exact else "not ground truth"
        clips, videos = (
            pluralise(len(self.clips), "clip"),
            pluralise(len(set(self.videos)), "video"),
        )
        return (
            f"{clips} of {videos} in {self.snapshot.out}, "
            f"snapshot {self.snapshot.name}, split '{self.settings.split}'\n"
            f"{self.settings.frames} frames of each, {apart} stored frames apart. "
            f"Tracks are {by}: {quality}"
        )


def read_held_out(
    snapshot: Snapshot,
    settings: DataSettings,
    tracks: TrackFilterSettings,
    sides: Sequence[int],
    limit: int = 32,
) -> HeldOutSet:
    """Read up to `limit` clips that fit the settings, evenly spaced in the snapshot's list.

    sides: image sides in pixels that models need

    Raises PretrackError if no clip fits, and ShardError for a clip that cannot be read.
    """
    datasets = {
        side: ClipDataset([snapshot], settings.model_copy(update={"size": side}), seed=0)
        for side in sorted(set(sides))
    }
    # All datasets list the same clips: only the image size differs.
    clips = next(iter(datasets.values())).clips
    count = len(clips)
    indices = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
    table = _clip_rows(snapshot, [clips[i].key for i in indices])
    rows = table.to_pylist()
    held_out = tuple(
        _read_clip(datasets, index, row, tracks) for index, row in zip(indices, rows, strict=True)
    )
    trackers = _trackers(snapshot, {row["shard"] for row in rows})
    return HeldOutSet(snapshot, settings, tracks, held_out, trackers, footage_of(table))


def _read_clip(
    datasets: dict[int, ClipDataset], index: int, row: dict[str, Any], tracks: TrackFilterSettings
) -> HeldOutClip:
    """Read a clip at every size.

    datasets: image side → dataset
    row:      the clip's row of the snapshot's table
    """
    dataset = next(iter(datasets.values()))
    clip, [snapshot] = dataset.clips[index], dataset.snapshots
    # The datasets choose the same frames: the settings leave nothing to chance.
    _, frame_numbers = choose_frames(
        clip.frames,
        clip.anchors.tolist(),
        dataset.settings,
        np.random.default_rng(0),
        tracked=dataset.tracked[clip.folder],
    )
    info, labels = _read_labels(snapshot.shard_path(row["shard"]), row, frame_numbers, clip.frames)
    samples = {side: sized[0, index] for side, sized in datasets.items()}
    sample = next(iter(samples.values()))
    return HeldOutClip(
        info=info,
        checksum=row["checksum"],
        frame_numbers=tuple(frame_numbers),
        images={side: sized["frames"] for side, sized in samples.items()},
        # Pixel centres have integer coordinates, so the border is at -0.5.
        positions=(sample["positions"] + 0.5) / sample["frames"].shape[-1],
        track_mask=track_mask(sample, tracks),
        angles=_camera_angles(info.cameras, frame_numbers),
        labels=labels,
    )


def _read_labels(
    shard: Location, row: dict[str, Any], frame_numbers: Sequence[int], frames: int
) -> tuple[ClipInfo, PointLabels]:
    """Read a clip's description, and what cameras and masks tell about its points.

    Raises ShardError if members cannot be read.
    """
    anchor = frame_numbers[0]
    # The anchors' tracks lie in their member one after the other.
    *before, size = row["anchor_sizes"][: row["anchors"].index(anchor) + 1]
    offsets = [row["json_offset"], row["tracks_offset"] + sum(before)]
    sizes = [row["json_size"], size]
    if row["mask_offsets"]:
        offsets.append(row["mask_offsets"][anchor])
        sizes.append(row["mask_sizes"][anchor])
    with named_clip(row["key"], str(shard)):
        data, tracks, *masks = read_members(shard, offsets, sizes)
        info = ClipInfo.from_json(data)
        positions, visibility, _ = decode_frames(tracks, anchor, range(frames))
        mask = masks[0] if masks else None
        return info, label_points(info, frame_numbers, positions, visibility, mask)


def evaluation_settings(
    snapshot: Snapshot, *, split: str, where: str, frames: int, step: int
) -> dict[str, Any]:
    """Make `DataSettings` without chance: whole frames, squashed, forward from the first anchor."""
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
    """Compute the degrees between the orientations of two cameras."""
    first, second = (np.reshape(camera.world_to_camera, (3, 4))[:, :3] for camera in (a, b))
    return angle_between(first, second)


def _camera_angles(
    cameras: tuple[Camera | None, ...] | None, frame_numbers: Sequence[int]
) -> NDArray[np.float64]:
    """Compute the degrees from the first frame's camera to each frame's; NaN if unknown."""
    chosen = [cameras[number] if cameras else None for number in frame_numbers]
    anchor = chosen[0]
    return np.array(
        [relative_rotation(anchor, camera) if anchor and camera else math.nan for camera in chosen]
    )


def _clip_rows(snapshot: Snapshot, keys: list[str]) -> pa.Table:
    """Read the clips' rows of the snapshot's table, in the order of `keys`."""
    table = read_table(snapshot.folder / "clips.parquet", COLUMNS)
    return table.take(pc.index_in(pa.array(keys), value_set=table["key"].combine_chunks()))


def _trackers(snapshot: Snapshot, shards: set[str]) -> tuple[str, ...]:
    """Name the trackers that made the tracks of some shards, from the snapshot's table.

    Raises PretrackError if the table is damaged.
    """
    table = read_table(snapshot.folder / "shards.parquet", ["shard", "tracks_settings"])
    rows = table.filter(pc.is_in(table["shard"], pa.array(sorted(shards))))
    documents = rows.column("tracks_settings").unique().to_pylist()
    try:
        return tuple(sorted({str(json.loads(text)["tracker"]) for text in documents}))
    except (ValueError, KeyError, TypeError) as error:
        raise PretrackError(
            f"the shards table of snapshot {snapshot.name} in {snapshot.out} is damaged ({error})"
        ) from error
