"""Streams the shards of a build with webdataset, nothing of pretrack's: python examples/stream_with_webdataset.py OUT"""

import json
import sys
from pathlib import Path

import webdataset

out = Path(sys.argv[1])
snapshot = json.loads((out / "current.json").read_text())["snapshot"]
tars = [
    str(out / line) for line in (out / "snapshots" / snapshot / "shards.txt").read_text().split()
]
for sample in webdataset.WebDataset(tars, shardshuffle=False).decode(
    "rgb8", post=[]
):  # by itself it would unpickle, too
    info = json.loads(sample["json"])
    frames = [sample[f"{t:03d}.jpg"] for t in range(len(info["frame_numbers"]))]
    print(
        sample["__key__"],
        len(frames),
        frames[0].shape,
        len(sample["tracks.zst"]),
        "bytes of tracks",
    )
