"""Models are not evaluated on what they were trained on, unless the results say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.errors import SettingsError
from tests.helpers.evaluation import evaluate
from tests.trainer.conftest import panning_clip, publish
from tests.trainer.evaluate.heldout.test_label_free import arguments
from trainer.data.footage import Footage
from trainer.evaluate.overlap import check_overlap
from trainer.training_footage import NOTHING, UNKNOWN, TrainingFootage


def test_a_build_split_again_with_another_salt_is_refused(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was trained on the clips 0 to 9. Here 8 to 11 are held out."""
    clips = [
        panning_clip(f"made-{i:02d}", i, split="eval" if 8 <= i < 12 else "train")
        for i in range(14)
    ]
    publish(tmp_path / "again", clips)
    command = arguments(tmp_path / "again", a_run, tmp_path / "out", "--pictures", "0")
    assert evaluate(command) == 1
    message = (
        "'trained' was trained on 2 of 4 sequences of these clips, such as "
        "video_folder/made/made-08"
    )
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            f"{message}: evaluate on other clips, or give '--allow-overlap', which has the results "
            "say so"
        )
    )
    assert not (tmp_path / "out").exists()

    assert evaluate([*command, "--allow-overlap"]) == 0
    printed = capsys.readouterr().out
    assert "\n'base' was not trained on these clips.\n" in printed
    assert f"\n{message}.\n" in printed
    written = json.loads((tmp_path / "out" / "labelfree.json").read_text())
    assert written["training_overlap"]["base"]["overlap"] == "none"
    assert written["training_overlap"]["trained"] == {
        "overlap": "found",
        "sequences": 2,
        "of_sequences": 4,
        "parts": 0,
        "of_parts": 0,
        "examples": ["video_folder/made/made-08", "video_folder/made/made-09"],
        "trained_on": {"sequences": 10, "parts": 0, "complete": True},
    }


SHOWN = Footage(("a/1", "a/2", "a/3"), ("shape:cup", "texture:oak"))


@pytest.mark.parametrize(
    ("trained_on", "overlap", "sentence"),
    [
        (NOTHING, "none", "'m' was not trained on these clips"),
        (UNKNOWN, "unknown", "it is unknown whether 'm' was trained on these clips"),
        (
            TrainingFootage.of(Footage(("a/4",), ("texture:elm",))),
            "none",
            "'m' was not trained on these clips",
        ),
        (
            UNKNOWN.union(TrainingFootage.of(Footage(("a/4",)))),
            "unknown",
            "'m' was not trained on these clips; of the weights that it started from it is unknown",
        ),
    ],
)
def test_without_overlap_the_results_say_how_sure_that_is(
    trained_on: TrainingFootage, overlap: str, sentence: str
) -> None:
    (result,) = check_overlap({"m": trained_on}, SHOWN, allow=False)
    assert result.to_json()["overlap"] == overlap
    assert str(result) == sentence


@pytest.mark.parametrize(
    ("seen", "shares"),
    [
        (Footage(("a/3", "a/9")), "1 of 3 sequences of these clips, such as a/3"),
        (Footage((), ("texture:oak",)), "1 of 2 parts of these clips, such as texture:oak"),
        (
            Footage(("a/1", "a/3"), SHOWN.parts),
            "2 of 3 sequences and 2 of 2 parts of these clips, such as a/1",
        ),
    ],
)
def test_sequences_and_parts_of_scenes_are_counted(seen: Footage, shares: str) -> None:
    models = {"first": UNKNOWN, "m": UNKNOWN.union(TrainingFootage.of(seen))}
    with pytest.raises(SettingsError, match=f"^'m' was trained on {shares}: evaluate on other"):
        check_overlap(models, SHOWN, allow=False)
    assert [overlap.found for overlap in check_overlap(models, SHOWN, allow=True)] == [False, True]
