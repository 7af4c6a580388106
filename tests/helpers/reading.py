"""A rank that reads clips and can be killed at any moment: `python -m tests.helpers.reading JSON`.

After each batch it appends a line of JSON to its file: the keys and a digest per clip, and the
loader's state after the batch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings


def read(
    path: Path,
    data: dict[str, Any],
    steps: int,
    batch: int,
    rank: int,
    world: int,
    workers: int,
    state: dict[str, Any] | None,
) -> None:
    """Read `steps` batches, from `state` on if it is given."""
    torch.set_num_threads(1)
    settings = DataSettings.model_validate(data)
    dataset = ClipDataset(open_snapshots(settings), settings, seed=7)
    loader = Loader(dataset, dataset.sampler(batch, rank, world), workers)
    if state:
        loader.load_state_dict(state)
    with path.open("a") as file:
        for sample in islice(loader, steps):
            clips = [
                [key, hashlib.sha1(frames.numpy().tobytes() + points.numpy().tobytes()).hexdigest()]
                for key, frames, points in zip(
                    sample["key"], sample["frames"], sample["positions"], strict=True
                )
            ]
            file.write(json.dumps({"clips": clips, "state": loader.state_dict()}) + "\n")
            file.flush()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    read(Path(arguments.pop("path")), **arguments)
