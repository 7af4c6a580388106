"""Weights say what they were trained on, wherever they are copied and whatever is trained next."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.snapshot import Snapshot
from manifests.tables import CLIPS, read_table, without_added, write_table
from shards.errors import SettingsError
from tests.trainer.conftest import panning_clip, publish
from trainer.checkpoint import newest_checkpoint
from trainer.config import TrainSettings
from trainer.data.dataset import ClipDataset
from trainer.data.footage import Footage, footage_of
from trainer.export import export_weights, read_description
from trainer.model.backbone import make_backbone
from trainer.train import train
from trainer.training_footage import NOTHING, UNKNOWN, TrainingFootage, training_footage

Make = Callable[..., TrainSettings]


def table(*rows: tuple[str, str, list[str] | None]) -> pa.Table:
    names = ("dataset", "sequence", "parts")
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows],
        pa.schema([CLIPS.field(name) for name in names]),
    )


def test_names_of_footage_have_their_dataset_and_one_form_of_unicode() -> None:
    clips = table(
        ("co3d", "co3d/189_20393", None),
        ("co3d", "co3d/189_20393", None),
        ("mine", "0001", ["oak", "cafe\u0301"]),
        ("mine", "mine/0001", ["oak", "caf\u00e9"]),
        ("mine", "mine2/0001", []),
    )
    assert footage_of(clips) == Footage(
        ("co3d/189_20393", "mine/0001", "mine/mine2/0001"), ("caf\u00e9", "oak")
    )


def test_the_digests_in_a_file_stay() -> None:
    """8 bytes of BLAKE2b, little-endian, in increasing order."""
    trained_on = TrainingFootage.of(Footage(("a", "b", "c"), ("oak",)))
    document = json.loads(trained_on.to_metadata())
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in "abc"]
    digests.sort(key=lambda digest: int.from_bytes(digest, "little"))
    oak = hashlib.blake2b(b"oak", digest_size=8).digest()
    assert document == {
        "version": 1,
        "sequences": base64.b64encode(b"".join(digests)).decode(),
        "parts": base64.b64encode(oak).decode(),
        "complete": True,
    }
    read = TrainingFootage.from_metadata(trained_on.to_metadata())
    assert read.shared_with(Footage(("A", "b", "d"), ("oak", "elm"))) == Footage(("b",), ("oak",))


def test_a_hundred_thousand_sequences_take_little_more_than_a_megabyte() -> None:
    names = tuple(f"video_folder/{number:06d}" for number in range(100_000))
    text = TrainingFootage.of(Footage(names)).to_metadata()
    assert len(text) == pytest.approx(100_000 * 8 * 4 / 3, rel=1e-3)
    assert (
        TrainingFootage.from_metadata(text).shared_with(Footage(names[-3:])).sequences
        == (names[-3:])
    )


def test_what_is_unknown_of_one_part_is_unknown_of_the_whole() -> None:
    one = TrainingFootage.of(Footage(("a", "b")))
    assert not UNKNOWN.union(one).complete
    assert NOTHING.union(one).complete
    both = one.union(TrainingFootage.of(Footage(("b", "c"))))
    assert both.shared_with(Footage(("a", "b", "c", "d"))).sequences == ("a", "b", "c")
    assert both.to_json() == {"sequences": 3, "parts": 0, "complete": True}


def known(weights: Path | str, names: list[str]) -> list[str]:
    """Return which of the clips `names` a weight file says that it was trained on."""
    shown = Footage(tuple(f"video_folder/made/{name}" for name in names))
    return [
        name.rsplit("/", 1)[1]
        for name in training_footage(str(weights)).shared_with(shown).sequences
    ]


@pytest.mark.slow
def test_training_goes_on_with_what_the_start_weights_were_trained_on(
    settings: Make, tmp_path: Path
) -> None:
    names = [f"made-{i:02d}" for i in range(14)]
    first = train(settings(run={"steps": 1}))
    assert known(first, names) == names[:10], "and not the held-out ones"
    before = first.with_name("step_00000000.safetensors")
    assert training_footage(str(before)).to_json() == NOTHING.to_json()
    assert read_description(first)["trained_on"] == {
        "sequences": 10,
        "parts": 0,
        "complete": True,
    }
    # The run is resumed without its start weights: its checkpoint says what they were trained on.
    publish(tmp_path / "other", [panning_clip(f"made-{i:02d}", i) for i in range(20, 30)])
    moved = shutil.copy(first, tmp_path / "copied.safetensors")
    model = settings().model.model_dump() | {"weights": str(moved)}
    data = {"out": str(tmp_path / "other"), "size": 64, "step": 2}
    again = {"out": tmp_path / "again", "steps": 1}
    train(settings(data=data, model=model, run=again))
    Path(moved).unlink()
    last = train(settings(data=data, model=model, run=again | {"steps": 2}))
    names += [f"made-{i:02d}" for i in range(20, 31)]
    expected = names[:10] + names[14:24]
    assert known(last, names) == expected
    assert training_footage(str(last)).complete
    checkpoint = newest_checkpoint(tmp_path / "again")
    assert known(f"{checkpoint}:teacher", names) == expected


def test_weights_of_others_and_of_earlier_versions_say_nothing(
    settings: Make, tmp_path: Path
) -> None:
    state = {"patch_embed.proj.weight": torch.zeros(1)}
    save_file(state, tmp_path / "published.safetensors", {"format": "pt"})
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    for name in ("published.safetensors", "w.pth", "old.pth", "broken.safetensors", "gone.pth"):
        assert training_footage(str(tmp_path / name)) is UNKNOWN
    assert training_footage("hub") is UNKNOWN
    assert training_footage("random") is NOTHING


def test_damaged_digests_are_one_sentence(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"version": 2}', '{"version": 1, "sequences": "AAA", "parts": ""}'):
        save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"pretrack_trained_on": text})
        with pytest.raises(SettingsError, match=r"w\.safetensors was trained on is damaged \("):
            training_footage(str(tmp_path / "w.safetensors"))


def test_parts_of_scenes_are_exported_and_tables_without_them_are_read(
    settings: Make, tmp_path: Path
) -> None:
    snapshot = publish(tmp_path, [panning_clip(f"made-{i}", i) for i in range(2)])
    path = snapshot.folder / "clips.parquet"
    clips = read_table(path, CLIPS.names)
    parts = pa.array([["oak", "cup"], ["oak"]], CLIPS.field("parts").type)
    write_table(path, clips.set_column(CLIPS.get_field_index("parts"), CLIPS.field("parts"), parts))
    s = settings(data={"out": str(tmp_path), "size": 64})
    footage = ClipDataset([Snapshot(snapshot.out, snapshot.name)], s.data, seed=1).footage
    assert footage == Footage(
        ("video_folder/made/made-0", "video_folder/made/made-1"), ("cup", "oak")
    )

    torch.manual_seed(0)
    backbone = make_backbone(s.model.backbone, "random", s.model.options)
    weights = export_weights(backbone, s, [snapshot], 3, TrainingFootage.of(footage))
    assert training_footage(str(weights)).shared_with(footage) == footage
    state = load_file(weights)
    assert all(
        torch.equal(state[name], value) for name, value in backbone.model.state_dict().items()
    )
    # The library reads metadata in any order; the file has always the same.
    written = weights.read_bytes()
    assert written[8:].startswith(b'{"__metadata__":{"format":"pt","pretrack_trained_on":"{')
    assert int.from_bytes(written[:8], "little") % 8 == 0

    write_table(path, read_table(path, without_added(CLIPS.names)))
    earlier = ClipDataset([Snapshot(snapshot.out, snapshot.name)], s.data, seed=1)
    assert earlier.footage == replace(footage, parts=())
    assert np.array_equal(
        TrainingFootage.of(earlier.footage).sequences, TrainingFootage.of(footage).sequences
    )
