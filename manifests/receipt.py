"""Receipts: a shard exists when its receipt does.

A receipt is written after its shard lies whole on disk, and holds that shard's rows of every table. The tar alone means nothing:
a job killed between the two writes the shard again. A shard is called by its group and its content's checksum, so one once written
never changes, and the same content made again gets the same name.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from manifests.rows import ClipRow, Failure, ShardRow
from shards.errors import PretrackError
from shards.files import Location, atomic_write, read_file, sizes_in

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Receipt:
    """What a shard holds. `planned` are the keys of the clips it was to hold; those missing from `clips` are among `failures`."""

    shard: ShardRow
    clips: tuple[ClipRow, ...]
    failures: tuple[Failure, ...]
    planned: tuple[str, ...]


def shard_name(group: str, checksum: str) -> str:
    """What a shard of this content is called: "co3d-train-000000-0123456789abcdef"."""
    return f"{group}-{checksum}"


def shard_checksum(shard: str) -> str:
    """The checksum (xxh3-64, hex) that a shard's name holds."""
    return shard.rsplit("-", 1)[1]


def is_shard_name(name: str) -> bool:
    """Whether a shard may be called so: a name is a part of paths, and must not lead elsewhere."""
    return _NAME.fullmatch(name) is not None


def receipt_path(out: Location, shard: str) -> Location:
    """Where a shard's receipt lies. Raises PretrackError if no shard is called so."""
    return out / "receipts" / f"{_checked(out, shard)}.json"


def shard_path(out: Location, shard: str) -> Location:
    """Where a shard's tar lies. Raises PretrackError if no shard is called so."""
    return out / "shards" / f"{_checked(out, shard)}.tar"


def _checked(out: Location, shard: str) -> str:
    if not is_shard_name(shard):
        raise PretrackError(f"the tables in {out} are damaged: {shard!r} is no name of a shard")
    return shard


def write_receipt(out: Location, receipt: Receipt) -> None:
    """Makes a shard exist."""
    data = json.dumps(asdict(receipt), sort_keys=True, ensure_ascii=False).encode()
    atomic_write(receipt_path(out, receipt.shard.shard), data)


def read_receipt(out: Location, shard: str) -> Receipt:
    """Reads one receipt. Raises PretrackError if it is damaged: then the shard is as good as not there."""
    path = receipt_path(out, shard)
    try:
        fields: dict[str, Any] = json.loads(read_file(path))
        return Receipt(
            shard=ShardRow(**fields["shard"]),
            clips=tuple(ClipRow(**row) for row in fields["clips"]),
            failures=tuple(Failure(**row) for row in fields["failures"]),
            planned=tuple(fields["planned"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PretrackError(
            f"the receipt {path} is damaged ({error}): the next build makes its shard again"
        ) from error


def list_receipts(out: Location) -> list[str]:
    """The names of all shards that have a receipt, sorted."""
    names = [
        name.removesuffix(".json") for name in sizes_in(out / "receipts") if name.endswith(".json")
    ]
    return sorted(name for name in names if is_shard_name(name))
