"""Decode in a child process that can be killed: the parent's side (`worker` is the child's)."""

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

from numpy.typing import NDArray

from pipeline.decode.messages import (
    Answer,
    DeviceMissing,
    EncodedClip,
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
    StoredForm,
    StoredFrame,
    VideoRequest,
)
from pipeline.decode.video import Decoder
from pipeline.failures import DecodeError, MachineError, Reason
from pipeline.sources.video import Scan


class SubprocessDecoder:
    """Decode in a child process, which is killed if it sends nothing for `stall_limit_s` seconds.

    Native decoders can loop forever without returning to Python; then only SIGKILL helps. The child
    is started by the first request, kept for the next ones, and replaced after it died. Linux kills
    the child when the *thread* that started it ends, so a decoder belongs to one thread.
    """

    def __init__(self, stall_limit_s: float) -> None:
        self.stall_limit_s = stall_limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def scan(self, path: str, shot_cuts: bool) -> Scan:
        """Decode a video file from end to end. Raises DecodeError."""
        (result,) = self._ask(ScanRequest(path, shot_cuts))
        return result  # type: ignore[no-any-return]

    def read_video(
        self,
        path: str,
        *,
        decoder: Decoder,
        ledger: bytes,
        indices: Sequence[int],
        form: StoredForm,
    ) -> Iterator[StoredFrame]:
        """Read the frames of a video file at increasing `indices`, in one pass over the file.

        `ledger` is the packed ledger of the file's scan; every frame is compared with it. Raises
        DecodeError at the first frame that cannot be read; those before it have been yielded.
        """
        request = VideoRequest(
            path=path, decoder=decoder, ledger=ledger, indices=tuple(indices), form=form
        )
        count = 0
        for frame in self._ask(request):
            yield frame
            count += 1
        if count != len(indices):
            raise DecodeError(
                f"the decoder gave {count} frames of {len(indices)}", Reason.DECODER_FAILED
            )

    def encode_clips(
        self,
        path: str,
        *,
        device: str,
        ledger: bytes,
        clips: Sequence[Sequence[int]],
        form: StoredForm,
        jpeg_quality: int,
    ) -> list[EncodedClip | DecodeError]:
        """Read and encode clips of a video file on a device, each given by its frames' indices.

        Returns for each clip its encoded frames, or why the device could not decode or prove them.
        Raises MachineError if this machine lacks what the device needs.
        """
        request = EncodeRequest(
            path=path,
            device=device,
            ledger=ledger,
            clips=tuple(tuple(indices) for indices in clips),
            form=form,
            jpeg_quality=jpeg_quality,
        )
        results: list[EncodedClip | DecodeError] = []
        try:
            for result in self._ask(request):
                results.append(result)
        except DecodeError as error:  # the file, or the process, failed the clips that are left
            results += [error] * (len(clips) - len(results))
        if any(getattr(result, "reason", None) is Reason.DECODER_FAILED for result in results):
            # After an error of CUDA itself a process can do no more work on its GPU.
            self.close()
        return results

    def read_images(
        self, root: str, names: Sequence[str], form: StoredForm
    ) -> list[StoredFrame | DecodeError]:
        """Read image files: for each its frame as it is stored, or why it is unusable.

        Raises DecodeError if the child was killed or died.
        """
        return list(self._ask(ImagesRequest(root=root, names=tuple(names), form=form)))

    def read_maps(self, request: MapsRequest) -> list[NDArray[Any] | DecodeError]:
        """Read depth maps, then masks: for each its values as stored, or why it is unusable.

        Raises DecodeError if the child was killed or died.
        """
        return list(self._ask(request))

    def render(self, dataset: str, root: str, names: Sequence[str]) -> None:
        """Render those files of a video, named as in its row, that are not in the root yet.

        Raises DecodeError if they cannot be written, MachineError if this machine cannot render.
        """
        for _ in self._ask(RenderRequest(dataset, root, tuple(names))):
            pass

    def close(self) -> None:
        """Kill the child. The decoder stays usable: the next request starts another child."""
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

    def _ask(self, request: Request) -> Iterator[Any]:
        """Send a request and yield its results; a failed item is yielded as a DecodeError.

        Raises DecodeError if the request failed, or the child stalled (it is killed) or died.
        """
        pipe = self._start()
        try:
            pipe.send(request)
            while True:
                match self._receive(pipe):
                    case Progress():
                        continue
                    case Result(value):
                        yield value
                    case ItemFailed(message, reason):
                        yield DecodeError(message, reason)
                    case RequestFailed(message, reason):
                        raise DecodeError(message, reason)
                    case DeviceMissing(message):
                        raise MachineError(message)
                    case RequestDone():
                        return
        except (EOFError, OSError) as error:
            # The child's end of the pipe is closed, perhaps in mid-message: the process is gone.
            raise DecodeError(
                f"the decoder process {self._reap()}", Reason.DECODER_CRASHED
            ) from error
        except (DecodeError, MachineError):
            # After a failed request the child waits for the next one, and is kept.
            raise
        except BaseException:
            # Interrupted, or abandoned by the caller: the pipe may hold a part of an answer, which
            # the next request must not receive.
            self.close()
            raise

    def _receive(self, pipe: Connection) -> Answer:
        """Receive the next answer. Kills the child and raises DecodeError if it stalls."""
        if not pipe.poll(self.stall_limit_s):
            self.close()
            raise DecodeError(
                f"the decoder gave nothing for {self.stall_limit_s:g} s and was stopped "
                "(frames.decode_timeout_s)",
                Reason.DECODER_STALLED,
            )
        return pipe.recv()  # type: ignore[no-any-return]

    def _start(self) -> Connection:
        """Return the pipe to the child, after starting one if none is running."""
        if self._pipe is None or self._child is None or self._child.poll() is not None:
            self.close()
            self._pipe, child_end = Pipe()
            # A new interpreter, not a fork: threads of this process (Ray's) do not survive a fork.
            command = [
                sys.executable,
                "-m",
                "pipeline.decode.worker",
                str(child_end.fileno()),
                str(os.getpid()),
            ]
            # The child imports from the same folders: Ray extends sys.path in its workers.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            self._child = subprocess.Popen(
                command, pass_fds=[child_end.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
            # The child holds the only other end: when it dies, reading raises EOFError here.
            child_end.close()
        return self._pipe

    def _reap(self) -> str:
        """Wait for a child that is ending, and describe how it ended."""
        code = self._child.wait() if self._child else 0
        self.close()
        return (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit status {code}"
        )
