"""Make the files by which Megatron-Energon reads the shards as crude samples, without preparing
them: its list of shards and splits, and an index of each shard."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import yaml

from manifests.snapshot import Snapshot

_HEADER, _END = 512, 1024
"""Bytes of a member's header in a tar, and of the zeros at its end."""


def energon_files(snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files by their path in the output folder."""
    counts: dict[str, int] = {}
    splits: dict[str, list[str]] = defaultdict(list)
    indexes = {}
    starts = _starts(snapshot)
    for row in snapshot.shards.select(["shard", "split", "clips", "bytes"]).to_pylist():
        if not row["clips"]:
            continue
        tar = f"shards/{row['shard']}.tar"
        counts[tar] = row["clips"]
        splits["val" if row["split"] == "eval" else row["split"]].append(tar)
        # where each clip begins, and where the last one ends
        offsets = [*starts[row["shard"]], row["bytes"] - _END]
        indexes[f"{tar}.idx"] = np.array(offsets, "<u8").tobytes()
    dataset = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    return {
        ".nv-meta/.info.json": json.dumps({"shard_counts": counts}, indent=1).encode(),
        ".nv-meta/split.yaml": yaml.safe_dump(
            {"split_parts": dict(splits), "exclude": []}
        ).encode(),
        ".nv-meta/dataset.yaml": yaml.safe_dump(dataset, sort_keys=False).encode(),
        **indexes,
    }


def _starts(snapshot: Snapshot) -> dict[str, list[int]]:
    """Map each shard to the offsets of its clips: a clip begins with the header of `KEY.json`."""
    starts: dict[str, list[int]] = defaultdict(list)
    for row in snapshot.clips.select(["shard", "json_offset"]).to_pylist():
        starts[row["shard"]].append(row["json_offset"] - _HEADER)
    return {shard: sorted(offsets) for shard, offsets in starts.items()}
