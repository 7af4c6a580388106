"""A published build of four clips of four lengths, whose licence allows everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manifests.snapshot import Snapshot
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips

FREE = "CC-BY-4.0; by Ada"
SETTINGS = {"tracks": {"tracker": "lucas_kanade"}, "sources": [{"root": "/home/ada/pans"}]}


def clip_with_terms(number: int, frames: int, terms: str = FREE) -> StoredClip:
    clip = make_clip(f"made-{number}-000000", number, frames)
    return replace(clip, info=replace(clip.info, terms=terms))


def publish_free(out: Path, lengths: tuple[int, ...] = (4, 6, 9, 7)) -> Snapshot:
    clips = [clip_with_terms(number, frames) for number, frames in enumerate(lengths)]
    return publish_clips(out, clips, settings=SETTINGS, scored=True)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return publish_free(tmp_path_factory.mktemp("free") / "pans")
