"""Reasons of failures: what is stored, and which failures the next build retries."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from manifests.rows import Failure
from manifests.tables import FAILURES, table_of
from pipeline.failures import TRANSIENT_REASONS, DecodeError, Reason

DOCS = Path(__file__).parents[2] / "docs" / "datasets"


def failure(reason: Reason) -> Failure:
    return Failure(source="s", video_id="v", stage="decode", reason=reason, detail="d")


def test_only_failures_that_may_pass_are_retried() -> None:
    """A damaged video would be decoded again by every build; a stalled one would never be."""
    assert set(TRANSIENT_REASONS) == {
        "decoder stalled",
        "decoder crashed",
        "tracker crashed",
        "missing video",
        "missing image",
        "not rendered",
    }
    assert not Reason.DECODER_FAILED.transient
    assert not Reason.MISSING_IMAGES.transient


@pytest.mark.parametrize("reason", Reason)
def test_the_phrase_is_what_is_stored(reason: Reason) -> None:
    phrase = str.__str__(reason)
    row = {
        "source": "s",
        "video_id": "v",
        "clip": "",
        "stage": "decode",
        "reason": phrase,
        "detail": "d",
        "shard": "",
    }
    assert re.fullmatch(r"[a-z][a-z. ]*[a-z]", phrase)
    assert json.loads(json.dumps(asdict(failure(reason)))) == row
    assert Failure(**row) == failure(reason)  # type: ignore[arg-type]
    table = table_of([failure(reason)], FAILURES)
    assert table.to_pylist() == [row]
    assert f"{reason}" == phrase
    transient = pc.is_in(table["reason"], value_set=pa.array(TRANSIENT_REASONS))
    assert transient.to_pylist() == [reason.transient]


def test_a_reason_reaches_other_processes_as_itself() -> None:
    assert pickle.loads(pickle.dumps(Reason.BLACK_IMAGE)) is Reason.BLACK_IMAGE
    assert DecodeError("m").reason is Reason.UNREADABLE_VIDEO


@pytest.mark.parametrize("dataset", ["co3d", "dl3dv", "video_folder", "youtube_vos"])
def test_reasons_in_the_documentation_exist(dataset: str) -> None:
    """A user looks a reason up by the phrase that `pretrack status` prints."""
    text = (DOCS / f"{dataset}.md").read_text()
    (rows,) = re.findall(r"^\| reason.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    phrases = re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in rows.splitlines()))
    assert len(phrases) >= 4
    assert set(phrases) <= set(Reason)
