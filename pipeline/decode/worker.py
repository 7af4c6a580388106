"""The decoder process: does what its parent asks over a pipe, one request after the other, until the pipe closes.

It is a process of its own so that a decoder that hangs or crashes in native code can be stopped, or dies, alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import cv2

from pipeline.decode.images import read_image
from pipeline.decode.video import Decoder, read_frames, scan
from pipeline.failures import DecodeError, Reason
from shards.geometry import FrameTransform, stored_transform

_PR_SET_PDEATHSIG = 1


def answer_scan(pipe: Connection, path: str, shot_cuts: bool) -> None:
    """Sends ("alive",) for every frame, then the scan."""
    pipe.send(("result", scan(path, shot_cuts, on_frame=lambda: pipe.send(("alive",)))))


def answer_video(
    pipe: Connection,
    path: str,
    decoder: Decoder,
    timestamps: Sequence[float],
    indices: Sequence[int],
    view: FrameTransform,
) -> None:
    """Sends each frame, resized, and ("alive",) for every frame on the way to it."""
    for frame in read_frames(
        path, decoder, timestamps, indices, on_frame=lambda: pipe.send(("alive",))
    ):
        pipe.send(("result", view.frame(frame)))


def answer_images(
    pipe: Connection, root: str, names: Sequence[str], short_side: int, size: tuple[int, int] | None
) -> None:
    """Sends for each image its pixels, resized, with the (width, height) it had; or why it cannot be used."""
    for name in names:
        try:
            image = read_image(root, name)
        except DecodeError as error:
            pipe.send(("failed", str(error), error.reason))
        except Exception as error:  # Pillow has errors of many kinds for broken files: they cost this image, not its clip
            pipe.send(
                (
                    "failed",
                    f"the image cannot be read ({type(error).__name__}: {error})",
                    Reason.UNREADABLE_IMAGE,
                )
            )
        else:
            height, width = image.shape[:2]
            pipe.send(
                (
                    "result",
                    (
                        stored_transform(width, height, short_side, size).frame(image),
                        (width, height),
                    ),
                )
            )


def main(pipe: Connection, parent: int) -> None:
    """Answers requests until the parent closes the pipe. The kernel kills this process if the parent dies meanwhile."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)
    answers: dict[str, Callable[..., None]] = {
        "scan": answer_scan,
        "video": answer_video,
        "images": answer_images,
    }
    while True:
        try:
            kind, *request = pipe.recv()
        except EOFError:
            return
        try:
            answers[kind](pipe, *request)
            pipe.send(("end",))
        except DecodeError as error:
            pipe.send(("error", str(error), error.reason))
        except (
            Exception
        ) as error:  # one poisoned file must not end the job: it becomes that file's failure
            pipe.send(("error", f"{type(error).__name__}: {error}", Reason.DECODER_FAILED))


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
