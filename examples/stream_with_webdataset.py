"""Stream the shards of a build by webdataset: python examples/stream_with_webdataset.py OUT

Nothing here needs pretrack. OUT is the output folder of a build.
"""

import json
import sys
from pathlib import Path

import webdataset

out = Path(sys.argv[1])
snapshot = json.loads((out / "current.json").read_text())["snapshot"]
shards = (out / "snapshots" / snapshot / "shards.txt").read_text().split()
tars = [str(out / shard) for shard in shards]

# By default webdataset unpickles members named .pkl, which can run any code; post=[] prevents it.
for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8", post=[]):
    info = json.loads(sample["json"])
    frames = [sample[f"{t:03d}.jpg"] for t in range(len(info["frame_numbers"]))]
    tracks = sample["tracks.zst"]
    print(sample["__key__"], len(frames), frames[0].shape, len(tracks), "bytes of tracks")
