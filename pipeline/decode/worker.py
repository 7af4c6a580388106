"""The decoder process: answer the parent's requests one after another until the pipe closes.

It is a separate process so that a decoder that hangs in native code can be killed, and one that
crashes there takes down nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any

import cv2

from pipeline.decode import gpu
from pipeline.decode.frame_maps import read_depth, read_mask, read_video_masks
from pipeline.decode.images import read_image
from pipeline.decode.ledger import Ledger
from pipeline.decode.messages import (
    Answer,
    DeviceMissing,
    EncodeRequest,
    ImagesRequest,
    ItemFailed,
    MapsRequest,
    Progress,
    RenderRequest,
    Request,
    RequestDone,
    RequestFailed,
    Result,
    ScanRequest,
    StoredFrame,
    VideoRequest,
)
from pipeline.decode.scan import scan
from pipeline.decode.video import read_frames
from pipeline.failures import DecodeError, MachineError, Reason
from pipeline.sources.listing import numbered_part
from pipeline.sources.rendering import render_missing
from shards.geometry import FrameTransform, stored_transform

_PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that sets the signal a process gets when its parent dies."""


def main(pipe: Connection, parent: int) -> None:
    """Answer requests until the parent, the process `parent`, closes the pipe or dies."""
    # The kernel kills this process when its parent dies, even while native code holds the GIL.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died before that call is not noticed by the kernel: this process is an orphan.
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)  # workers are the parallelism
    while True:
        try:
            request: Request = pipe.recv()
        except EOFError:  # the parent closed its end
            return
        pipe.send(_answer(pipe, request))


def _answer(pipe: Connection, request: Request) -> Answer:
    """Send progress and results of a request, and return the answer that ends it."""
    try:
        match request:
            case ScanRequest():
                _answer_scan(pipe, request)
            case VideoRequest():
                _answer_video(pipe, request)
            case EncodeRequest():
                _answer_encode(pipe, request)
            case ImagesRequest():
                _answer_images(pipe, request)
            case MapsRequest():
                _answer_maps(pipe, request)
            case RenderRequest(dataset, root, names):
                render_missing(dataset, root, names, on_progress=lambda: pipe.send(Progress()))
    except MachineError as error:
        return DeviceMissing(str(error))
    except DecodeError as error:
        return RequestFailed(str(error), error.reason)
    except Exception as error:
        # Whatever a bad file triggers becomes that file's failure; it must not end the build.
        return RequestFailed(f"{type(error).__name__}: {error}", Reason.DECODER_FAILED)
    return RequestDone()


def _answer_scan(pipe: Connection, request: ScanRequest) -> None:
    """Send `Progress` per packet, then the scan."""
    result = scan(request.path, request.shot_cuts, on_frame=lambda: pipe.send(Progress()))
    pipe.send(Result(result))


def _answer_video(pipe: Connection, request: VideoRequest) -> None:
    """Send each frame, resized, and `Progress` per frame decoded and packet skipped on the way."""
    ledger = Ledger.unpack(request.ledger)
    form = request.form
    frames = read_frames(
        request.path,
        request.decoder,
        ledger,
        request.indices,
        deinterlace=form.deinterlace,
        on_frame=lambda: pipe.send(Progress()),
    )
    for index, frame in zip(request.indices, frames, strict=True):
        described = ledger.format_of(index)
        transform = FrameTransform.whole(*described.upright_size, *form.size_of(described))
        pipe.send(Result(StoredFrame(transform.frame(frame), described.upright_size)))


def _answer_encode(pipe: Connection, request: EncodeRequest) -> None:
    """Send per clip its encoded frames, or why it cannot be decoded; `Progress` in between."""
    for clip in gpu.encode_clips(request, on_frames=lambda: pipe.send(Progress())):
        if isinstance(clip, DecodeError):
            pipe.send(ItemFailed(str(clip), clip.reason))
        else:
            pipe.send(Result(clip))


def _answer_images(pipe: Connection, request: ImagesRequest) -> None:
    """Send per image its frame, resized; or why it cannot be used."""
    for name in request.names:
        try:
            image = read_image(request.root, name, request.form.max_megapixels)
        except DecodeError as error:
            pipe.send(ItemFailed(str(error), error.reason))
        except Exception as error:
            # Pillow raises errors of many types for broken files. Only the image is left out, not
            # its clip.
            message = f"the image cannot be read ({type(error).__name__}: {error})"
            pipe.send(ItemFailed(message, Reason.UNREADABLE_IMAGE))
        else:
            height, width = image.pixels.shape[:2]
            transform = stored_transform(width, height, request.form.short_side, request.form.size)
            stored = transform.frame(image.pixels)
            frame = StoredFrame(stored, (width, height), image.channels, image.left_out)
            pipe.send(Result(frame))


def _answer_maps(pipe: Connection, request: MapsRequest) -> None:
    """Send per depth map, then per mask, its values as stored; or why it cannot be used."""
    root, stored_size = request.root, request.stored_size
    for depth, size in zip(request.depths, request.source_sizes, strict=False):
        read = partial(read_depth, root, **asdict(depth), source_size=size, stored_size=stored_size)
        pipe.send(_map_answer(read))
    masks = zip(request.masks, request.source_sizes, strict=False)
    for video, group in groupby(masks, key=lambda mask: numbered_part(mask[0])[0]):
        names, sizes = zip(*group, strict=True)
        if video:
            values = read_video_masks(
                root,
                names,
                source_sizes=sizes,
                stored_size=stored_size,
                on_frame=lambda: pipe.send(Progress()),
            )
            for value in values:
                if isinstance(value, DecodeError):
                    pipe.send(ItemFailed(str(value), value.reason))
                else:
                    pipe.send(Result(value))
            continue
        for name, size in zip(names, sizes, strict=True):
            image = partial(read_mask, root, name, source_size=size, stored_size=stored_size)
            pipe.send(_map_answer(image))


def _map_answer(read: Callable[[], Any]) -> Answer:
    """Return the values of a depth map or a mask, or why it cannot be used."""
    try:
        return Result(read())
    except MachineError:
        raise
    except DecodeError as error:
        return ItemFailed(str(error), error.reason)
    except Exception as error:  # as for images
        message = f"it cannot be read ({type(error).__name__}: {error})"
        return ItemFailed(message, Reason.DEPTH_UNKNOWN)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
