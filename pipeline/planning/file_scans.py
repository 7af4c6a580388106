"""Scan video files: decode each once, and store the results in `OUT/catalog/scans.parquet`.

A file is scanned again when it or the settings of the scan change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from manifests.arrow_schema import schema_of
from manifests.rows import Float64, Int32
from manifests.tables import read_table, table_of, write_table
from pipeline.config import BuildSettings, FrameSettings
from pipeline.failures import TRANSIENT_REASONS, DecodeError
from pipeline.monitoring.progress import Progress
from pipeline.planning.ledger_store import write_ledger
from pipeline.ray_cluster import connect, decoder_of_this_worker, ray_task, results_as_completed
from pipeline.sources.video import Scan, ScanNote
from shards.errors import FormatVersionError
from shards.files import Location, sizes_in

_SAVE_EVERY = 200
"""New scans are saved at least this many at a time."""


@dataclass(frozen=True)
class ScanRow:
    """The scan of a video file: a row of `OUT/catalog/scans.parquet`. For the results see `Scan`.

    identity: the file's identity when it was scanned
    settings: the scan settings
    ledger:   digest of the ledger of its frames (see `ledger_store`), "" without one
    notes:    for the user: why the file cannot be used, or which parts of it are not
    reason:   why the file cannot be scanned, "" if it was; the results are None then
    """

    path: str
    identity: str
    settings: str
    width: Int32 | None
    height: Int32 | None
    timestamps: tuple[Float64, ...] | None
    cuts: tuple[Int32, ...] | None
    ledger: str
    notes: tuple[ScanNote, ...]
    reason: str


SCANS = schema_of(ScanRow)

ScanResult = tuple[Scan, str] | ScanNote
"""A scan and the digest of its ledger; or why a file cannot be scanned."""


def scan_files(
    settings: BuildSettings, identities: dict[str, str], progress: Progress, retry_failed: bool
) -> pa.Table:
    """Return the scan of every video file (table SCANS).

    Scans the files that have no valid stored scan, and stores the new scans.

    identities: of the files, by path
    """
    scan_settings = settings.frames.of_scan()
    store = settings.out / "catalog" / "scans.parquet"
    scans = _stored_scans(store, identities, scan_settings, retry_failed)
    missing = sorted(identities.keys() - set(scans["path"].to_pylist()))
    if missing:
        rows: list[ScanRow] = []
        with progress.task("scanning video files", total=len(missing), noun="video") as task:
            for path, scan in _scan_on_workers(missing, settings):
                rows.append(_scan_row(path, identities[path], scan_settings, scan))
                task.advance()
                # Saving rewrites the file. Saving after 5 % growth keeps the total linear.
                if len(rows) >= max(_SAVE_EVERY, scans.num_rows // 20):
                    scans, rows = pa.concat_tables([scans, _scans_table(rows)]), []
                    _store_scans(store, scans)
        scans = pa.concat_tables([scans, _scans_table(rows)])
        _store_scans(store, scans)
    return scans


def _stored_scans(
    store: Location, identities: dict[str, str], scan_settings: str, retry_failed: bool
) -> pa.Table:
    """Read the stored scans of these files that are still valid.

    identities: of the files now, by path
    """
    if store.name not in sizes_in(store.parent):
        return SCANS.empty_table()
    try:
        scans = read_table(store, SCANS.names)
    except FormatVersionError:  # of an earlier version, without ledgers
        return SCANS.empty_table()
    position = pc.index_in(scans["path"], value_set=pa.array(identities.keys(), pa.string()))
    identity_now = pa.array(identities.values(), pa.string()).take(position.combine_chunks())
    valid = pc.and_(
        pc.equal(scans["settings"], scan_settings), pc.equal(scans["identity"], identity_now)
    )
    if retry_failed:
        valid = pc.and_(valid, pc.equal(scans["reason"], ""))
    return scans.filter(valid)


def _store_scans(store: Location, scans: pa.Table) -> None:
    """Store scans without transient failures, so that these files are scanned again."""
    # Stored failures are not retried unless asked for.
    transient = pc.is_in(scans["reason"], value_set=pa.array(TRANSIENT_REASONS))
    write_table(store, scans.filter(pc.invert(transient)))


def _scan_on_workers(paths: list[str], settings: BuildSettings) -> Iterator[tuple[str, ScanResult]]:
    """Scan files on Ray's workers; yield each as it is done."""
    cluster = connect(settings.ray)
    # Twice as many tasks as cores, so that a core never waits for its next file.
    task = ray_task(_scan_file)
    yield from results_as_completed(
        (partial(task.remote, path, settings.frames, settings.out) for path in paths),
        limit=2 * cluster.cpus,
    )


def _scan_file(path: str, frames: FrameSettings, out: Location) -> tuple[str, ScanResult]:
    """Scan one file and store its ledger; runs on a worker."""
    decoder = decoder_of_this_worker(frames.decode_timeout_s, gpus="")
    try:
        scan = decoder.scan(path, frames.shot_cuts)
    except DecodeError as error:
        return path, ScanNote(error.reason, str(error))
    # The driver needs only the digest, and ledgers are large.
    return path, (replace(scan, ledger=b""), write_ledger(out, scan.ledger))


def _scan_row(path: str, identity: str, scan_settings: str, result: ScanResult) -> ScanRow:
    row = ScanRow(
        path=path,
        identity=identity,
        settings=scan_settings,
        width=None,
        height=None,
        timestamps=None,
        cuts=None,
        ledger="",
        notes=(),
        reason="",
    )
    if isinstance(result, ScanNote):
        return replace(row, notes=(result,), reason=result.reason)
    scan, ledger = result
    return replace(
        row,
        width=scan.width,
        height=scan.height,
        timestamps=scan.timestamps,
        cuts=scan.cuts,
        ledger=ledger,
        notes=scan.notes,
    )


def _scans_table(rows: Iterable[ScanRow]) -> pa.Table:
    return table_of(
        ({**vars(row), "notes": [vars(note) for note in row.notes]} for row in rows), SCANS
    )
