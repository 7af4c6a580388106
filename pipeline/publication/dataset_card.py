"""Write the dataset card of a snapshot: Markdown, with the header that hubs and loaders read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from manifests.snapshot import Snapshot
from manifests.terms import Terms
from manifests.wording import pluralise, size
from pipeline.inspection.report_figures import SnapshotFigures
from pipeline.publication.citations import citations
from pipeline.publication.clip_columns import clip_columns
from pipeline.publication.licences import licence_header

MARK = "<!-- 'pretrack card' keeps what follows this line and writes the rest anew -->"
"""Ends the part of a card that is written again."""

_SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")),
    *((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M")),
)


@dataclass(frozen=True)
class CardContent:
    """What a card tells.

    name:     of the dataset
    place:    a folder or "hf://datasets/OWNER/NAME", for the commands that it shows
    sheets:   contact sheets of clips: path relative to the card → title
    charts:   the same of charts
    own_text: what people added below the mark
    """

    snapshot: Snapshot
    figures: SnapshotFigures
    terms: Terms
    name: str
    place: str
    sheets: dict[str, str]
    charts: dict[str, str]
    own_text: str = ""


def shards_by_split(snapshot: Snapshot) -> dict[str, list[str]]:
    """Map each split to the paths of its shards, relative to the output folder; `train` first."""
    paths = defaultdict(list)
    for row in snapshot.shards.select(["shard", "split"]).to_pylist():
        paths[row["split"]].append(f"shards/{row['shard']}.tar")
    return dict(sorted(paths.items(), reverse=True))


def dataset_card(content: CardContent) -> str:
    """Return the card: header, Markdown, and the text that people added."""
    header = yaml.safe_dump(_header(content), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{header}---\n\n{''.join(_sections(content))}{MARK}\n{content.own_text}"


def own_text_of(card: str) -> str | None:
    """Return what people added to a card below the mark; None for a card of other origin."""
    _, mark, text = card.partition(MARK)
    # Editors may change the line's end, or drop the last one of a file.
    return text.removeprefix("\r").removeprefix("\n") if mark else None


def _header(content: CardContent) -> dict[str, Any]:
    """Return the header.

    All configs of a card are read by one builder, which follows from the first config's files. So
    it has the clips alone, and tables are loaded by name.
    """
    files = [
        {"split": split, "path": paths}
        for split, paths in shards_by_split(content.snapshot).items()
    ]
    columns = clip_columns(content.snapshot.clips)
    clips = content.figures.clips
    return {
        "pretty_name": content.name,
        **licence_header(content.terms),
        "size_categories": [next((name for most, name in _SIZES if clips < most), "n>100M")],
        "tags": ["video", "point-tracking", "webdataset", "pretrack"],
        "configs": [{"config_name": "clips", "default": True, "data_files": files}],
        "dataset_info": [{"config_name": "clips", "features": columns}],
    }


def _sections(content: CardContent) -> Iterator[str]:
    """Yield the card's sections as Markdown."""
    figures = content.figures
    total = size(sum(figures.bytes.values()))
    yield f"# {_text(content.name)}\n\n"
    yield (
        f"{pluralise(figures.clips, 'video clip')} of {figures.frames:,} frames with point tracks, "
        f"in {pluralise(figures.shards, 'shard')} ({total}).\n\n"
    )
    yield from (f"![{title}]({path})\n\n" for path, title in content.sheets.items())
    yield f"## Licences\n\n{_capitalised(content.terms.sentence())}.\n\n"
    stated = content.snapshot.videos["terms"].unique().to_pylist()
    yield "".join(f"- {_text(terms)}\n" for terms in stated if terms) + "\n"
    loaded = content.place.removeprefix("hf://datasets/")
    yield _LOADING.format(place=content.place, loaded=loaded, snapshot=content.snapshot.name)
    yield _contents(figures)
    if content.charts:
        charts = " ".join(
            f'<img src="{path}" alt="{title}" width="420">'
            for path, title in content.charts.items()
        )
        yield f"## Figures\n\n{charts}\n\n"
    yield _making(content.snapshot)
    cited = citations(content.snapshot)
    yield "## Citation\n\n" + "".join(f"- {line}\n" for line in cited) + "\n"


def _contents(figures: SnapshotFigures) -> str:
    """Return the table of sources."""
    head = "| source | dataset | split | videos | clips | frames | visible | motion |"
    rule = "|---|---|---|---:|---:|---:|---:|---:|"
    rows = [
        f"| {_text(it.source)} | {_text(it.dataset)} | {it.split} | {it.videos:,} | {it.clips:,} "
        f"| {it.frames:,} | {it.visible_fraction:.0%} | {it.motion:.1%} |"
        for it in figures.groups
    ]
    explained = (
        "Visible is the mean fraction of points that are visible; motion is the mean distance that "
        "the median track covers, as a fraction of the frame's diagonal."
    )
    left_out = "".join(
        f"- {count:,}: {_text(reason)} ({stage})\n" for stage, reason, count in figures.failures
    )
    lines = "\n".join(["## Contents", "", head, rule, *rows, "", explained, ""])
    return lines + (f"\nLeft out or incomplete:\n\n{left_out}\n" if left_out else "\n")


_LOADING = """## Loading

```python
from datasets import load_dataset

clips = load_dataset("{loaded}", streaming=True)
table = load_dataset("parquet", data_files="{place}/snapshots/{snapshot}/clips.parquet")
```

Each sample is a clip: its description (`json`), its frames (`000.jpg`, `001.jpg`, …; null after the
last frame of a shorter clip), and its tracks (`tracks.zst`), which this decodes:

```python
import struct

import numpy as np


def decode_tracks(data):
    # Yields per anchor frame: its index; positions [2, T, N], x and y in pixels, (0, 0) being the
    # centre of the top-left pixel; visibility and confidence [T, N], from 0 to 1.
    while data:
        magic, version, units, anchor, frames, points = struct.unpack_from("<4sHHiII", data)
        if (magic, version) != (b"PTRK", 2):
            raise ValueError("these are not tracks of version 2")
        size, shape = frames * points, (frames, points)
        low_to_high = np.frombuffer(data, np.uint8, 8 * size, 20).reshape(4, 2, *shape)
        z = sum(part.astype(np.uint32) << (8 * n) for n, part in enumerate(low_to_high))
        steps = (z >> 1).astype(np.int32) ^ -(z & 1).astype(np.int32)
        rest = np.frombuffer(data, np.uint8, 2 * size, 20 + 8 * size).reshape(2, *shape)
        visibility, confidence = rest.cumsum(1, dtype=np.uint8) / 255
        yield anchor, steps.cumsum(1, dtype=np.int32) / units, visibility, confidence
        data = data[20 + 10 * size :]
```

`videos`, `shards` and `failures` are tables beside `clips`. For training, pretrack reads the same
place: `data.out: {place}`.

"""


def _making(snapshot: Snapshot) -> str:
    """Return how to make the build again: the command and the config."""
    settings = _without_folders({**snapshot.settings, "out": "OUT"})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    return (
        f"## How it was made\n\n`pretrack build config.yaml`, snapshot {snapshot.name}, with "
        f"`config.yaml`:\n\n```yaml\n{text}```\n\n"
    )


def _without_folders(value: Any) -> Any:
    """Return settings with only the names of files and folders of the machine of the build."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return f"PATH/{PurePath(value).name}"
    return value


def _text(text: str) -> str:
    """Escape a text that others chose, so that it stays text in Markdown and in its tables."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.replace("`", "'").split())


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
