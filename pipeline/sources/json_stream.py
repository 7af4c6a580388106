"""Reading one JSON list item by item: an annotation file of hundreds of megabytes would be gigabytes of Python objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
LARGEST_ITEM = 1 << 24
"""Characters of one item: hundreds of times those of an annotated frame."""


def items(text: TextIO) -> Iterator[Any]:
    """The objects of a JSON list, one by one; bare NaN is accepted. Raises ValueError if it is no such list,
    ends early, or has an item that is far too long; RecursionError for one that is nested too deep."""
    decoder = json.JSONDecoder()
    rest = text.read(_CHUNK).lstrip()
    if not rest.startswith("["):
        raise ValueError("not a JSON list")
    rest, ended = rest[1:], False
    while True:
        position = 0
        while True:
            position = _skip(rest, position)
            if rest.startswith("]", position):
                return
            try:
                item, position = decoder.raw_decode(rest, position)
            except json.JSONDecodeError:
                if ended:
                    raise
                if len(rest) - position > LARGEST_ITEM:
                    raise ValueError(
                        f"an item of the list has more than {LARGEST_ITEM} characters"
                    ) from None
                break
            yield item
        more = text.read(max(_CHUNK, len(rest) - position))
        rest, ended = rest[position:] + more, not more


def _skip(text: str, position: int) -> int:
    """The first position at or after `position` that is neither white space nor a comma."""
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position
