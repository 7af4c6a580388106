"""Load the clips of a build with plain PyTorch: python examples/load_in_pytorch.py OUT

Nothing here needs pretrack, and frames are JPEGs, so no video decoder is needed either. OUT is the
output folder of a build on a disk. Copy `read_a_shard.py` along with this file.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from read_a_shard import read_shard
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.io import decode_jpeg


class Clips(IterableDataset[dict[str, Any]]):
    """The clips of the current snapshot; the workers of a loader share its shards."""

    def __init__(self, out: Path) -> None:
        snapshot = json.loads((out / "current.json").read_text())["snapshot"]
        names = (out / "snapshots" / snapshot / "shards.txt").read_text().split()
        self.shards = [str(out / name) for name in names]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        for shard in self.shards[worker.id :: worker.num_workers] if worker else self.shards:
            for clip in read_shard(shard):
                encoded = [
                    torch.frombuffer(bytearray(it), dtype=torch.uint8) for it in clip["jpegs"]
                ]
                yield {
                    "key": clip["key"],
                    "frames": torch.stack(decode_jpeg(encoded)),  # [T, 3, H, W]
                    "positions": torch.from_numpy(clip["tracks"]["positions"]),  # [A, T, N, 2]
                    "visibility": torch.from_numpy(clip["tracks"]["visibility"]),  # [A, T, N]
                }


def main(out: str) -> None:
    # Clips differ in length: a batch is a list. To stack clips, cut them to one length first.
    for batch in DataLoader(Clips(Path(out)), batch_size=4, num_workers=2, collate_fn=list):
        for clip in batch:
            print(clip["key"], tuple(clip["frames"].shape), tuple(clip["positions"].shape))


if __name__ == "__main__":
    main(sys.argv[1])
