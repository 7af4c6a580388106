"""Write and read receipts: a shard exists if and only if its receipt does.

A receipt is written after its shard is complete, and holds the shard's rows of every table. The tar
alone means nothing: a job killed between the two writes the shard again. A shard's name consists of
its group and its content's checksum, so a written shard never changes, and the same content gets
the same name again.

Receipts are in `OUT/.receipts/`: readers that look for data by file names (`load_dataset`, pyarrow)
pass over names that begin with a dot. pretrack 0.1 wrote them to `OUT/receipts/`, where they are
still read.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from manifests.rows import ClipRow, Failure, ShardRow
from shards.errors import PretrackError
from shards.files import Location, atomic_write, read_file, sizes_in

RECEIPT_FOLDERS = (".receipts", "receipts")
"""Folders of receipts: where they are written and first looked for, and where pretrack 0.1 did."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Receipt:
    """The rows of one shard.

    planned: keys of the clips that the shard was planned to hold; those missing from `clips` are
             named in `failures`
    """

    shard: ShardRow
    clips: tuple[ClipRow, ...]
    failures: tuple[Failure, ...]
    planned: tuple[str, ...]


def shard_name(group: str, checksum: str) -> str:
    """Name a shard after its group and content: "co3d-train-000000-0123456789abcdef"."""
    return f"{group}-{checksum}"


def shard_checksum(shard: str) -> str:
    """Extract the checksum (xxh3-64, hex) from a shard's name."""
    return shard.rsplit("-", 1)[1]


def is_shard_name(name: str) -> bool:
    """Tell whether a text may be a shard's name: letters, digits, '-' and '_' only.

    A name becomes part of paths, so it must not lead to another folder.
    """
    return _NAME.fullmatch(name) is not None


def receipt_path(out: Location, shard: str) -> Location:
    """Give the path to write a receipt to. Raises PretrackError for a name that is not allowed."""
    return receipt_paths(out, shard)[0]


def receipt_paths(out: Location, shard: str) -> tuple[Location, ...]:
    """List the paths where a shard's receipt may be, the newest first. Raises as above."""
    file = f"{_check_name(out, shard)}.json"
    return tuple(out / folder / file for folder in RECEIPT_FOLDERS)


def shard_path(out: Location, shard: str) -> Location:
    """Give the path of a shard's tar. Raises PretrackError for a name that is not allowed."""
    return out / "shards" / f"{_check_name(out, shard)}.tar"


def _check_name(out: Location, shard: str) -> str:
    """Return the name if it is one. Names come from tables, which may be damaged or hostile."""
    if not is_shard_name(shard):
        raise PretrackError(f"the tables in {out} are damaged: {shard!r} is not a shard name")
    return shard


def write_receipt(out: Location, receipt: Receipt) -> None:
    """Write a receipt, which makes its shard exist."""
    data = json.dumps(asdict(receipt), sort_keys=True, ensure_ascii=False).encode()
    atomic_write(receipt_path(out, receipt.shard.shard), data)


def read_receipt(out: Location, shard: str) -> Receipt:
    """Read a receipt.

    Raises PretrackError if it is damaged or absent: the shard is treated as missing. Raises
    AccessError if it cannot be read: the shard must not be made again.
    """
    paths = receipt_paths(out, shard)
    for path in paths:
        if receipt := _read(path):
            return receipt
    raise PretrackError(f"the receipt {paths[0]} is missing: the next build writes its shard again")


def _read(path: Location) -> Receipt | None:
    """Read a receipt's file, None if there is none. Raises as `read_receipt`."""
    try:
        fields: dict[str, Any] = json.loads(read_file(path))
        return Receipt(
            shard=ShardRow(**fields["shard"]),
            clips=tuple(ClipRow(**row) for row in fields["clips"]),
            failures=tuple(Failure(**row) for row in fields["failures"]),
            planned=tuple(fields["planned"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PretrackError(
            f"the receipt {path} is damaged ({error}): the next build writes its shard again"
        ) from error


def list_receipts(out: Location) -> list[str]:
    """List the names of all shards that have a receipt, sorted."""
    files = {name for folder in RECEIPT_FOLDERS for name in sizes_in(out / folder)}
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    return sorted(name for name in names if is_shard_name(name))
