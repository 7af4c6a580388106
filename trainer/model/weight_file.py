"""Weight files: safetensors, or torch's format → tensors by their dotted names.

A file is recognised by its content, not by its suffix. Only tensors and plain values are unpickled;
any other file is refused with a sentence that says what it is.
"""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import SettingsError

MOST_NESTED = 16
"""Dictionaries within dictionaries that are looked into; real checkpoints have three or four."""

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of torch's format before version 1.6; newer files are zip archives."""

SIGNATURES = (
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the file itself: run 'git lfs pull'",
    ),
    (b"GGUF", "it is a GGUF file of a quantised language model"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes: export the model as safetensors"),
    (b"\x93NUMPY", "it is a NumPy array: save a state dict as safetensors"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
)
"""How files that are often taken for weights begin, and what to say of them."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a weight file; names within nested dictionaries are joined by dots.

    Raises SettingsError, in one sentence, if the file is missing, is no weight file, is damaged, or
    needs Python classes.
    """
    _check_exists(path)
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    safetensors = is_safetensors(start)
    if not safetensors:
        reason = _not_weights(start, path) or _not_of_torch(start, path)
        if reason:
            raise _unreadable(path, reason)
    try:
        state: Any = (
            load_file(path)
            if safetensors
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both readers have types of their own for files of other formats
        raise _unreadable(path, _reason(path, error)) from error
    if not isinstance(state, Mapping):
        raise _without_weights(path, f"a {type(state).__name__}")
    if state.keys() == {"state", "param_groups"}:
        raise _without_weights(path, "only the state of an optimizer")
    tensors = _flat(state)
    if not tensors:
        raise _without_weights(path, "no weights" if state else "an empty dictionary")
    return tensors


def _unreadable(path: Path, reason: str) -> SettingsError:
    return SettingsError(f"{path} cannot be read as weights: {reason}")


def _without_weights(path: Path, content: str) -> SettingsError:
    return SettingsError(f"{path} holds {content}: it should be a mapping of names to tensors")


def _check_exists(path: Path) -> None:
    """Raise SettingsError if `path` is not a file, and name what it could have been."""
    if path.is_file():
        return
    if path.is_dir():
        if (path / ".metadata").is_file():
            raise SettingsError(
                f"{path} is a distributed checkpoint of torch: write it into one file with "
                f"'python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE'"
            )
        files = [
            file.name
            for file in sorted(path.iterdir())
            if file.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
        ]
        raise SettingsError(
            f"{path} is a folder, not a weight file: "
            + (f"give one of its files, such as {path / files[0]}" if files else "give a file")
        )
    siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give a file, 'hub' or 'random'"
    raise SettingsError(f"there is no weight file {path} ({hint})")


def is_safetensors(start: bytes) -> bool:
    """Say whether a file begins with the length of a JSON header and the header."""
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 27


def _not_weights(start: bytes, path: Path) -> str | None:
    """Say what a file is that is not of torch's format; None if it may be."""
    if not start:
        return "it is empty: copy or download it again"
    for signature, reason in SIGNATURES:
        if start.startswith(signature):
            return reason
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, such as a server's error or login page: download it again"
    if text.startswith(b"<?xml"):
        return "it is XML, such as a store's error message: download it again"
    if path.name.endswith(".index.json"):
        return "it lists the parts of weights in several files: merge them into one file"
    if text.startswith((b"{", b"[")):
        return "it is JSON: give the weight file beside it"
    # ONNX is a protobuf message: the format's version, a small number, and then the producer.
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and start[2:3] == b"\x12"):
        return "it is an ONNX graph: give the PyTorch weights that it was exported from"
    return None


def _not_of_torch(start: bytes, path: Path) -> str | None:
    """Say what a file is that torch should not be asked to load; None if it should."""
    if start.startswith(b"PK\x03\x04"):
        return _not_torchs_zip(path)
    if start.startswith(b"\x80") and not start.startswith(TORCH_MAGIC):
        return (
            "it is a pickle that 'torch.save' did not write: if you trust it, load it yourself and "
            "save its tensors as safetensors"
        )
    return None


def _not_torchs_zip(path: Path) -> str | None:
    """Say what a zip archive is, if it is not one that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return "its end is missing: copy or download it again"
    if any(member.endswith("/constants.pkl") for member in members):
        return (
            "it is a TorchScript archive, which holds code: if you trust it, save its state dict "
            "with 'torch.save(torch.jit.load(FILE).state_dict(), PATH)'"
        )
    if any(member.endswith("archive_format") for member in members):
        return "it is a program of torch.export: save the state dict of its model"
    if any(member.endswith(".npy") for member in members):
        return "it is an archive of NumPy arrays: save a state dict as safetensors"
    if not any(member.endswith("data.pkl") for member in members):
        return "it is a zip archive that 'torch.save' did not write: unpack it first"
    return None


def _reason(path: Path, error: Exception) -> str:
    """Say why a reader refused a file."""
    text = " ".join(str(error).split())
    classes = _foreign_classes(path, text)
    if classes:
        names = ", ".join(classes[:3])[:150]
        more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
        return (
            f"beside tensors it holds Python objects ({names}{more}), and loading "
            "those can run code; if you trust it, load it where they are installed and "
            "'torch.save' its state dict alone"
        )
    if isinstance(error, EOFError) or "unexpected EOF" in text or "incomplete metadata" in text:
        return "its end is missing: copy or download it again"
    return text[:200]


def _foreign_classes(path: Path, text: str) -> list[str]:
    """Return the classes and functions that a pickle names and torch does not load.

    text: torch's error, which names the first
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # the format before torch 1.6, or a damaged pickle
        named = []
    return sorted(named) or re.findall(r"Unsupported global: GLOBAL (\S+)", text)


def _flat(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries, by their keys joined by dots.

    A dictionary that occurs twice counts once, so that shared or circular ones end.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(prefix: str, inner: Mapping[Any, Any], depth: int) -> None:
        if id(inner) in seen or depth > MOST_NESTED:
            return
        seen.add(id(inner))
        for key, value in inner.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping):
                add(f"{prefix}{key}.", value, depth + 1)

    add("", state, 0)
    return tensors
