"""Images of datasets are read upright, and damaged ones are said to be so."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import PretrackError
from trainer.evaluate.benchmarks.image_datasets import open_image


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_damaged_image_is_read_or_named(kind: str, tmp_path: Path) -> None:
    """A wrong byte may be in the pixels, in the header, or in the EXIF data for the orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    stored = io.BytesIO()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (24, 30, 3), np.uint8)).save(stored, kind, exif=exif)
    path = tmp_path / "image"
    path.write_bytes(stored.getvalue())
    assert open_image(path).size == (24, 30)
    said = []
    for _ in range(500):
        data = bytearray(stored.getvalue())
        data[random.integers(min(len(data), random.choice([60, 120])))] = random.integers(256)
        path.write_bytes(data)
        try:
            open_image(path)
        except PretrackError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(sentence.startswith(f"{path} cannot be read as an image") for sentence in said)
