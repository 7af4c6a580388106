"""Any file whatever: every frame that is stored shows its own number, or the file is a row.

`make soak` tries some hundreds; set PRETRACK_FILES to try another number.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import FrameSettings
from pipeline.decode.ledger import DAMAGED, Ledger
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError
from pipeline.planning.clip_windows import clip_windows
from tests.helpers.barcode import Recipe, read_number, write_numbered

FILES = int(os.environ.get("PRETRACK_FILES", "12"))
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9"),
    "mkv": ("libx264", "libx265", "mpeg4", "libvpx-vp9"),
    "ts": ("libx264", "libx265", "mpeg4"),
    "avi": ("libx264", "mpeg4"),
    "webm": ("libvpx-vp9",),
}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """How a file is written: any container with any of its codecs, times that go wrong, joins."""
    container = draw(st.sampled_from(sorted(CODECS)))
    frames = draw(st.integers(20, 70))
    parts: tuple[int, ...] = ()
    if container == "ts" and draw(st.booleans()):
        parts = tuple(draw(st.lists(st.integers(8, 40), min_size=2, max_size=3)))
    times: tuple[int, ...] | None = None
    if not parts and container in ("mp4", "mkv", "webm") and draw(st.booleans()):
        gaps = draw(st.lists(st.integers(1, 9), min_size=frames, max_size=frames))
        times = tuple(int(time) for time in np.cumsum(gaps))
    return Recipe(
        container=container,
        codec=draw(st.sampled_from(CODECS[container])),
        frames=frames,
        b_frames=draw(st.integers(0, 3)),
        gop=draw(st.integers(1, 30)),
        open_gop=draw(st.booleans()),
        times=times,
        parts=parts,
        rotation=draw(st.sampled_from((0, 90, 180, 270))) if container == "mp4" else 0,
        mirror=draw(st.booleans()) if container == "mp4" else False,
        clock=draw(st.sampled_from((25, 1000, 90000))) if container == "mkv" else 25,
        damage=draw(st.one_of(st.none(), st.floats(0.2, 0.9))) if container == "ts" else None,
    )


@pytest.mark.slow
@settings(
    max_examples=FILES,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking a failure takes longer than reading it
)
@given(
    recipe=recipes(),
    decoder=st.sampled_from(("pyav", "decord")),
    stride=st.integers(1, 3),
    clip_frames=st.integers(4, 16),
)
def test_every_stored_frame_shows_its_own_number(
    recipe: Recipe, decoder: str, stride: int, clip_frames: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, SubprocessDecoder(stall_limit_s=60) as child:
        path = Path(folder) / f"a.{recipe.container}"
        write_numbered(path, recipe)
        try:
            scan = child.scan(str(path), shot_cuts=True)
        except DecodeError:
            return
        ledger = Ledger.unpack(scan.ledger)
        windows = FrameSettings(stride=stride, clip_frames=clip_frames, min_frames=2)
        cuts = np.array(scan.cuts, np.int32)
        _, starts, counts = clip_windows(
            np.array([len(ledger)], np.int32), cuts, np.array([0, len(cuts)]), windows
        )
        indices = [
            int(start) + stride * place
            for start, count in zip(starts, counts, strict=True)
            for place in range(count)
        ]
        assert not (ledger.flags[indices] & DAMAGED).any()
        # PyAV made the ledger: it can read what it entered. decord may be refused.
        with suppress(DecodeError) if decoder == "decord" else nullcontext():
            stored = list(
                child.read_video(
                    str(path),
                    decoder=decoder,  # type: ignore[arg-type]
                    ledger=scan.ledger,
                    indices=indices,
                    form=StoredForm(short_side=128),
                )
            )
            check_numbers(stored, indices, recipe, len(ledger))
            check_damage(stored, path, recipe, child)


def check_numbers(
    stored: Sequence[StoredFrame], indices: Sequence[int], recipe: Recipe, frames: int
) -> None:
    """Compare the numbers that stored frames show with those they are stored under."""
    shown = np.array([number_of(frame, recipe) for frame in stored])
    moved = shown - indices
    lost = recipe.count - frames
    if recipe.damage is None:
        assert lost == 0
        assert not moved.any(), moved
    else:  # frames that the damage swallowed move the later ones down by as many
        assert ((moved >= 0) & (moved <= lost)).all(), moved
        assert (np.diff(moved) >= 0).all(), moved


def check_damage(
    stored: Sequence[StoredFrame], path: Path, recipe: Recipe, child: SubprocessDecoder
) -> None:
    """Compare frames stored from a damaged file with those of the same file without damage."""
    if recipe.damage is None:
        return
    write_numbered(path, replace(recipe, damage=None))
    clean = every_frame(path, child)
    for frame in stored:
        number = number_of(frame, recipe)
        assert np.abs(frame.pixels.astype(int) - clean[number].pixels).mean() < 1, number


def every_frame(path: Path, child: SubprocessDecoder) -> list[StoredFrame]:
    """Read all frames of an undamaged file, from its start."""
    ledger = child.scan(str(path), shot_cuts=False).ledger
    return list(
        child.read_video(
            str(path),
            decoder="pyav",
            ledger=ledger,
            indices=range(len(Ledger.unpack(ledger))),
            form=StoredForm(short_side=128),
        )
    )


def number_of(frame: StoredFrame, recipe: Recipe) -> int:
    """Read the number of a frame that was turned or mirrored on its way."""
    return read_number(recipe.unshown(frame.pixels))
