"""Clips from tars that are read from front to back: where parts of files cannot be had, or where there are tars and no tables.

`trainer.data.dataset` is the better way wherever it works. Here every byte of a tar is read, most of them for frames that are not shown;
clips are shuffled by whole tars and within a buffer only; there is no place to go on from; and what only the tables know (`where`,
`weights`, `shuffle_shards`) is not to be had.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import count
from random import Random
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import webdataset
import xxhash
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset
from webdataset.tariterators import group_by_keys
from webdataset.utils import pytorch_worker_info

from manifests.snapshot import open_snapshot
from shards.bucket import Url, download
from shards.clip import ClipInfo, Tracks
from shards.codec import decode_tracks
from shards.errors import PretrackError, SettingsError, ShardError
from shards.files import parse_location, read_file
from shards.geometry import FrameTransform
from shards.reader import ChecksumStream, read_tar
from trainer.config import DataSettings
from trainer.data.augment import choose_frames, choose_transforms
from trainer.data.batch import PackedBatch, Sample, first_of
from trainer.data.clip_table import least_room, room
from trainer.data.loader import begin_worker, clean_processes, end_with_process, unwrapped

logger = logging.getLogger(__name__)

_LISTED = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
PIPE = "pipe:"
"""What begins the name of a tar that a shell command writes to its output, as in webdataset: `pipe:ssh host cat x.tar`."""


def listed_tars(where: str) -> list[str]:
    """The tars that are meant by: an output folder or its URL (its current snapshot's), a snapshot's `shards.txt`, a pattern of
    local files (`data/*.tar`), or one tar: a path, a URL, or `pipe:COMMAND`. Raises PretrackError if there are none."""
    if where.startswith(PIPE) or (where.endswith(".tar") and not any(c in where for c in "*?[")):
        return [where]
    if where.endswith(".tar"):
        if tars := sorted(glob(where)):
            return [
                f"./{tar}" if tar.startswith(PIPE) else tar for tar in tars
            ]  # a file's name is never a command
        raise PretrackError(f"no file fits {where}")
    listed = (
        parse_location(where)
        if where.endswith("shards.txt")
        else open_snapshot(where).folder / "shards.txt"
    )
    try:
        names = read_file(listed).decode().split()
    except (OSError, UnicodeDecodeError) as error:
        raise PretrackError(
            f"{listed} cannot be read ({error}): it should list a snapshot's tars"
        ) from error
    if not names:
        raise PretrackError(f"{listed} lists no tar")
    if strange := [
        name for name in names if not _LISTED.fullmatch(name)
    ]:  # a command, say, or a way out of the folder
        raise PretrackError(
            f"{listed} lists {strange[0]!r:.120}, which is no tar of a snapshot such as shards/NAME.tar"
        )
    out = listed.parent.parent.parent
    return [str(out / name) for name in names]


@dataclass(frozen=True, eq=False)
class _Clip:
    """Of a clip what will be seen of it, not yet decoded, so that a buffer of them stays small.

    `size` is (width, height); JPEGs [T]; positions as stored [T, N, 2], visibility and confidence [T, N]; `random` draws colours.
    """

    key: str
    tar: str
    size: tuple[int, int]
    views: list[FrameTransform]
    images: list[bytes]
    positions: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    random: np.random.Generator

    @property
    def points(self) -> int:
        """The number of points, N."""
        return self.positions.shape[1]


class StreamedClips(IterableDataset[Sample]):
    """The samples of `ClipDataset`, from tars that are read from front to back, without end.

    tars: what `listed_tars` takes, one or several. settings: as for `ClipDataset`; `out`, `snapshot` and `cache` are not looked at.
    buffer: clips that a worker shuffles among each other.

    In each pass over the tars their order is drawn from (seed, pass) alone, and every rank (RANK and WORLD_SIZE, as torchrun sets
    them) and worker reads its own part of them. Without end, since parts differ in their number of clips: so all ranks take as many
    steps as they are asked for. What a clip shows follows from (seed, pass, its key).

    Raises SettingsError for settings that need tables. Reading raises PretrackError if there are fewer tars than readers, or if no
    clip fits; and ShardError for damage, unless `on_error` is `skip`: then the clip or the rest of its tar is left out and logged.
    """

    def __init__(
        self, tars: str | Sequence[str], settings: DataSettings, seed: int, buffer: int = 256
    ) -> None:
        for name in ("where", "weights", "shuffle_shards"):
            if getattr(settings, name):
                raise SettingsError(
                    f"'data.{name}' needs a build's tables, and streamed tars have none: name the tars that you want"
                )
        self.tars = [
            tar
            for where in ([tars] if isinstance(tars, str) else tars)
            for tar in listed_tars(where)
        ]
        self.settings, self.seed, self.buffer = settings, seed, buffer

    def batches(self, batch_size: int, workers: int = 0, pin: bool = False) -> Iterator[Sample]:
        """Batches without end, read by `workers` processes (0: by this one). Raises as reading does."""
        self._share(pytorch_worker_info()[1], max(1, workers))
        remote = any("://" in tar and not tar.startswith(PIPE) for tar in self.tars)
        loader: DataLoader[Sample] = DataLoader(
            self,
            batch_size,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=partial(begin_worker, dict(os.environ)),
            multiprocessing_context=clean_processes() if workers and remote else None,
            persistent_workers=workers > 0,
        )
        end_with_process(loader)
        try:
            yield from loader
        except PretrackError as error:
            raise unwrapped(error) from error

    def __iter__(self) -> Iterator[Sample]:
        rank, world, worker, workers = pytorch_worker_info()
        self._share(world, workers)
        points, barren = 0, set[str]()
        for turn in count():
            order = np.random.default_rng([self.seed, turn]).permutation(len(self.tars))
            mine = list(
                webdataset.split_by_worker(
                    webdataset.split_by_node(self.tars[number] for number in order)
                )
            )
            random = Random(f"{self.seed} {turn} {rank} {worker}")
            barren.update(mine)
            for clip in webdataset.shuffle(self.buffer, initial=self.buffer, rng=random)(
                self._clips(mine, turn)
            ):
                points = points or clip.points
                if clip.points != points:
                    raise PretrackError(
                        f"clip {clip.key} in {clip.tar} has {clip.points} points and others have {points}"
                    )
                if sample := self._decoded(clip):
                    barren.clear()
                    yield sample
            if len(barren) == len(self.tars):
                s = self.settings
                raise PretrackError(
                    f"no clip in {self.tars[0]} … fits: split '{s.split}', {s.frames} frames or more from an anchor"
                )

    def _share(self, world: int, workers: int) -> None:
        if len(self.tars) < world * workers:
            raise PretrackError(
                f"{len(self.tars)} tars cannot be shared by {world} ranks with {workers} readers each: every reader has tars of "
                "its own, so take fewer workers"
            )

    def _clips(self, tars: Sequence[str], turn: int) -> Iterator[_Clip]:
        """The clips of tars in the order they lie in, as far as they fit the settings and can be read."""
        for tar in tars:
            try:
                for members in _samples(tar):
                    try:
                        clip = self._choose(members, tar, turn)
                    except ShardError as error:
                        self._leave_out(f"clip {members['__key__']} in {tar}: {error}", error)
                        continue
                    if clip:
                        yield clip
            except _BadTarError as error:
                self._leave_out(str(error), error)

    def _choose(self, members: dict[str, Any], tar: str, turn: int) -> _Clip | None:
        """What will be seen of a clip, if it fits the settings. Raises ShardError."""
        s = self.settings
        try:
            info = ClipInfo.from_json(members["json"])
            tracks = decode_tracks(members["tracks.zst"], (None, info.frames, None))
            if not _fits(info, tracks, s):
                return None
            random = np.random.default_rng(
                [self.seed, turn, xxhash.xxh3_64_intdigest(info.key.encode())]
            )
            anchor, numbers = choose_frames(info.frames, tracks.anchors.tolist(), s, random)
            views = choose_transforms(info.width, info.height, s, random)
            images = [members[f"{number:03d}.jpg"] for number in numbers]
        except KeyError as error:
            raise ShardError(f"it lacks its member {error.args[0]}") from error
        return _Clip(
            key=info.key,
            tar=tar,
            size=(info.width, info.height),
            views=views,
            images=images,
            positions=tracks.positions[anchor, numbers],
            visibility=tracks.visibility[anchor, numbers],
            confidence=tracks.confidence[anchor, numbers],
            random=random,
        )

    def _decoded(self, clip: _Clip) -> Sample | None:
        s = self.settings
        batch = PackedBatch.empty(1, s.frames, s.size, clip.points, s.colour.student_only)
        try:
            batch.show(0, clip.views, clip.images, clip.size, s, clip.random)
        except ShardError as error:
            self._leave_out(f"clip {clip.key} in {clip.tar}: {error}", error)
            return None
        batch.follow(0, clip.views, clip.positions, clip.visibility, clip.confidence)
        batch.keys[0] = clip.key
        sample = batch.sample(s)
        sample.pop("left_out", None)
        return first_of(sample)

    def _leave_out(self, sentence: str, error: ShardError) -> None:
        if self.settings.on_error == "stop":
            raise ShardError(sentence) from error
        logger.warning("left out: %s", sentence)


class _BadTarError(ShardError):
    """A tar that cannot be read to its end."""


def _samples(tar: str) -> Iterator[dict[str, Any]]:
    """The clips of a tar as webdataset groups them: members by the end of their names, and `__key__`. Raises _BadTarError."""
    try:
        with _opened(tar) as stream:
            tail = ChecksumStream(stream)
            yield from group_by_keys(
                {"fname": name, "data": data, "__url__": tar} for name, data in read_tar(tail)
            )
            tail.check_end()
    except (
        OSError,
        tarfile.TarError,
        EOFError,
        ValueError,
    ) as error:  # webdataset adds to what their `args` say
        said = getattr(error, "strerror", None) or str(error.args[0]).split(" @ ")[0]
        raise _BadTarError(f"the tar {tar} cannot be read to its end ({said})") from error


def _opened(tar: str) -> AbstractContextManager[BinaryIO]:
    """A tar to be read once, from front to back. Raises OSError."""
    if tar.startswith(PIPE):
        return cast(AbstractContextManager[BinaryIO], webdataset.gopen(tar))
    place = parse_location(tar)
    return download(place) if isinstance(place, Url) else open(place, "rb")


def _fits(info: ClipInfo, tracks: Tracks, settings: DataSettings) -> bool:
    """Whether a clip is one that `trainer.data.clip_table.choose_clips` would take."""
    frames = pa.table({"anchors": [tracks.anchors.tolist()], "frames": [info.frames]})
    large = settings.crop != "native" or min(info.width, info.height) >= settings.size
    return (
        info.split == settings.split
        and large
        and bool(room(frames, settings)[0] >= least_room(settings))
    )
