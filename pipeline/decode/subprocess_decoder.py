"""Decoding in a process that can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.video import Decoder
from pipeline.failures import DecodeError, Reason
from pipeline.sources.video import Scan
from shards.geometry import FrameTransform

Frame = NDArray[np.uint8]


class SubprocessDecoder:
    """Decodes in a child process, which is started when needed and killed when it gives nothing for `stall_limit_s` seconds.

    Native decoders can spin for ever without letting Python run; then only SIGKILL helps. The next call starts a new child. The
    child dies with the thread that started it, so a decoder belongs to one thread.
    """

    def __init__(self, stall_limit_s: float) -> None:
        self.stall_limit_s = stall_limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def scan(self, path: str, shot_cuts: bool) -> Scan:
        """Decodes a video file from end to end. Raises DecodeError."""
        (found,) = self._ask("scan", path, shot_cuts)
        return found  # type: ignore[no-any-return]

    def read_video(
        self,
        path: str,
        decoder: Decoder,
        timestamps: Sequence[float],
        indices: Sequence[int],
        view: FrameTransform,
    ) -> list[Frame]:
        """Frames of a video file at increasing `indices`, resized by `view`. Raises DecodeError."""
        frames = list(self._ask("video", path, decoder, tuple(timestamps), tuple(indices), view))
        if len(frames) != len(indices):
            raise DecodeError(
                f"the decoder gave {len(frames)} frames of {len(indices)}", Reason.DECODER_FAILED
            )
        return frames

    def read_images(
        self, root: str, names: Sequence[str], short_side: int, size: tuple[int, int] | None
    ) -> list[tuple[Frame, tuple[int, int]] | DecodeError]:
        """For each image its frame, resized as stored, and the (width, height) it had; or why it cannot be used.

        Raises DecodeError if the process itself was stopped or died.
        """
        return list(self._ask("images", root, tuple(names), short_side, size))

    def close(self) -> None:
        """Ends the child. The decoder can still be used, and then starts another."""
        if self._pipe:
            self._pipe.close()
        if self._child:
            self._child.kill()
            self._child.wait()
        self._pipe = self._child = None

    def __enter__(self) -> SubprocessDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, *request: Any) -> Iterator[Any]:
        """Sends a request and yields what comes back."""
        pipe = self._start()
        try:
            pipe.send(request)
            while True:
                if not pipe.poll(self.stall_limit_s):
                    raise DecodeError(
                        f"the decoder gave nothing for {self.stall_limit_s:g} s and was stopped (frames.decode_timeout_s)",
                        Reason.DECODER_STALLED,
                    )
                kind, *content = pipe.recv()
                if kind == "end":
                    return
                if kind == "error":
                    raise DecodeError(*content)
                if kind == "failed":
                    yield DecodeError(*content)
                elif kind == "result":
                    yield content[0]
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise DecodeError(
                f"the decoder process {self._how_it_died()}", Reason.DECODER_CRASHED
            ) from error
        except DecodeError as error:
            if error.reason == Reason.DECODER_STALLED:
                self.close()
            raise
        except BaseException:
            self.close()  # an answer may be half-read: the next request must not see the rest of it
            raise

    def _start(self) -> Connection:
        if self._pipe is None or self._child is None or self._child.poll() is not None:
            self.close()
            self._pipe, theirs = Pipe()
            command = [
                sys.executable,
                "-m",
                "pipeline.decode.worker",
                str(theirs.fileno()),
                str(os.getpid()),
            ]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            self._child = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
            theirs.close()
        return self._pipe

    def _how_it_died(self) -> str:
        code = self._child.wait() if self._child else 0
        self.close()
        return (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit status {code}"
        )
