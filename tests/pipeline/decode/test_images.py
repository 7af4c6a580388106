"""Image files, loose and in zips, bad ones included."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decode.images import read_image
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError


def test_images_are_read_upright_from_folders_and_zips(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be rotated by 90 degrees to the right
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture).convert("P").save(tmp_path / "palette.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "grey.png", "in/grey.png")
    turned = read_image(str(tmp_path), "turned.png")
    assert turned.shape == (30, 20, 3)
    assert turned[:, 15:].min() == 255
    assert turned[:, :5].max() == 0
    for name in ("grey.png", "palette.png", "a.zip!in/grey.png"):
        assert np.array_equal(read_image(str(tmp_path), name), picture), name


def test_a_zip_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    for brightness in (50, 200):
        Image.new("L", (8, 8), brightness).save(tmp_path / "x.png")
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
            archive.write(tmp_path / "x.png", "x.png")
        (tmp_path / "new.zip").replace(tmp_path / "a.zip")
        assert read_image(str(tmp_path), "a.zip!x.png").max() == brightness


def test_bad_images_are_refused_with_a_reason_and_the_others_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.jpg")
    with zipfile.ZipFile(tmp_path / "flipped.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"0123456789" * 500)
    packed = bytearray((tmp_path / "flipped.zip").read_bytes())
    # The first bytes of the packed data, after a header of 30 bytes and the name.
    packed[35:45] = b"\xff" * 10
    (tmp_path / "flipped.zip").write_bytes(packed)
    bad = {
        "flipped.zip!a.jpg": "unreadable image",
        "truncated.jpg": "unreadable image",
        "empty.jpg": "unreadable image",
        "text.jpg": "unreadable image",
        "broken.zip!a.jpg": "unreadable image",
        "missing.jpg": "missing image",
        "missing.zip!a.jpg": "missing image",
        "black.jpg": "black image",
    }
    for name, reason in bad.items():
        with pytest.raises(DecodeError) as error:
            read_image(str(tmp_path), name)
        assert error.value.reason == reason, name
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        got = decoder.read_images(
            str(tmp_path), ["whole.jpg", *bad, "whole.jpg"], StoredForm(short_side=32)
        )
    assert [isinstance(image, DecodeError) for image in got] == [False] + [True] * len(bad) + [
        False
    ]
    assert isinstance(got[0], StoredFrame)
    assert got[0].pixels.shape == (32, 32, 3)
    assert got[0].source_size == (64, 64)
