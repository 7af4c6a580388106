"""Compute what may be done with a build, from the licences of its videos and of its tracker.

A licence has an SPDX identifier (https://spdx.org/licenses) or, where there is none, a LicenseRef
and the address of its text. This module knows those of the datasets and of the official weights;
the terms of other videos say theirs if they begin with an SPDX identifier: "CC-BY-4.0; by Ada", or
"CC BY 4.0".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Licence:
    """A licence, and what it allows: True, False, or None if that is not stated.

    id:             its SPDX identifier, or a LicenseRef
    url:            the address of its text; "" if it is not known
    commercial:     whether what it covers may be used commercially
    redistribution: whether it may be passed on
    """

    id: str
    url: str
    commercial: bool | None
    redistribution: bool | None


@dataclass(frozen=True)
class Terms:
    """The terms of a build.

    frames:         the licences of its videos, each once, by identifier
    tracks:         the licence of the tracker's weights; None if it has none, or random ones
    commercial:     whether the build may be used commercially; None if that is not stated
    redistribution: whether it may be passed on; None if that is not stated
    """

    frames: tuple[Licence, ...]
    tracks: Licence | None
    commercial: bool | None
    redistribution: bool | None

    def sentence(self) -> str:
        """Return the terms in words."""
        frames = " and ".join(licence.id for licence in self.frames) or "none"
        tracks = f"tracks {self.tracks.id}" if self.tracks else "tracks without licensed weights"
        return (
            f"frames {frames}, {tracks}; commercial use {_ANSWERS[self.commercial]}, "
            f"redistribution {_ANSWERS[self.redistribution]}"
        )


_ANSWERS = {True: "allowed", False: "not allowed", None: "not stated"}
NOT_STATED = Licence("NOASSERTION", "", None, None)
"""SPDX's identifier for a licence that is not stated."""


def _spdx(identifier: str, *, commercial: bool = True, redistribution: bool = True) -> Licence:
    url = f"https://spdx.org/licenses/{identifier}.html"
    return Licence(identifier, url, commercial, redistribution)


_FREE = (
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "PDDL-1.0"),
    *("ODC-By-1.0", "ODbL-1.0", "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause"),
)
_NON_COMMERCIAL = ("CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0")
SPDX = {
    **{identifier: _spdx(identifier) for identifier in _FREE},
    **{identifier: _spdx(identifier, commercial=False) for identifier in _NON_COMMERCIAL},
}
"""The licences that this module knows, by SPDX identifier."""

DATASETS = {
    # The licence is that of the repository; it does not say that frames may be passed on.
    "co3d": Licence(
        "CC-BY-NC-4.0", "https://github.com/facebookresearch/co3d/blob/main/LICENSE", False, None
    ),
    "uco3d": SPDX["CC-BY-4.0"],
    "dl3dv": Licence(
        "LicenseRef-DL3DV-Terms-of-Use",
        "https://github.com/DL3DV-10K/Dataset/blob/main/License.md",
        False,
        False,
    ),
    "youtube_vos": Licence(
        "LicenseRef-YouTube-VOS", "https://youtube-vos.org/dataset/", False, False
    ),
    "synthetic": SPDX["CC0-1.0"],
    "scenes": SPDX["CC0-1.0"],
}
"""The licence of the frames of each dataset that has one of its own."""

_COTRACKER3, _TAPIR = SPDX["CC-BY-NC-4.0"], SPDX["Apache-2.0"]
WEIGHTS: dict[str, dict[str, Licence | None]] = {
    "cotracker3": {
        **dict.fromkeys(
            ("scaled_offline", "scaled_online", "baseline_offline", "baseline_online"), _COTRACKER3
        ),
        **dict.fromkeys(("random_offline", "random_online")),
    },
    "tapir": {
        **dict.fromkeys(("bootstapir", "causal_bootstapir"), _TAPIR),
        **dict.fromkeys(("bootstapir_checkpoint_v2", "causal_bootstapir_checkpoint"), _TAPIR),
        "random": None,
    },
}
"""The licence of each tracker's weights, by official name and by the name of the official file."""
WITHOUT_WEIGHTS = frozenset({"lucas_kanade", "truth", "geometry"})
"""Trackers that have no weights."""


def terms_of(videos: pa.Table, tracks: Mapping[str, Any]) -> Terms:
    """Return the terms of a build: of its table of videos, and of its settings `tracks`."""
    rows = videos.select(["dataset", "terms"]).group_by(["dataset", "terms"]).aggregate([])
    found = {licence_of_video(row["dataset"], row["terms"]) for row in rows.to_pylist()}
    frames = tuple(sorted(found, key=lambda licence: licence.id))
    weights = licence_of_tracks(tracks)
    every = (*frames, weights) if weights else frames
    return Terms(
        frames,
        weights,
        commercial=_all_allow([licence.commercial for licence in every]),
        redistribution=_all_allow([licence.redistribution for licence in every]),
    )


def licence_of_video(dataset: str, terms: str | None) -> Licence:
    """Return the licence of a video: its dataset's own, or that which its terms begin with."""
    if dataset in DATASETS:
        return DATASETS[dataset]
    for identifier, licence in SPDX.items():
        name = re.escape(identifier).replace(r"\-", "[- ]")
        if re.match(rf"{name}( licen[cs]e)?($|[;,:]|\.(\s|$)| *\()", terms or "", re.IGNORECASE):
            return licence
    return NOT_STATED


def licence_of_tracks(tracks: Mapping[str, Any]) -> Licence | None:
    """Return the licence of the weights that the settings `tracks` name; None without weights.

    A file has that of the official file of its name. One named like random weights is a file all
    the same, and no licence of it is known.
    """
    tracker, weights = str(tracks.get("tracker")), str(tracks.get("weights"))
    if tracker in WITHOUT_WEIGHTS:
        return None
    known = WEIGHTS.get(tracker, {})
    if weights in known:
        return known[weights]
    return known.get(PurePath(weights).stem) or NOT_STATED


def _all_allow(answers: Sequence[bool | None]) -> bool | None:
    """Return False if one is False, else None if one is None or there are none, else True."""
    if False in answers:
        return False
    return None if None in answers or not answers else True
