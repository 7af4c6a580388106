"""Clips of a snapshot as training samples, in an order that follows from (snapshot, seed, epoch) alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from math import exp, log, sqrt
from typing import Any, TypedDict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import Snapshot, open_snapshot
from shards import jpeg
from shards.codec import decode_tracks
from shards.errors import PretrackError, ShardError
from shards.files import Location
from shards.geometry import View, inside
from shards.reader import read_members
from trainer.config import DataSettings, TrackSettings

logger = logging.getLogger(__name__)

Item = tuple[int, int]
"""(epoch, index of the clip): what a sample is made from."""


class Sample(TypedDict):
    """A training sample, or with one more axis B in front (and a list of keys) a batch of them.

    frames:     uint8   [T, 3, S, S]  RGB; frame 0 is the anchor
    positions:  float32 [T, N, 2]     (x, y) in pixels of these frames, pixel centres at integers
    visibility: float32 [T, N]        probability of being visible, 0..1
    confidence: float32 [T, N]        probability that the position is right, 0..1
    inside:     bool    [T, N]        whether the position lies in the frame
    """

    frames: torch.Tensor
    positions: torch.Tensor
    visibility: torch.Tensor
    confidence: torch.Tensor
    inside: torch.Tensor
    key: str


def open_snapshots(settings: DataSettings, names: Sequence[str] | None = None) -> list[Snapshot]:
    """The snapshots to train on: those named (one a folder, as a resumed run needs), else the settings', else the current ones.

    Raises PretrackError if one is not there, or if there are not as many names as folders.
    """
    wanted = names if names is not None else [settings.snapshot] * len(settings.out)
    if len(wanted) != len(settings.out):
        raise PretrackError(f"this run was begun with {len(wanted)} folders in 'data.out', and now there are {len(settings.out)}")
    return [open_snapshot(out, name) for out, name in zip(settings.out, wanted, strict=True)]


class ClipDataset(Dataset[Sample]):
    """The clips of one or more snapshots that fit the settings. Indexed by (epoch, index); the same item is always the same sample.

    Raises PretrackError if nothing fits, or if clips differ in their number of points. A clip that cannot be read raises ShardError
    with its key when it is asked for.
    """

    def __init__(self, snapshots: Sequence[Snapshot], settings: DataSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        tables = [s.clips.append_column("folder", _constant(i, s.clips.num_rows)) for i, s in enumerate(snapshots)]
        self._clips = _fitting(pa.concat_tables(tables), settings).combine_chunks()
        self.snapshots = list(snapshots)
        folders = ", ".join(str(snapshot.out) for snapshot in snapshots)
        if not len(self):
            raise PretrackError(
                f"no clip in {folders} fits: split '{settings.split}', {settings.frames} frames or more from an anchor"
            )
        points = self._clips["points"].unique().to_pylist()
        if len(points) > 1:
            raise PretrackError(
                f"the clips in {folders} differ in their points ({sorted(points)}): choose some with 'data.datasets'"
            )

    @property
    def identity(self) -> str:
        """A digest of which clips these are, and in what order."""
        return fingerprint_lines(self._clips["checksum"].to_pylist())

    def __len__(self) -> int:
        return int(self._clips.num_rows)

    def __getitem__(self, item: Item) -> Sample:
        epoch, index = item
        row: dict[str, Any] = self._clips.slice(index, 1).to_pylist()[0]
        random = np.random.default_rng([self.seed, epoch, index])
        path = self.snapshots[row["folder"]].shard_path(row["shard"])
        try:
            return self._read(row, path, random)
        except ShardError as error:
            raise ShardError(f"clip {row['key']} in {path}: {error}") from error

    def _read(self, row: dict[str, Any], path: Location, random: np.random.Generator) -> Sample:
        s = self.settings
        anchor, numbers = choose_frames(row["frames"], row["anchors"], s, random)
        view = choose_view(row["width"], row["height"], s, random)
        offsets, sizes = row["frame_offsets"], row["frame_sizes"]
        packed, *images = read_members(
            path, [row["tracks_offset"], *(offsets[i] for i in numbers)], [row["tracks_size"], *(sizes[i] for i in numbers)]
        )
        tracks = decode_tracks(packed)
        positions = view.points(tracks.positions[anchor, numbers])
        frames = np.stack([view.frame(jpeg.decode(image)) for image in images])
        return Sample(
            frames=torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()),
            positions=torch.from_numpy(positions),
            visibility=torch.from_numpy(tracks.visibility[anchor, numbers].astype(np.float32) / 255),
            confidence=torch.from_numpy(tracks.confidence[anchor, numbers].astype(np.float32) / 255),
            inside=torch.from_numpy(inside(positions, s.size, s.size)),
            key=str(row["key"]),
        )


def choose_frames(
    frames: int, anchors: Sequence[int], settings: DataSettings, random: np.random.Generator
) -> tuple[int, list[int]]:
    """Picks an anchor and frames stepping away from it: its place in `anchors`, and T frame numbers, the anchor's own first.

    The step is the settings' where the clip has T * step frames, else frames // T, at least 1 (3DPoV's rule). Among the anchors and
    directions that have room for it one is drawn; where none has, the one with most room is taken, with the largest step fitting.
    """
    count = settings.frames - 1
    step = settings.step if frames >= settings.frames * settings.step else max(1, frames // settings.frames)
    room = [(frames - 1 - a, i, 1) for i, a in enumerate(anchors)]
    if settings.direction == "both":
        room += [(a, i, -1) for i, a in enumerate(anchors)]
    if settings.anchor == "first":
        room = [option for option in room if option[1] == 0] or room
    fitting = [option for option in room if option[0] >= count * step]
    if fitting:
        _, anchor, sign = fitting[int(random.integers(len(fitting)))]
    else:
        most, anchor, sign = max(room)
        step = most // count
    return anchor, [anchors[anchor] + sign * step * k for k in range(settings.frames)]


def counted(sample: Sample, settings: TrackSettings) -> torch.Tensor:
    """Which points count: [..., T, N] bool. In the anchor frame, frame 0, a point is visible by definition: it was put there."""
    visible = (sample["visibility"] > settings.visibility) & (sample["confidence"] >= settings.confidence)
    visible[..., 0, :] = True
    return visible & sample["inside"] if settings.mask_outside else visible


def choose_view(width: int, height: int, settings: DataSettings, random: np.random.Generator) -> View:
    """The part of the frames that is shown: all of it, or a random box; and perhaps mirrored."""
    view = View.whole(width, height, settings.size, settings.size)
    if settings.crop == "random":
        area = width * height * random.uniform(settings.crop_scale, 1)
        shape = sqrt(exp(random.uniform(log(3 / 4), log(4 / 3))))
        box_width = min(width, max(1, round(sqrt(area) * shape)))
        box_height = min(height, max(1, round(sqrt(area) / shape)))
        left = int(random.integers(width - box_width + 1))
        top = int(random.integers(height - box_height + 1))
        view = View(left, top, box_width, box_height, settings.size, settings.size)
    return view.flipped() if random.random() < settings.flip else view


def _constant(value: int, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int32()), rows)


def _fitting(clips: pa.Table, settings: DataSettings) -> pa.Table:
    """The clips that the settings ask for and that are long enough; logs how many each rule leaves out."""
    rules = {f"split other than '{settings.split}'": pc.equal(clips["split"], settings.split)}
    if settings.datasets:
        rules["other datasets"] = pc.is_in(clips["dataset"], pa.array(settings.datasets))
    rules["too few visible points"] = pc.greater_equal(clips["visible_fraction"], settings.min_visible)
    rules[f"too short for {settings.frames} frames from an anchor"] = pa.array(_room(clips, settings) >= settings.frames - 1)
    kept = pa.chunked_array([pa.array(np.ones(clips.num_rows, bool))])
    for reason, rule in rules.items():
        after = pc.and_(kept, rule)
        if lost := pc.sum(kept, min_count=0).as_py() - pc.sum(after, min_count=0).as_py():
            logger.info("%d clips left out: %s", lost, reason)
        kept = after
    return clips.filter(kept)


def _room(clips: pa.Table, settings: DataSettings) -> NDArray[np.int64]:
    """The most frames that lie on one side of a usable anchor: [clips]."""
    lengths = pc.list_value_length(clips["anchors"]).to_numpy()
    first, last = np.full(len(lengths), -1), np.full(len(lengths), -1)
    anchors, usable = pc.list_flatten(clips["anchors"]).to_numpy(), lengths > 0
    starts = (np.cumsum(lengths) - lengths)[usable]
    if len(anchors):
        first[usable] = anchors[starts] if settings.anchor == "first" else np.minimum.reduceat(anchors, starts)
        last[usable] = anchors[starts] if settings.anchor == "first" else np.maximum.reduceat(anchors, starts)
    forward = np.where(usable, clips["frames"].to_numpy() - 1 - first, -1)
    return np.maximum(forward, last) if settings.direction == "both" else forward


class ClipOrder(Sampler[list[Item]]):
    """Which clips a rank reads, batch by batch and without end, from a step on.

    Each epoch is a permutation drawn from (seed, epoch), cut into global batches of `batch_size`; a rank takes every world-th clip
    of each, beginning at its own number. So all ranks take the same number of steps, whatever their number, and the fewer than
    `batch_size` clips at an epoch's end are dropped (other ones each epoch).
    """

    def __init__(self, clips: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0) -> None:
        if batch_size % world:
            raise PretrackError(f"'run.batch_size: {batch_size}' cannot be shared by {world} ranks: take a multiple of {world}")
        if batch_size > clips:
            raise PretrackError(f"'run.batch_size: {batch_size}' is more than the {clips} clips there are: make it smaller")
        self.clips, self.batch_size, self.seed, self.rank, self.world, self.start = clips, batch_size, seed, rank, world, start

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.clips // self.batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, batch = divmod(self.start, self.steps_per_epoch)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.clips)
            for first in range(batch * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
                yield [(epoch, int(i)) for i in order[first + self.rank : first + self.batch_size : self.world]]
            epoch, batch = epoch + 1, 0


def batches(dataset: ClipDataset, order: ClipOrder, workers: int, pin: bool) -> Iterator[Sample]:
    """Batches in that order, read by `workers` processes (0: by this one). Raises ShardError for a clip that cannot be read."""
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except ShardError as error:  # from a worker it comes wrapped in that worker's traceback, of which the last line is the sentence
        raise ShardError(str(error).strip().splitlines()[-1].removeprefix("shards.errors.ShardError: ")) from error


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
