"""Make the files that present a snapshot: the card, its pictures, and metadata for loaders."""

from __future__ import annotations

import tempfile
from pathlib import Path

from manifests import charts
from manifests.snapshot import Snapshot
from manifests.terms import Terms
from pipeline.inspection.contact_sheet import best_clips, read_clip
from pipeline.inspection.draw import write_sheet
from pipeline.inspection.report import charts_of
from pipeline.inspection.report_figures import measure
from pipeline.publication.croissant import croissant
from pipeline.publication.dataset_card import CardContent, dataset_card, own_text_of
from pipeline.publication.energon import energon_files
from shards.errors import PretrackError
from shards.files import Location, atomic_write, read_file

CARD = "README.md"
_PICTURES = "pictures/card"
_CHARTS = ("clips", "lengths", "visible", "motion", "inliers_by_angle")
_MOST_SHEETS = 4


def write_card_files(snapshot: Snapshot, terms: Terms, name: str) -> list[Location]:
    """Write the files into the output folder, the card first; return them.

    Raises PretrackError if the folder has a README.md that pretrack did not write.
    """
    out = snapshot.out
    files = card_files(snapshot, terms, name)
    for path, data in files.items():
        atomic_write(out / path, data)
    return [out / path for path in files]


def card_files(
    snapshot: Snapshot, terms: Terms, name: str, repository: str = "", endpoint: str = ""
) -> dict[str, bytes]:
    """Return the files by their path in the output folder, the card first.

    repository, endpoint: the dataset's "OWNER/NAME" on a hub, and the hub's address; "" for a
                          folder

    Raises PretrackError if the output folder has a README.md that pretrack did not write.
    """
    own_text = _own_text(snapshot.out / CARD)
    figures = measure(snapshot)
    sheets = _sheets(snapshot)
    drawn = charts_of(figures)
    charted = {
        f"{_PICTURES}/{name}.png": (drawn[name].title, charts.png(drawn[name]))
        for name in _CHARTS
        if name in drawn
    }
    content = CardContent(
        snapshot=snapshot,
        figures=figures,
        terms=terms,
        name=name,
        place=f"hf://datasets/{repository}" if repository else str(snapshot.out),
        sheets={path: title for path, (title, _) in sheets.items()},
        charts={path: title for path, (title, _) in charted.items()},
        own_text=own_text,
    )
    url = f"{endpoint}/datasets/{repository}" if repository else ""
    return {
        CARD: dataset_card(content).encode(),
        "croissant.json": croissant(snapshot, terms, name, url),
        **energon_files(snapshot),
        **{path: data for path, (_, data) in (sheets | charted).items()},
    }


def _own_text(card: Location) -> str:
    """Return the text that people added to a card; "" if there is no card."""
    try:
        text = own_text_of(read_file(card).decode("utf-8", "replace"))
    except FileNotFoundError:
        return ""
    if text is None:
        raise PretrackError(
            f"{card} was not written by 'pretrack card': move it away; text of your own belongs "
            "below the last line of the card"
        )
    return text


def _sheets(snapshot: Snapshot) -> dict[str, tuple[str, bytes]]:
    """Draw the best clip of each source, of at most `_MOST_SHEETS`: path → title and PNG."""
    sheets = {}
    with tempfile.TemporaryDirectory(prefix="pretrack-") as folder:
        for number in best_clips(snapshot.clips, 1)[:_MOST_SHEETS]:
            clip = read_clip(snapshot, snapshot.clips.slice(number, 1).to_pylist()[0])
            sheet = Path(folder) / f"{clip.info.key}.png"
            write_sheet(sheet, clip)
            sheets[f"{_PICTURES}/{sheet.name}"] = (
                f"Tracks of the clip {clip.info.key}",
                sheet.read_bytes(),
            )
    return sheets
