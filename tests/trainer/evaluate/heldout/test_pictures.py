"""Pictures: which clips are drawn."""

from __future__ import annotations

from dataclasses import replace

from manifests.snapshot import Snapshot
from tests.helpers.scenic_clips import held_out
from trainer.evaluate.heldout.pictures import choose_clips


def test_clips_are_drawn_where_something_moves(scenic: Snapshot) -> None:
    clips = held_out(scenic, 64).clips
    still = replace(clips[0], positions=clips[0].positions[:1].expand(4, -1, -1))
    assert choose_clips([still, *clips[1:3], still], 2) == [1, 2]
    assert choose_clips([still], 3) == [0]
    assert choose_clips(clips, 0) == []
