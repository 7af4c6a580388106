"""Name and type the columns of a shard's clips, as `load_dataset` needs them.

Its WebDataset builder makes a column of each member's suffix. It takes the types from the first
clips of a shard unless the card states them, and then refuses clips of unequal length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TEXTS = ("key", "source", "dataset", "video_id", "sequence", "split", "terms")
_WHOLE = ("format", "width", "height", "source_width", "source_height")
_INTRINSICS = ("fx", "fy", "cx", "cy")

Column = dict[str, Any]
"""A column as the header of a dataset card states it: its name, and `dtype`, `list` or `struct`."""


def clip_columns(clips: pa.Table) -> list[Column]:
    """Return the columns of all clips of a table of clips; shorter clips have nulls in the last."""
    suffixes = [f"{number:03d}.jpg" for number in range(pc.max(clips["frames"]).as_py() or 0)]
    for kind in ("depth", "mask"):
        lengths = pc.list_value_length(clips[f"{kind}_sizes"])
        suffixes += [f"{number:03d}.{kind}.png" for number in range(pc.max(lengths).as_py() or 0)]
    scored = clips["scores_size"].null_count < len(clips)
    return [
        *(_column(name, "string") for name in ("__key__", "__url__")),
        {"name": "json", "struct": list(_description_columns())},
        *(_column(f"{name}.zst", "binary") for name in ("tracks", *["scores"] * scored)),
        *(_column(suffix, "image") for suffix in suffixes),
    ]


def _description_columns() -> Iterator[Column]:
    """Yield the fields of `KEY.json`."""
    matrix = {"name": "world_to_camera", "list": "float64"}
    for name in (*_TEXTS, "frames_settings", "tracks_settings"):
        yield _column(name, "string")
    for name in _WHOLE:
        yield _column(name, "int64")
    yield {"name": "frame_numbers", "list": "int64"}
    yield {"name": "timestamps", "list": "float64"}
    yield {"name": "cameras", "list": [*(_column(it, "float64") for it in _INTRINSICS), matrix]}
    yield _column("depth_scale", "float64")


def _column(name: str, dtype: str) -> Column:
    return {"name": name, "dtype": dtype}
