"""Decoders that hang or die in their process."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import termios
import time
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import psutil
import pytest

from pipeline.decode.messages import StoredForm
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError, Reason
from tests.helpers.panning import panning_frames, write_video


@pytest.mark.slow
def test_a_decoder_that_hangs_is_killed_and_the_next_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it blocks forever: nobody writes
    write_video(tmp_path / "good.mp4", panning_frames(0, 30, 96, 64))
    with SubprocessDecoder(stall_limit_s=3) as decoder:
        assert len(decoder.scan(str(tmp_path / "good.mp4"), shot_cuts=True).timestamps) == 30
        with pytest.raises(DecodeError, match="gave nothing for 3 s") as error:
            decoder.scan(str(tmp_path / "hangs.mp4"), shot_cuts=True)
        assert error.value.reason == "decoder stalled"
        frames = decoder.read_video(
            str(tmp_path / "good.mp4"),
            decoder="pyav",
            ledger=decoder.scan(str(tmp_path / "good.mp4"), shot_cuts=True).ledger,
            indices=[3, 20],
            form=StoredForm(short_side=32),
        )
        assert [frame.pixels.shape for frame in frames] == [(32, 48, 3)] * 2
    assert not _decoders()


def test_a_decoder_that_crashes_is_named_and_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "crashes.mp4")
    write_video(tmp_path / "good.mp4", panning_frames(0, 30, 96, 64))
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        killer = Thread(target=_crash_whoever_opens, args=(tmp_path / "crashes.mp4",))
        killer.start()
        with pytest.raises(DecodeError, match="was killed by SIGSEGV") as error:
            decoder.scan(str(tmp_path / "crashes.mp4"), shot_cuts=True)
        killer.join()
        assert error.value.reason == "decoder crashed"
        assert len(decoder.scan(str(tmp_path / "good.mp4"), shot_cuts=False).timestamps) == 30


def test_a_decoder_that_is_killed_in_mid_message_is_named_and_replaced(tmp_path: Path) -> None:
    """A frame is larger than the pipe: one that runs out of memory leaves half a message."""
    path = tmp_path / "good.mp4"
    write_video(path, panning_frames(0, 30, 96, 64))
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        ledger = decoder.scan(str(path), shot_cuts=False).ledger
        form = StoredForm(short_side=1080)
        request = {"decoder": "pyav", "ledger": ledger, "form": form}
        frames = decoder.read_video(str(path), indices=range(30), **request)  # type: ignore[arg-type]
        next(frames)
        (child,) = _decoders()
        assert decoder._pipe
        # The next message is a part of a frame: its length, and less than it says.
        while _unread(decoder._pipe) < 20_000:
            time.sleep(0.01)
        child.suspend()  # it may not send more before the kill arrives
        child.kill()
        with pytest.raises(DecodeError, match="was killed by SIGKILL") as error:
            list(frames)
        assert error.value.reason == "decoder crashed"
        frames = decoder.read_video(str(path), indices=[3, 20], **request)  # type: ignore[arg-type]
        assert len(list(frames)) == 2


def test_after_an_unreadable_file_the_same_process_reads_the_next(tmp_path: Path) -> None:
    """A restart per broken file would make a folder of them slow."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "good.mp4", panning_frames(0, 4, 96, 64))
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        with pytest.raises(DecodeError, match="cannot be opened as a video") as error:
            decoder.scan(str(tmp_path / "broken.mp4"), shot_cuts=False)
        assert error.value.reason is Reason.UNREADABLE_VIDEO
        before = _decoders()
        assert len(decoder.scan(str(tmp_path / "good.mp4"), shot_cuts=False).timestamps) == 4
        assert _decoders() == before
    assert _decoders() == []


def _crash_whoever_opens(fifo: Path) -> None:
    """Kill the decoder process once it has opened a fifo."""
    writer = os.open(fifo, os.O_WRONLY)  # waits until the decoder has opened the other end
    (decoder,) = _decoders()
    decoder.send_signal(signal.SIGSEGV)
    os.close(writer)


def _unread(pipe: Connection) -> int:
    """Return how many bytes wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]


def _decoders() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "pipeline.decode.worker" in child.cmdline()
    ]
