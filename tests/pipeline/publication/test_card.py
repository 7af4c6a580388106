"""The card of a build: other loaders read clips of unequal lengths by it, and people its text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zstandard

from manifests.snapshot import Snapshot
from manifests.terms import SPDX, Terms
from pipeline.inspection.contact_sheet import read_clip
from pipeline.publication import card_files
from pipeline.publication.card_files import write_card_files
from pipeline.publication.licences import check_publishable, licence_header, terms_of_snapshot
from shards.clip import Camera, ClipInfo
from shards.codec import encode_tracks
from shards.errors import PretrackError
from shards.files import Location
from tests.helpers.published import publish_clips
from tests.pipeline.publication.conftest import clip_with_terms, publish_free

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def carded(snapshot: Snapshot) -> Path:
    """An output folder with its card, and with a receipt as builds write it."""
    assert isinstance(snapshot.out, Path)
    (snapshot.out / ".receipts").mkdir()
    (snapshot.out / ".receipts" / "made.json").write_text('{"planned": []}')
    write_card(snapshot)
    return snapshot.out


def write_card(snapshot: Snapshot) -> list[Location]:
    return write_card_files(snapshot, terms_of_snapshot(snapshot), "Pans")


def header_of(card: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(card.read_text().split("---\n")[1]))


def test_the_header_names_the_shards_and_a_column_for_each_frame(carded: Path) -> None:
    header = header_of(carded / "README.md")
    (tar,) = (carded / "shards").glob("*.tar")
    assert header["license"] == "cc-by-4.0"
    assert header["pretty_name"] == "Pans"
    assert header["size_categories"] == ["n<1K"]
    (config,) = header["configs"]
    assert config["data_files"] == [{"split": "train", "path": [f"shards/{tar.name}"]}]
    columns = {column["name"]: column for column in header["dataset_info"][0]["features"]}
    frames = [f"{number:03d}.jpg" for number in range(9)]
    assert [*columns] == ["__key__", "__url__", "json", "tracks.zst", "scores.zst", *frames]
    described = {column["name"]: column for column in columns["json"]["struct"]}
    assert {*described} == {field.name for field in fields(ClipInfo)}
    assert [it["name"] for it in described["cameras"]["list"]] == [
        field.name for field in fields(Camera)
    ]


def test_the_card_tells_the_terms_and_how_it_was_made(carded: Path) -> None:
    card = (carded / "README.md").read_text()
    assert "4 video clips of 26 frames with point tracks, in 1 shard" in card
    assert "\n- CC-BY-4.0; by Ada\n" in card
    assert "Frames CC-BY-4.0, tracks without licensed weights" in card
    assert "root: PATH/pans" in card
    assert "/home/ada" not in card
    for picture in ("made-0-000000", "lengths", "motion"):
        assert re.search(rf"""[("]pictures/card/{picture}.png[")]""", card)
        assert (carded / "pictures" / "card" / f"{picture}.png").read_bytes()[1:4] == b"PNG"


def test_the_code_on_the_card_decodes_the_tracks(carded: Path, snapshot: Snapshot) -> None:
    code = re.findall(r"```python\n(.*?)```", (carded / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    clip = read_clip(snapshot, snapshot.clips.to_pylist()[2])
    unpack = zstandard.ZstdDecompressor().decompress
    records = list(names["decode_tracks"](b"".join(map(unpack, encode_tracks(clip.tracks)))))
    assert [anchor for anchor, *_ in records] == [0, 4]
    for row, (_, positions, visibility, confidence) in enumerate(records):
        assert (positions.transpose(1, 2, 0) == clip.tracks.positions[row]).all()
        assert (visibility == clip.tracks.visibility[row] / 255).all()
        assert (confidence == clip.tracks.confidence[row] / 255).all()
    with pytest.raises(ValueError, match="not tracks of version 2"):
        list(names["decode_tracks"](bytes(40)))


def test_text_below_the_card_is_kept_and_a_foreign_card_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_files, "_CHARTS", ())  # they take a second to draw
    snapshot = publish_free(tmp_path / "out", (4,))
    card = tmp_path / "out" / "README.md"
    write_card(snapshot)
    written = card.read_text()
    card.write_text(written + "Filmed by Ada.\n")
    write_card(snapshot)
    assert card.read_text() == written + "Filmed by Ada.\n"
    # As some editors save it: with other ends of lines, or without the last one.
    card.write_bytes((written + "Filmed by Ada.\n").replace("\n", "\r\n").encode())
    write_card(snapshot)
    assert card.read_text() == written + "Filmed by Ada.\n"
    card.write_text(written.rstrip("\n"))
    write_card(snapshot)
    assert card.read_text() == written
    card.write_text("My notes")
    with pytest.raises(PretrackError, match=r"README.md was not written by 'pretrack card': move"):
        write_card(snapshot)
    assert card.read_text() == "My notes"


def test_names_of_others_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_files, "_CHARTS", ())
    clip = clip_with_terms(0, 4, "MIT; <script>alert(1)</script> | `rm`")
    snapshot = publish_clips(tmp_path / "out", [clip], settings={"tracks": {}})
    write_card(snapshot)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n- MIT; &lt;script>alert(1)&lt;/script> \\| 'rm'\n" in card


@pytest.mark.parametrize(
    ("licences", "tracks", "header"),
    [
        (["MIT"], None, {"license": "mit"}),
        (["CC-BY-4.0"], "Apache-2.0", {"license": ["cc-by-4.0", "apache-2.0"]}),
        (["MIT"], "MIT", {"license": "mit"}),
    ],
)
def test_the_header_states_each_licence_once(
    licences: list[str], tracks: str | None, header: dict[str, Any]
) -> None:
    frames = tuple(SPDX[licence] for licence in licences)
    weights = SPDX[tracks] if tracks else None
    assert licence_header(Terms(frames, weights, True, True)) == header


@pytest.mark.parametrize(
    ("dataset", "terms", "tracks", "sentence"),
    [
        (
            "co3d",
            "",
            {"tracker": "lucas_kanade"},
            r"nor privately: the licence of its frames, CC-BY-NC-4.0 \(https://github.com/"
            r"facebookresearch/co3d/blob/main/LICENSE\), forbids commercial use",
        ),
        ("dl3dv", "", {"tracker": "lucas_kanade"}, "LicenseRef-DL3DV.* forbids to pass them on"),
        ("video_folder", "not stated", {"tracker": "lucas_kanade"}, "its frames is unknown; let"),
        (
            "video_folder",
            "MIT",
            {"tracker": "cotracker3", "weights": "scaled_offline"},
            "the licence of its tracks, CC-BY-NC-4.0 .* forbids commercial use",
        ),
        ("video_folder", "MIT", {"tracker": "tapir", "weights": "my.pt"}, "its tracks is unknown"),
    ],
)
def test_what_the_licences_forbid_is_not_published(
    dataset: str, terms: str, tracks: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    clip = clip_with_terms(0, 4, terms)
    object.__setattr__(clip.info, "dataset", dataset)
    snapshot = publish_clips(tmp_path / "out", [clip], settings={"tracks": tracks})
    with pytest.raises(PretrackError, match=sentence):
        check_publishable(snapshot, terms_of_snapshot(snapshot))


def test_what_the_licences_allow_is_published(snapshot: Snapshot) -> None:
    check_publishable(snapshot, terms_of_snapshot(snapshot))


def test_energons_index_has_the_offset_of_each_clip(carded: Path) -> None:
    (tar,) = (carded / "shards").glob("*.tar")
    with tarfile.open(tar) as opened:
        starts = [it.offset for it in opened if it.name.endswith(".json")]
        end = opened.offset
    index = np.fromfile(f"{tar}.idx", "<u8")
    assert index.tolist() == [*starts, end]
    counts = json.loads((carded / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert counts == {f"shards/{tar.name}": 4}
    splits = yaml.safe_load((carded / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    assert splits == {"train": [f"shards/{tar.name}"]}


def run_example(name: str, out: Path, home: Path) -> list[str]:
    """Run an example as a user does, without the network; return the lines it prints."""
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", out],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_load_dataset_reads_clips_of_unequal_lengths_and_a_table(
    carded: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    # every second frame has a camera
    assert run_example("load_with_datasets", carded, tmp_path) == [
        "train made-0-000000 4 (96, 64) 2 cameras",
        "train made-1-000000 6 (96, 64) 3 cameras",
        "train made-2-000000 9 (96, 64) 4 cameras",
        "train made-3-000000 7 (96, 64) 3 cameras",
        "4 clips of [4, 6, 9, 7] frames",
    ]


@pytest.mark.slow
def test_croissant_metadata_are_valid_and_lead_to_the_table_of_clips(carded: Path) -> None:
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(jsonld=str(carded / "croissant.json"))
    assert dataset.metadata.issues.report() == ""
    records = list(dataset.records("clips"))
    assert [record["clips/frames"] for record in records] == [4, 6, 9, 7]
    assert records[0]["clips/key"] == b"made-0-000000"


@pytest.mark.slow
def test_energon_reads_the_folder_without_preparing_it(carded: Path, tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon")
    lines = run_example("read_with_energon", carded, tmp_path)
    assert sorted(lines) == [
        "made-0-000000 4 (3, 64, 96)",
        "made-1-000000 6 (3, 64, 96)",
        "made-2-000000 9 (3, 64, 96)",
        "made-3-000000 7 (3, 64, 96)",
    ]
