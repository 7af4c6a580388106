"""Verification checks every shard by its own rows, in any order and chunking of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from manifests.snapshot import Snapshot
from manifests.tables import CLIPS
from pipeline.inspection.verify import _COLUMNS, _tasks, _verify
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips
from trainer.data.clip_table import Clip

SHARDS: list[dict[str, Any]] = [
    {"shard": f"a-train-00000{n}-00", "bytes": n, "checksum": f"c{n}", "clips": 3} for n in range(4)
]


def rows_of(shard: str) -> list[dict[str, Any]]:
    values: dict[str, Any] = {
        field.name: [] if pa.types.is_list(field.type) else None for field in CLIPS
    }
    return [
        {**values, "shard": shard, "key": f"{shard}-{clip}", "frame_offsets": [clip, 7]}
        for clip in range(3)
    ]


@pytest.fixture
def clips() -> pa.Table:
    """In the order of their shards, each row a piece."""
    rows = [row for shard in SHARDS for row in rows_of(shard["shard"])]
    return pa.concat_tables([pa.Table.from_pylist([row], schema=CLIPS) for row in rows])


def tasks(clips: pa.Table) -> list[tuple[Any, ...]]:
    snapshot = Snapshot(Path("out"), "000001")
    snapshot.__dict__["clips"] = clips  # as if read
    return list(_tasks(snapshot, SHARDS))


def expected() -> list[tuple[Any, ...]]:
    return [
        (
            shard["shard"],
            Path("out/shards") / f"{shard['shard']}.tar",
            shard["bytes"],
            shard["checksum"],
            [{name: row[name] for name in _COLUMNS} for row in rows_of(shard["shard"])],
        )
        for shard in SHARDS
    ]


def test_every_shard_is_checked_by_its_own_rows(clips: pa.Table) -> None:
    assert tasks(clips) == expected()
    assert tasks(clips.combine_chunks()) == expected()


def test_the_order_of_the_table_does_not_matter(clips: pa.Table) -> None:
    stranger = pa.Table.from_pylist(rows_of("b-train-000000-00"), schema=CLIPS)
    table = pa.concat_tables([stranger, clips.slice(6, 6), clips.slice(0, 6)])
    assert tasks(table) == expected()
    rest = pa.concat_tables([clips, stranger])
    assert tasks(rest) == expected()
    order = np.array([0, 3, 1, 4, 2, 5, 6, 9, 7, 8, 10, 11])
    assert tasks(clips.take(order)) == expected()


def test_a_table_too_large_to_be_joined_is_checked(clips: pa.Table) -> None:
    """Two GiB of text cannot be joined to one column, and what joins takes long."""
    stranger = pa.Table.from_pylist(rows_of("b-train-000000-00")[:1], schema=CLIPS)
    large = stranger.set_column(CLIPS.get_field_index("key"), "key", pa.array(["x" * (64 << 20)]))
    assert tasks(pa.concat_tables([clips, *[large] * 33])) == expected()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("split", "eval"),
        ("dataset", "co3d"),
        ("source", "other"),
        ("video_id", "other"),
        ("sequence", "other"),
        ("frames", 7),
        ("width", 97),
        ("height", 63),
        ("anchors", [0, 5]),
        ("anchors", [0]),
        ("points", 9),
    ],
)
def test_what_the_tables_say_of_a_clip_is_what_it_says_itself(
    tmp_path: Path, column: str, value: Any
) -> None:
    snapshot = publish_clips(tmp_path, [grey_clip("made-a")])
    shards, rows = snapshot.shards.to_pylist(), snapshot.clips.to_pylist()
    assert [_verify(task) for task in _tasks(snapshot, shards)] == [[]]
    snapshot.__dict__["clips"] = pa.Table.from_pylist([{**rows[0], column: value}], schema=CLIPS)
    ((problem,),) = [_verify(task) for task in _tasks(snapshot, shards)]
    assert "clip made-a: " in str(problem)
    assert column in str(problem)


@pytest.mark.parametrize("changed", [[+1, -1], [0, +1], [0, None]], ids=["moved", "longer", "gone"])
def test_where_each_anchors_tracks_lie_is_checked(
    tmp_path: Path, changed: list[int | None]
) -> None:
    snapshot = publish_clips(tmp_path, [grey_clip("made-a")])
    shards, (row,) = snapshot.shards.to_pylist(), snapshot.clips.to_pylist()
    sizes = [
        size + by for size, by in zip(row["anchor_sizes"], changed, strict=True) if by is not None
    ]
    snapshot.__dict__["clips"] = pa.Table.from_pylist(
        [{**row, "anchor_sizes": sizes}], schema=CLIPS
    )
    ((problem,),) = [_verify(task) for task in _tasks(snapshot, shards)]
    assert "clip made-a: " in str(problem)
    assert "tracks" in str(problem)


def test_every_column_that_a_trainer_goes_by_is_checked() -> None:
    elsewhere = {"shard", "folder"}  # by whose name rows are found; which snapshot they are of
    assert {
        *Clip.__dataclass_fields__,
        "split",
        "dataset",
        "points",
        "checksum",
    } - elsewhere <= set(_COLUMNS)
