"""Find, identify and read the weights of a network: a file, or an official name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shards.errors import PretrackError

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = TypeVar("Network", bound="nn.Module")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Checkpoints:
    """The weights of a network.

    network:    its name
    repository: where the official files are, on the Hugging Face hub
    files:      the official names, and the file of each
    random:     names of untrained weights, drawn from a fixed seed; they show that everything
                runs, but track nothing
    licence:    that of the official files, in a phrase
    otherwise:  what to do without them, in a phrase
    """

    network: str
    repository: str
    files: Mapping[str, str]
    random: Collection[str]
    licence: str
    otherwise: str

    def find(self, weights: str) -> Path:
        """Return the checkpoint file for a path or an official name.

        Official names are looked up in the Hugging Face cache. Raises PretrackError if the file is
        missing or damaged; the message gives the download command and the licence.
        """
        if weights not in self.files:
            path = Path(weights).expanduser()
            if path.is_file():
                return path
            raise PretrackError(
                f"there is no {self.network} checkpoint {weights}: give a file, or one of "
                f"{', '.join((*self.files, *self.random))}"
            )
        from huggingface_hub import try_to_load_from_cache

        file = self.files[weights]
        cached = try_to_load_from_cache(self.repository, file)
        if not isinstance(cached, str):
            raise PretrackError(
                f"the checkpoint {weights} is not on this machine: get it with "
                f"'hf download {self.repository} {file}' (its licence is {self.licence}), "
                f"or {self.otherwise}"
            )
        path = Path(cached).resolve()
        # The cache names a file by its SHA-256.
        if len(path.name) == 64 and file_digest(path) != path.name:
            raise PretrackError(
                f"the checkpoint {path} is damaged: delete it and run "
                f"'hf download {self.repository} {file}' again"
            )
        return path

    def digest(self, weights: str) -> str:
        """Return what identifies weights in a fingerprint: a file's SHA-256, or a random name.

        Raises PretrackError as `find` does.
        """
        return weights if weights in self.random else file_digest(self.find(weights))

    def load(self, weights: str, make: Callable[[Mapping[str, Tensor]], Network]) -> Network:
        """Make the network that fits a checkpoint, by `make`, and load the checkpoint into it.

        Raises PretrackError if the weights are missing or of another network.
        """
        import torch

        path = self.find(weights)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state)
            model = make(state)
            model.load_state_dict(state, strict=True)
        except Exception as error:  # torch raises many types for a file of another kind
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise PretrackError(f"{path} is not a {self.network} checkpoint ({reason})") from error
        return model


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex. It is cached until the file's size or time changes."""
    stat = path.stat()
    return _cached_digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _cached_digest(path: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
