"""Files that are read by their content, and one sentence for those that hold no weights."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shards.errors import SettingsError
from tests.helpers.tiny_weights import TINY, assert_loads, random_state
from trainer.model.backbone import make_backbone
from trainer.model.weights import read_weights


def test_a_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    state = random_state("dino_small")
    save_file(state, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", "dino_small", state)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "old.pth", "dino_small", state)


def test_a_truncated_safetensors_file_says_so(tmp_path: Path) -> None:
    save_file(random_state("dino_small"), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-100])
    with pytest.raises(SettingsError, match="its end is missing: copy or download it again"):
        read_weights(tmp_path / "w.safetensors")


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(2))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # TorchScript is old
        traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file)  # type: ignore[no-untyped-call]
    return file.getvalue()


WITH_OBJECTS = {"model": {"w": torch.zeros(2)}, "args": Namespace(lr=1)}
OBJECTS = r"beside tensors it holds Python objects \(argparse\.Namespace\), and loading those can"
NOT_A_MAPPING = "it should be a mapping of names to tensors"
UNREADABLE = {
    "empty": (b"", "it is empty: copy or download it again"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Forbidden", "it is an HTML page, such as a server's"),
    "XML": (b'<?xml version="1.0"?><Error>', "it is XML, such as a store's error message"),
    "JSON": (b'{"error": "gated"}', "it is JSON: give the weight file beside it"),
    "ONNX": (b"\x08\x07\x12\x07pytorch", "it is an ONNX graph: give the PyTorch weights"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5 file, as Keras writes"),
    "gzip": (b"\x1f\x8b\x08", "compressed with gzip: unpack it first"),
    "npz": (npz(), "an archive of NumPy arrays: save a state dict as safetensors"),
    "zip": (zipped("readme.txt"), "a zip archive that 'torch.save' did not write: unpack it first"),
    "export": (zipped("m/archive_format", "m/models/model.json"), "a program of torch.export"),
    "script": (scripted(), "it is a TorchScript archive, which holds code"),
    "pickle": (pickle.dumps({"w": 1}), "a pickle that 'torch.save' did not write"),
    "truncated": (saved({"w": torch.zeros(99)})[:-99], "its end is missing: copy or download it"),
    "truncated, old": (
        saved({"w": torch.zeros(99)}, _use_new_zipfile_serialization=False)[:-99],
        "its end is missing: copy or download it again",
    ),
    "objects": (saved(WITH_OBJECTS), OBJECTS),
    "objects, old": (saved(WITH_OBJECTS, _use_new_zipfile_serialization=False), OBJECTS),
    "module": (saved(nn.Linear(1, 1)), r"Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
}
WITHOUT_WEIGHTS = {
    "nothing": ({}, f"holds an empty dictionary: {NOT_A_MAPPING}"),
    "list": ([torch.zeros(1)], f"holds a list: {NOT_A_MAPPING}"),
    "values": ({"epoch": 3}, f"holds no weights: {NOT_A_MAPPING}"),
    "optimizer": (
        torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict(),
        "holds only the state of an optimizer",
    ),
    "adapters": (
        {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 2)},
        r"holds low-rank adapters \(LoRA\), which have to be merged",
    ),
    "BERT": (
        {
            "embeddings.word_embeddings.weight": torch.zeros(2, 2),
            "encoder.layer.0.attention.self.query.weight": torch.zeros(2, 2),
        },
        "holds BERT or a relative, a text model of transformers, not a vision transformer",
    ),
    "ResNet": (
        {"layer1.0.conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)},
        "holds a ResNet, not a vision transformer",
    ),
    "ConvNeXt": (
        {"downsample_layers.0.0.weight": torch.zeros(2)},
        "holds a convolutional or hierarchical model, not a vision transformer",
    ),
    "CLIP": (
        {"vision_model.embeddings.patch_embedding.weight": torch.zeros(2)},
        "holds a CLIP or SigLIP model of transformers, not a vision",
    ),
    "another": (
        {"encoder.weight": torch.zeros(2)},
        r"lacks \d+ tensors of vit_.* \(first: .*\); it has names such as 'encoder.weight'",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    content, message = UNREADABLE[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        make_backbone("dino_small", str(path), TINY)
    assert str(caught.value).startswith(f"{path} cannot be read as weights: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", WITHOUT_WEIGHTS)
def test_checkpoints_of_other_models_are_named(tmp_path: Path, kind: str) -> None:
    value, message = WITHOUT_WEIGHTS[kind]
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=rf"w\.pth {message}"):
        make_backbone("dino_small", str(tmp_path / "w.pth"), TINY)


def test_a_folder_names_the_file_to_give(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder, not a weight file: give a file"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SettingsError, match=r"give one of its files, such as .*/model\.safetensor"):
        read_weights(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(SettingsError, match=r"distributed checkpoint of torch: .* dcp_to_torch"):
        read_weights(tmp_path)


def test_circular_checkpoints_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {"model": {}}
    state["model"]["again"] = state
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match="holds no weights"):
        read_weights(tmp_path / "w.pth")
