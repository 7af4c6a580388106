"""Read one large JSON list item by item.

As a whole, an annotation file of hundreds of megabytes would be gigabytes of Python objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
"""Characters to read at once."""
LARGEST_ITEM = 1 << 24
"""Most characters of one item: hundreds of times as many as an annotated frame has."""


def items(text: TextIO) -> Iterator[Any]:
    """Yield the items of a JSON list one by one. A bare NaN is accepted.

    Raises ValueError if the text is not a JSON list, ends early, or has an item of more than
    LARGEST_ITEM characters; RecursionError if an item is nested too deeply.
    """
    decoder = json.JSONDecoder()
    rest = text.read(_CHUNK).lstrip()
    if not rest.startswith("["):
        raise ValueError("not a JSON list")
    rest, ended = rest[1:], False
    while True:
        # Decode all items that are complete in `rest`, the text read and not yet decoded.
        position = 0
        while True:
            position = _skip(rest, position)
            if rest.startswith("]", position):
                return
            try:
                item, position = decoder.raw_decode(rest, position)
            except json.JSONDecodeError:
                # The item is incomplete, unless the text has ended: then it is broken.
                if ended:
                    raise
                if len(rest) - position > LARGEST_ITEM:
                    raise ValueError(
                        f"an item of the list has more than {LARGEST_ITEM} characters"
                    ) from None
                break
            yield item
        # Read at least as much as is left over: an item that spans many chunks is then decoded in
        # a logarithmic number of attempts, not in one per chunk.
        more = text.read(max(_CHUNK, len(rest) - position))
        rest, ended = rest[position:] + more, not more


def _skip(text: str, position: int) -> int:
    """Return the first position from `position` on that is neither white space nor a comma."""
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position
