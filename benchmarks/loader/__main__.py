"""Compare the speed of reading clips with other libraries: `python -m benchmarks.loader [FOLDER]`.

Every reader returns the same 4 frames of the same clips of real video, at 224x224, with their
tracks, in one process and in two: ours in a shuffled order, the others in their own order. The
floor only decodes and resizes JPEGs that are already in memory. Readers take turns; a ratio is the
median over rounds of the floor's time divided by the reader's time in the same round. Times are CPU
time of all processes together, which does not count waiting for a busy machine. With `data.resize:
device` our reader ends with crops in the training process, and with `data.decode: device` with
JPEGs there; where there is a CUDA device, with frames on it. Without one, the device's part of the
work is left out. Readers whose package is not installed are left out (`pip install litdata
mosaicml-streaming`). The data is kept in FOLDER, or deleted at the end if no folder is given.

`--memory MINUTES` instead streams for this time with two workers, and prints the memory of each:
USS is a worker's own memory, PSS adds its share of memory shared with other processes.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import cv2
import torch

from benchmarks.loader.comparison import compare
from benchmarks.loader.pretrack_figures import print_bytes_fetched, watch_memory
from benchmarks.real_clips import ClipsOnDisk, write_all_formats


def main(folder: Path | None, memory: float | None, only: str) -> None:
    """Print the tables."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        for frames in (24, 48):
            data = ClipsOnDisk((folder or Path(temporary)) / str(frames), frames)
            write_all_formats(data)
            if memory:
                watch_memory(data, memory)
                return
            for processes in (1, 2):
                print(
                    f"\n4 of {frames} frames, {processes} process{'es' if processes > 1 else ''}\n"
                )
                print("| reader | CPU ms per clip | relative to the floor |\n|---|---|---|")
                compare(data, processes, only)
            print_bytes_fetched(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--memory", type=float, metavar="MINUTES")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="readers with this in their name"
    )
    given = parser.parse_args()
    main(given.folder, given.memory, given.only)
