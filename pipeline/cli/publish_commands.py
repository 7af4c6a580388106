"""The commands that present a build to others: `card` and `publish`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from manifests.wording import pluralise
from pipeline.cli.options import AsJson, ConfigOrOut, Overrides, SnapshotName, out_of
from pipeline.cli.output import print_json

DatasetName = Annotated[
    str, typer.Option(help="The dataset's name; by default that of the folder or repository.")
]


def card(
    where: ConfigOrOut,
    overrides: Overrides = None,
    name: DatasetName = "",
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Write a dataset card and metadata, by which `load_dataset` and Energon read the folder."""
    from manifests.snapshot import open_snapshot
    from pipeline.publication.card_files import write_card_files
    from pipeline.publication.licences import terms_of_snapshot
    from shards.files import absolute

    out = out_of(where, overrides)
    shown = open_snapshot(out, snapshot)
    terms = terms_of_snapshot(shown)
    files = write_card_files(shown, terms, name or absolute(out).name)
    if as_json:
        print_json({"terms": asdict(terms), "files": [str(file) for file in files]})
        return
    print(f"terms: {terms.sentence()}")
    print(files[0])


def publish(
    where: ConfigOrOut,
    repository: Annotated[str, typer.Argument(help="A repository on the hub: OWNER/NAME.")],
    overrides: Overrides = None,
    name: DatasetName = "",
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Make a new repository private. The licences must allow it all the same.",
        ),
    ] = False,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Upload a snapshot with its card to the Hugging Face hub, if its licences allow that."""
    import huggingface_hub  # noqa: F401  # tell at once what is to be installed

    from manifests.snapshot import open_snapshot
    from pipeline.publication.upload import publish as upload

    published = upload(
        open_snapshot(out_of(where, overrides), snapshot),
        repository,
        private=private,
        name=name,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        print_json(asdict(published))
        return
    new = f"{pluralise(published.uploaded, 'shard')} uploaded, {published.kept:,} there already"
    print(f"{new}: {published.page}")
