"""Compute fingerprints of settings: equal if and only if the results are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def canonical_json(value: Any) -> str:
    """Encode a value as JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """Hash a value's canonical JSON: BLAKE2b, 128 bits, in hex."""
    return fingerprint_lines([canonical_json(value)])


def fingerprint_lines(lines: Iterable[str]) -> str:
    """Hash lines of text in order: BLAKE2b, 128 bits, in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
