"""What weights were trained on, as digests of the names of sequences and parts.

Weights carry the digests wherever they are copied, so that an evaluation can tell whether its clips
were trained on.

    clips → `Footage` → `TrainingFootage` → exported weights and checkpoints → evaluation
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shards.errors import SettingsError
from trainer.data.footage import Footage
from trainer.model.weight_file import is_safetensors
from trainer.model.weights import split_part

METADATA_KEY = "pretrack_trained_on"
"""Key of the digests in the metadata of a safetensors file."""
CHECKPOINT_KEY = "trained_on"
"""Key of the digests in a checkpoint."""

Digests = NDArray[np.uint64]
"""Distinct digests, sorted: [n]."""


@dataclass(frozen=True, eq=False)
class TrainingFootage:
    """Digests of the names of what weights were trained on.

    complete: whether that is all. False if the weights that training began from do not say what
              they were trained on, as published weights do not
    """

    sequences: Digests
    parts: Digests
    complete: bool

    @classmethod
    def of(cls, footage: Footage) -> Self:
        """Return the digests of footage."""
        sequences, parts = _digests(footage.sequences), _digests(footage.parts)
        return cls(np.unique(sequences), np.unique(parts), complete=True)

    def union(self, other: TrainingFootage) -> TrainingFootage:
        """Return what weights were trained on that saw both."""
        return TrainingFootage(
            np.union1d(self.sequences, other.sequences),
            np.union1d(self.parts, other.parts),
            self.complete and other.complete,
        )

    def shared_with(self, footage: Footage) -> Footage:
        """Return the footage that these weights were trained on too."""
        return Footage(
            _shared(footage.sequences, self.sequences), _shared(footage.parts, self.parts)
        )

    def to_metadata(self) -> str:
        """Encode for the metadata of a safetensors file: 11 bytes per name."""
        document = {
            "version": 1,
            "sequences": _encoded(self.sequences),
            "parts": _encoded(self.parts),
            "complete": self.complete,
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_metadata(cls, text: str) -> Self:
        """Decode what `to_metadata` returned. Raises ValueError for anything else."""
        document = json.loads(text)
        try:
            if document["version"] != 1:
                raise ValueError(f"its version is {document['version']}")
            sequences, parts = (_decoded(document[name]) for name in ("sequences", "parts"))
            return cls(sequences, parts, bool(document["complete"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from error

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {
            "sequences": torch.from_numpy(self.sequences.view(np.int64)),
            "parts": torch.from_numpy(self.parts.view(np.int64)),
            "complete": self.complete,
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainingFootage:
        """Return what a checkpoint says; those of earlier versions say nothing."""
        if CHECKPOINT_KEY not in checkpoint:
            return UNKNOWN
        stored = checkpoint[CHECKPOINT_KEY]
        sequences, parts = (stored[key].numpy().view(np.uint64) for key in ("sequences", "parts"))
        return cls(sequences, parts, stored["complete"])

    def to_json(self) -> dict[str, Any]:
        """Say in numbers what weights were trained on, for descriptions and results."""
        return {
            "sequences": len(self.sequences),
            "parts": len(self.parts),
            "complete": self.complete,
        }


_NONE: Digests = np.empty(0, np.uint64)
NOTHING = TrainingFootage(_NONE, _NONE, complete=True)
"""What random weights were trained on."""
UNKNOWN = TrainingFootage(_NONE, _NONE, complete=False)
"""What weights were trained on that do not say it."""


def _digests(names: Sequence[str]) -> Digests:
    """Return the 64-bit BLAKE2b digest of each name: [n]."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _shared(names: tuple[str, ...], digests: Digests) -> tuple[str, ...]:
    return tuple(compress(names, np.isin(_digests(names), digests)))


def _encoded(digests: Digests) -> str:
    return base64.b64encode(digests.astype("<u8").tobytes()).decode()


def _decoded(text: str) -> Digests:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)


def training_footage(weights: str) -> TrainingFootage:
    """Read what weights were trained on.

    weights: as in the setting `model.weights`; UNKNOWN for those that do not say it, and for a file
             that is gone or is no weight file

    Raises SettingsError for a file whose digests are damaged.
    """
    if weights == "random":
        return NOTHING
    path, _ = split_part(weights)
    if not path.is_file():
        return UNKNOWN
    try:
        with path.open("rb") as file:
            start = file.read(16)
        return _of_safetensors(path) if is_safetensors(start) else _of_checkpoint(path)
    except (OSError, SafetensorError):
        return UNKNOWN
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"the list of what {path} was trained on is damaged ({error}): export the weights again"
        ) from error


def _of_safetensors(path: Path) -> TrainingFootage:
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    return UNKNOWN if text is None else TrainingFootage.from_metadata(text)


def _of_checkpoint(path: Path) -> TrainingFootage:
    try:
        # Memory-mapped: only the digests are read.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # one of many types; such as for torch's format before 1.6
        return UNKNOWN
    return TrainingFootage.from_checkpoint(checkpoint if isinstance(checkpoint, dict) else {})
