"""The commands that present a build to others: `card` and `publish`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
            help="Upload to a private repository. The licences must allow it all the same.",
        ),
    ] = False,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Upload a snapshot with its card to the Hugging Face hub, if its licences allow that."""
    import huggingface_hub  # noqa: F401  # tell at once what is to be installed

    from manifests.snapshot import open_snapshot
    from pipeline.publication.upload import publish as upload

    with _second_interrupt_ends():
        published = upload(
            open_snapshot(out_of(where, overrides), snapshot),
            repository,
            private=private,
            name=name,
            say=_say,
        )
    if as_json:
        print_json(asdict(published))
        return
    new = f"{pluralise(published.uploaded, 'shard')} uploaded, {published.kept:,} there already"
    print(f"{new}: {published.page}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """Tell at a first Ctrl-C what is waited for, and end the process at a second one.

    The hub's client ends the requests that are running before it stops.
    """

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        _say("stopping after the files that are being uploaded; Ctrl-C again stops at once")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
