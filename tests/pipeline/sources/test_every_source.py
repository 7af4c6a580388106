"""What holds for the sources of every dataset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pipeline.config import BuildSettings
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.sources import Source
from shards.errors import PretrackError


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("video_folder", "{}"),
        ("co3d", "apple/{}/images"),
        ("youtube_vos", "train/JPEGImages/{}"),
        ("dl3dv", "1K/{}/images_8"),
    ],
)
def test_a_file_name_that_is_not_utf8_is_a_failure_and_the_rest_is_used(
    tmp_path: Path, dataset: str, folder: str
) -> None:
    for name in ("good", os.fsdecode(b"b\xff")):
        for number in (1, 2):
            touch(tmp_path / folder.format(name) / f"frame{number:05d}.jpg")
    settings = BuildSettings.model_validate(
        {"sources": [{"dataset": dataset, "root": tmp_path}], "out": tmp_path / "out"}
    )
    found = make_catalog(settings, Progress(quiet=True))
    (video_id,) = found.videos["video_id"].to_pylist()
    named = [row for row in found.failures.to_pylist() if row["reason"] == "unusable name"]
    assert [row["video_id"] for row in named] == [video_id.replace("good", "b\\udcff")]
    assert found.videos_found == 2


def test_a_missing_or_empty_root_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    for dataset in ("co3d", "dl3dv", "youtube_vos", "video_folder"):
        source = TypeAdapter(Source).validate_python(
            {"dataset": dataset, "root": tmp_path / "none"}
        )
        with pytest.raises(
            PretrackError, match=f"the {dataset} root .*none does not exist: set 'root'"
        ):
            list(source.find_videos())
        source = TypeAdapter(Source).validate_python({"dataset": dataset, "root": tmp_path})
        with pytest.raises(PretrackError, match=r"holds no .*expected"):
            list(source.find_videos())
        source = TypeAdapter(Source).validate_python(
            {"dataset": dataset, "root": touch(tmp_path.with_suffix(".file"))}
        )
        with pytest.raises(PretrackError, match="is not a folder"):
            list(source.find_videos())
