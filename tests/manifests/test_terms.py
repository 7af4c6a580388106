"""Terms follow from the licences of videos and weights: the strictest one decides."""

from __future__ import annotations

from typing import get_args

import pyarrow as pa
import pytest

from manifests.terms import DATASETS, WEIGHTS, WITHOUT_WEIGHTS, licence_of_video, terms_of
from pipeline.config import AnyTrackerSettings
from pipeline.cotracker3.weights import CHECKPOINTS as COTRACKER3
from pipeline.network_trackers.checkpoints import Checkpoints
from pipeline.sources import Source
from pipeline.tapir.weights import CHECKPOINTS as TAPIR


def videos(*rows: tuple[str, str]) -> pa.Table:
    return pa.table({"dataset": [dataset for dataset, _ in rows], "terms": [t for _, t in rows]})


@pytest.mark.parametrize(
    ("rows", "tracks", "sentence"),
    [
        (
            [("video_folder", "CC-BY-4.0; by Ada"), ("video_folder", "cc-by-4.0, by Bob")],
            {"tracker": "tapir", "weights": "bootstapir"},
            "frames CC-BY-4.0, tracks Apache-2.0; commercial use allowed, redistribution allowed",
        ),
        (
            [("synthetic", "Free."), ("video_folder", "MIT")],
            {"tracker": "cotracker3", "weights": "/data/scaled_offline.pth"},
            "frames CC0-1.0 and MIT, tracks CC-BY-NC-4.0; commercial use not allowed, "
            "redistribution allowed",
        ),
        (
            [("co3d", "CO3D: CC BY-NC 4.0"), ("synthetic", "")],
            {"tracker": "lucas_kanade"},
            "frames CC-BY-NC-4.0 and CC0-1.0, tracks without licensed weights; commercial use "
            "not allowed, redistribution not stated",
        ),
        (
            [("dl3dv", ""), ("video_folder", "not stated")],
            {"tracker": "tapir", "weights": "random"},
            "frames LicenseRef-DL3DV-Terms-of-Use and NOASSERTION, tracks without licensed "
            "weights; commercial use not allowed, redistribution not allowed",
        ),
        (
            [("synthetic", "")],
            {"tracker": "tapir", "weights": "/data/mine.pt"},
            "frames CC0-1.0, tracks NOASSERTION; commercial use not stated, redistribution not "
            "stated",
        ),
        (  # a file, whatever it is called, is not the random weights
            [("scenes", "")],
            {"tracker": "tapir", "weights": "/data/random.pt"},
            "frames CC0-1.0, tracks NOASSERTION; commercial use not stated, redistribution not "
            "stated",
        ),
        (
            [],
            {"tracker": "somebody's"},
            "frames none, tracks NOASSERTION; commercial use not stated, redistribution not stated",
        ),
    ],
)
def test_the_strictest_licence_decides(
    rows: list[tuple[str, str]], tracks: dict[str, str], sentence: str
) -> None:
    assert terms_of(videos(*rows), tracks).sentence() == sentence


@pytest.mark.parametrize(
    ("terms", "licence"),
    [
        ("CC-BY-4.0.", "CC-BY-4.0"),
        ("CC BY-NC 4.0: by Ada", "CC-BY-NC-4.0"),
        ("MIT licence (by Bob)", "MIT"),
        ("MIT students, all rights reserved", "NOASSERTION"),
        ("CC-BY-4.0-or-so", "NOASSERTION"),
        ("Ours; MIT", "NOASSERTION"),
        ("", "NOASSERTION"),
        (None, "NOASSERTION"),
    ],
)
def test_terms_say_a_licence_only_if_they_begin_with_its_spdx_identifier(
    terms: str | None, licence: str
) -> None:
    assert licence_of_video("video_folder", terms).id == licence


def test_every_dataset_and_every_tracker_has_a_licence_or_a_reason_for_none() -> None:
    """A dataset whose frames are the user's own takes the licence from `terms`."""
    datasets = {
        get_args(kind.model_fields["dataset"].annotation)[0]
        for kind in get_args(get_args(Source)[0])
    }
    assert datasets - DATASETS.keys() == {"video_folder"}
    trackers = {
        get_args(kind.model_fields["tracker"].annotation)[0]
        for kind in get_args(get_args(AnyTrackerSettings)[0])
    }
    assert trackers == WEIGHTS.keys() | WITHOUT_WEIGHTS


@pytest.mark.parametrize(("tracker", "checkpoints"), [("cotracker3", COTRACKER3), ("tapir", TAPIR)])
def test_every_official_checkpoint_has_the_licence_that_its_tracker_names(
    tracker: str, checkpoints: Checkpoints
) -> None:
    for name in (*checkpoints.files, *checkpoints.files.values()):
        licence = WEIGHTS[tracker][name.removesuffix(".pth").removesuffix(".pt")]
        assert licence is not None
        assert checkpoints.licence.replace(" ", "-").startswith(licence.id)
    assert all(WEIGHTS[tracker][name] is None for name in checkpoints.random)
