"""Fingerprints: equal exactly where the result would be equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """BLAKE2b, 128 bits in hex, of a value's canonical JSON."""
    return fingerprint_lines([canonical_json(value)])


def fingerprint_lines(lines: Iterable[str]) -> str:
    """BLAKE2b, 128 bits in hex, of lines of text in order."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
