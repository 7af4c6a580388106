"""Say which licences a published build has, and whether it may be published at all."""

from __future__ import annotations

from typing import Any

from manifests.snapshot import Snapshot
from manifests.terms import NOT_STATED, Licence, Terms, terms_of
from shards.errors import PretrackError


def terms_of_snapshot(snapshot: Snapshot) -> Terms:
    """Return the terms of a snapshot's frames and tracks."""
    return terms_of(snapshot.videos, snapshot.settings.get("tracks", {}))


def check_publishable(snapshot: Snapshot, terms: Terms) -> None:
    """Raise PretrackError, with the reason, unless everyone may copy and use the build.

    A hub passes on what is uploaded, to companies too, so a licence must allow both. A private
    repository changes neither.
    """
    parts = [("frames", licence) for licence in terms.frames]
    parts += [("tracks", terms.tracks)] if terms.tracks else []
    for part, licence in parts:
        if reason := _why_not(part, licence):
            raise PretrackError(f"{snapshot.out} cannot be published, nor privately: {reason}")
    if not terms.frames:
        raise PretrackError(f"{snapshot.out} cannot be published: its snapshot has no videos")


def _why_not(part: str, licence: Licence) -> str:
    """Explain why a licence forbids to publish the frames or the tracks; "" if it does not."""
    address = f" ({licence.url})" if licence.url else ""
    if licence.id == NOT_STATED.id:
        advice = {
            "frames": "let 'terms' of the source begin with an SPDX identifier, such as "
            "'CC-BY-4.0; by Ada', and build again",
            "tracks": "track again with weights whose licence is known",
        }[part]
        return f"the licence of its {part} is unknown; {advice}"
    if licence.redistribution is False:
        return f"the licence of its {part}, {licence.id}{address}, forbids to pass them on"
    if licence.commercial is False:
        return (
            f"the licence of its {part}, {licence.id}{address}, forbids commercial use, and a hub "
            "passes them on for any use"
        )
    if licence.redistribution is None:
        return f"the licence of its {part}, {licence.id}{address}, does not allow to pass them on"
    return ""


def licence_header(terms: Terms) -> dict[str, Any]:
    """Return the licences as the header of a dataset card states them.

    The hub knows SPDX identifiers in lower case, `other` with a name and a link, and `unknown`.
    """
    licences = [*terms.frames, *([terms.tracks] if terms.tracks else [])]
    identifiers = list(dict.fromkeys(licence.id for licence in licences))
    if not identifiers or NOT_STATED.id in identifiers:
        return {"license": "unknown"}
    for licence in licences:
        if licence.id.startswith("LicenseRef-"):
            link = {"license_link": licence.url} if licence.url else {}
            return {"license": "other", "license_name": licence.id.lower(), **link}
    names = [identifier.lower() for identifier in identifiers]
    return {"license": names[0] if len(names) == 1 else names}
