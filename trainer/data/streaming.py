"""Clips from tars that are read front to back: for servers without ranges, and for bare tars.

Prefer `trainer.data.dataset` if possible. Here every byte of a tar is read, most of them for
frames that are not shown; clips are shuffled by whole tars and within a buffer only; there is no
position to resume from; and what only the tables know (`where`, `weights`, `shuffle_shards`) is not
supported.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from glob import glob
from itertools import count
from random import Random
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import webdataset
import xxhash
from torch.utils.data import DataLoader, IterableDataset
from webdataset.tariterators import group_by_keys
from webdataset.utils import pytorch_worker_info

from manifests.snapshot import open_snapshot
from shards.bucket import Url, download
from shards.clip import ClipInfo, Directions, Tracks
from shards.codec import decode_tracks
from shards.epipolar import read_poses
from shards.errors import PretrackError, SettingsError, ShardError
from shards.files import Location, parse_location, read_file, reading
from shards.reader import ChecksumStream, read_tar
from shards.score_codec import decode_scores
from shards.track_scores import TrackScores, score_clip
from trainer.data.augment import choose_frames, choose_transforms
from trainer.data.batch import Batch, first_item
from trainer.data.clip_selection import frames_available, frames_needed
from trainer.data.control import check_control, control_tracks
from trainer.data.encoded_clip import EncodedClip, decode_clip
from trainer.data.frames_by_angle import choose_frames_by_angle
from trainer.data.loader import (
    explain_killed_workers,
    forkserver_context,
    init_worker,
    shut_down_at_exit,
    unwrap_worker_error,
)
from trainer.data.packed_batch import BatchShape, PackedBatch
from trainer.data.score_rule import ScoreRule
from trainer.data.settings import DataSettings

logger = logging.getLogger(__name__)

_TAR_OF_SNAPSHOT = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
PIPE = "pipe:"
"""Prefix of a "tar" that a shell command writes to stdout, as in webdataset:
`pipe:ssh host cat x.tar`."""


def listed_tars(source: str) -> list[str]:
    """Return the paths, URLs or commands of the tars that `source` stands for.

    source: an output folder or its URL (the tars of its current snapshot), a snapshot's
    `shards.txt`, a pattern of local files (`data/*.tar`), or one tar: a path, a URL, or
    `pipe:COMMAND`.

    Raises PretrackError if there are none.
    """
    is_pattern = any(character in source for character in "*?[")
    if source.startswith(PIPE) or (source.endswith(".tar") and not is_pattern):
        return [source]
    if source.endswith(".tar"):
        if tars := sorted(glob(source)):
            # A file whose name begins with "pipe:" must not be run as a command.
            return [f"./{tar}" if tar.startswith(PIPE) else tar for tar in tars]
        raise PretrackError(f"no file matches {source}")
    list_file = (
        parse_location(source)
        if source.endswith("shards.txt")
        else open_snapshot(source).folder / "shards.txt"
    )
    try:
        names = read_file(list_file).decode().split()
    except (OSError, UnicodeDecodeError) as error:
        raise PretrackError(
            f"{list_file} cannot be read ({error}): it should list a snapshot's tars"
        ) from error
    if not names:
        raise PretrackError(f"{list_file} lists no tar")
    # The list comes from others: a name could be a command, or a path out of the folder.
    if unexpected := [name for name in names if not _TAR_OF_SNAPSHOT.fullmatch(name)]:
        raise PretrackError(
            f"{list_file} lists {unexpected[0]!r:.120}, which is no tar of a snapshot such as "
            "shards/NAME.tar"
        )
    out = list_file.parent.parent.parent
    return [str(out / name) for name in names]


class StreamedClips(IterableDataset[Batch]):
    """Infinite stream of the samples of `ClipDataset`, from tars that are read front to back.

    tars:     one or several sources, see `listed_tars`
    settings: as for `ClipDataset`; `out`, `snapshot` and `cache` are ignored
    seed:     all randomness follows from it
    buffer:   size of each worker's shuffle buffer, in clips
    max_epipolar_px, epipolar_weight_px: as for `ClipDataset`; tracks of clips without scores are
              scored when read

    Yields a `Batch` without the axis B per clip; `batches` yields batches.

    In each pass over the tars their order is drawn from (seed, pass) alone, and every rank (RANK
    and WORLD_SIZE, as torchrun sets them) and worker reads its own part of them. What a sample
    shows of its clip follows from (seed, pass, the clip's key). The stream is infinite because
    parts differ in their number of clips: every rank can take the same number of steps.

    Raises SettingsError for settings that need tables. Reading raises PretrackError if there are
    fewer tars than workers, or if no clip fits; and ShardError for damage, unless `on_error` is
    `skip`: then the clip, or the rest of its tar, is left out and logged.
    """

    def __init__(
        self,
        tars: str | Sequence[str],
        settings: DataSettings,
        seed: int,
        buffer: int = 256,
        *,
        max_epipolar_px: float | None = None,
        epipolar_weight_px: float | None = None,
    ) -> None:
        for name in ("where", "weights", "shuffle_shards"):
            if getattr(settings, name):
                raise SettingsError(
                    f"'data.{name}' needs a build's tables, and streamed tars have none: leave it "
                    "out, and name the tars to read"
                )
        if settings.resize == "device":
            raise SettingsError(
                "'data.resize: device' needs a build's tables, which say how large a crop can be, "
                "and streamed tars have none: leave it out, and 'data.decode: device' too"
            )
        sources = [tars] if isinstance(tars, str) else tars
        self.tars = [tar for source in sources for tar in listed_tars(source)]
        self.settings, self.seed, self.buffer = settings, seed, buffer
        self.by_score = ScoreRule(max_epipolar_px, epipolar_weight_px)

    def batches(self, batch_size: int, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
        """Yield an infinite stream of batches, read by `workers` processes (0: this one).

        Raises as reading does.
        """
        self._check_enough_tars(pytorch_worker_info()[1], max(1, workers))
        remote = any("://" in tar and not tar.startswith(PIPE) for tar in self.tars)
        loader: DataLoader[Batch] = DataLoader(
            self,
            batch_size,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=partial(init_worker, dict(os.environ)),
            multiprocessing_context=forkserver_context() if workers and remote else None,
            persistent_workers=workers > 0,
        )
        shut_down_at_exit(loader)
        try:
            with explain_killed_workers():
                yield from loader
        except PretrackError as error:
            raise unwrap_worker_error(error) from error

    def __iter__(self) -> Iterator[Batch]:
        rank, world, worker, workers = pytorch_worker_info()
        self._check_enough_tars(world, workers)
        points = 0
        # Tars that this worker has read since it last yielded a sample.
        barren = set[str]()
        for pass_number in count():
            order = np.random.default_rng([self.seed, pass_number]).permutation(len(self.tars))
            tars = list(
                webdataset.split_by_worker(
                    webdataset.split_by_node(self.tars[number] for number in order)
                )
            )
            random = Random(f"{self.seed} {pass_number} {rank} {worker}")
            shuffle = webdataset.shuffle(self.buffer, initial=self.buffer, rng=random)
            barren.update(tars)
            for clip in shuffle(self._read_clips(tars, pass_number)):
                if not points:
                    points = clip.points
                    check_control(self.settings, points, self.by_score)
                if clip.points != points:
                    raise PretrackError(
                        f"clip {clip.key} in {clip.shard} has {clip.points} points and others have "
                        f"{points}"
                    )
                if item := self._decode(clip):
                    barren.clear()
                    yield item
            # A worker gets other tars in each pass: only after all of them is it certain that
            # none has a clip to show.
            if len(barren) == len(self.tars):
                s = self.settings
                raise PretrackError(
                    f"no clip in {self.tars[0]} … fits: split '{s.split}', {s.frames} frames or "
                    "more from an anchor"
                )

    def _check_enough_tars(self, world: int, workers: int) -> None:
        if len(self.tars) < world * workers:
            raise PretrackError(
                f"{len(self.tars)} tars cannot be shared by {world} ranks with {workers} workers "
                "each: every worker reads tars of its own, so take fewer workers"
            )

    def _read_clips(self, tars: Sequence[str], pass_number: int) -> Iterator[EncodedClip]:
        """Yield the clips of tars that fit the settings and can be read, in the order stored."""
        for tar in tars:
            try:
                for members in _samples(tar):
                    try:
                        clip = self._encoded_clip(members, tar, pass_number)
                    except ShardError as error:
                        self._leave_out(f"clip {members['__key__']} in {tar}: {error}", error)
                        continue
                    if clip:
                        yield clip
            except _BadTarError as error:
                self._leave_out(str(error), error)

    def _encoded_clip(
        self, members: dict[str, Any], tar: str, pass_number: int
    ) -> EncodedClip | None:
        """Draw what a sample shows of a clip; None if it does not fit the settings.

        Raises ShardError.
        """
        s = self.settings
        try:
            info = ClipInfo.from_json(members["json"])
            tracks = decode_tracks(members["tracks.zst"], (None, info.frames, None))
            tracked = _tracked_directions(tracks)
            if not _fits(info, tracks, tracked, s):
                return None
            random = np.random.default_rng(
                [self.seed, pass_number, xxhash.xxh3_64_intdigest(info.key.encode())]
            )
            anchors = tracks.anchors.tolist()
            anchor, numbers = (
                choose_frames_by_angle(
                    read_poses(info.cameras, info.frames), anchors, s, random, tracked=tracked
                )
                if s.frames_by == "angle"
                else choose_frames(info.frames, anchors, s, random, tracked=tracked)
            )
            transforms = choose_transforms(info.width, info.height, s, random)
            images = [members[f"{number:03d}.jpg"] for number in numbers]
            visibility = tracks.visibility[anchor, numbers]  # a copy
            weights = None
            if self.by_score.needs_scores:
                scores = _scores(members, tracks, info).epipolar[anchor]
                visibility[:, self.by_score.left_out(scores)] = 0
                weights = self.by_score.weights(scores)
            positions, visibility, confidence = control_tracks(
                (tracks.positions[anchor, numbers], visibility, tracks.confidence[anchor, numbers]),
                s,
                random,
            )
        except KeyError as error:
            raise ShardError(f"it lacks its member {error.args[0]}") from error
        return EncodedClip(
            key=info.key,
            shard=tar,
            size=(info.width, info.height),
            transforms=transforms,
            images=images,
            positions=positions,
            visibility=visibility,
            confidence=confidence,
            random=random,
            cameras=[info.cameras[number] for number in numbers] if info.cameras else None,
            track_weights=weights,
        )

    def _decode(self, clip: EncodedClip) -> Batch | None:
        """Decode a clip; None if an image is damaged and `on_error` is `skip`."""
        s = self.settings
        shape = BatchShape(
            clips=1,
            frames=s.frames,
            size=s.size,
            points=clip.points,
            teacher_frames=s.colour.student_only,
            cameras=s.cameras,
            track_weights=self.by_score.weight_px is not None,
        )
        packed = PackedBatch.empty(shape)
        try:
            decode_clip(clip, packed, 0, s)
        except ShardError as error:
            self._leave_out(f"clip {clip.key} in {clip.shard}: {error}", error)
            return None
        batch = packed.unpack(s)
        batch.pop("left_out", None)
        return first_item(batch)

    def _leave_out(self, sentence: str, error: ShardError) -> None:
        """Log what is left out, or raise ShardError with `on_error: stop`."""
        if self.settings.on_error == "stop":
            raise ShardError(sentence) from error
        logger.warning("left out: %s", sentence)


class _BadTarError(ShardError):
    """A tar that cannot be read to its end."""


def _samples(tar: str) -> Iterator[dict[str, Any]]:
    """Yield the members of each clip of a tar as webdataset groups them, and its `__key__`.

    Members are named by their suffix, such as `000.jpg`. Raises _BadTarError.
    """
    try:
        with _opened(tar) as stream:
            checked = ChecksumStream(stream)
            yield from group_by_keys(
                {"fname": name, "data": data, "__url__": tar} for name, data in read_tar(checked)
            )
            checked.check_end()
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        # webdataset appends " @ URL" to the first of an error's `args`.
        reason = getattr(error, "strerror", None) or str(error.args[0]).split(" @ ")[0]
        raise _BadTarError(f"the tar {tar} cannot be read to its end ({reason})") from error


def _opened(tar: str) -> AbstractContextManager[BinaryIO]:
    """Open a tar to be read once, front to back. Raises FileNotFoundError, AccessError."""
    if tar.startswith(PIPE):
        return cast(AbstractContextManager[BinaryIO], webdataset.gopen(tar))
    return _opened_file(parse_location(tar))


@contextmanager
def _opened_file(path: Location) -> Iterator[BinaryIO]:
    """Open a file, or download it first. Raises FileNotFoundError, AccessError."""
    with (
        reading(path),
        download(path) if isinstance(path, Url) else open(path, "rb") as stream,
    ):
        yield stream


def _scores(members: dict[str, Any], tracks: Tracks, info: ClipInfo) -> TrackScores:
    """Return the stored scores of a clip's tracks, or compute them. Raises ShardError."""
    if "scores.zst" not in members:
        return score_clip(tracks, info).tracks
    return decode_scores(members["scores.zst"], tracks.visibility.shape[::2])


def _tracked_directions(tracks: Tracks) -> Directions:
    """Return the directions in which points were tracked; a tar without tables does not state them.

    A direction was left out if all its points are at their queries with visibility and confidence
    0. If that is so in both, the tracker lost all points at once (in black frames, for example).
    """
    earlier = np.arange(tracks.positions.shape[1]) < tracks.anchors[:, None]
    later = np.arange(tracks.positions.shape[1]) > tracks.anchors[:, None]
    queries = tracks.positions[np.arange(len(tracks.anchors)), tracks.anchors][:, None]
    tracked = (  # [A, T]
        (tracks.visibility > 0) | (tracks.confidence > 0) | (tracks.positions != queries).any(-1)
    ).any(-1)
    forward, backward = bool((tracked & later).any()), bool((tracked & earlier).any())
    if forward == backward or not earlier.any():
        return "both"
    return "forward" if forward else "backward"


def _fits(info: ClipInfo, tracks: Tracks, tracked: Directions, settings: DataSettings) -> bool:
    """Return whether `trainer.data.clip_selection.choose_clips` would select a clip."""
    frames = pa.table({"anchors": [tracks.anchors.tolist()], "frames": [info.frames]})
    # NaN for a clip without poses, which is not larger.
    turns_enough = settings.frames_by == "step" or (
        read_poses(info.cameras, info.frames).turn >= settings.angle[0]
    )
    large_enough = settings.crop != "native" or min(info.width, info.height) >= settings.size
    return (
        info.split == settings.split
        and large_enough
        and turns_enough
        and bool(frames_available(frames, settings, [tracked])[0] >= frames_needed(settings))
    )
