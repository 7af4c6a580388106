"""Load clips and the table of clips with Hugging Face datasets, from a folder with a card.

Usage: python load_with_datasets.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import load_dataset


def main(out: str) -> None:
    for split, clips in load_dataset(out, streaming=True).items():
        for clip in clips:
            # frames are columns; those after the last frame of a shorter clip are null
            frames = [clip[name] for name in sorted(clip) if name.endswith(".jpg") and clip[name]]
            cameras = [camera for camera in clip["json"]["cameras"] or () if camera]
            print(split, clip["__key__"], len(frames), frames[0].size, len(cameras), "cameras")
            assert clip["tracks.zst"][:4] == b"PTRK"  # unpacked: a record per anchor

    snapshot = json.loads((Path(out) / "current.json").read_text())["snapshot"]
    files = f"{out}/snapshots/{snapshot}/clips.parquet"
    table = load_dataset("parquet", data_files=files, split="train")
    print(table.num_rows, "clips of", table["frames"][:], "frames")


if __name__ == "__main__":
    main(sys.argv[1])
