"""Hostile configs, weights and checkpoints: nothing in them is run, and none exhausts memory."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.settings import Settings, load_settings
from shards.errors import PretrackError, SettingsError
from tests.helpers.hostile import DEEP
from trainer.checkpoint import load_checkpoint
from trainer.model.weights import read_weights

ROOT = Path(__file__).parents[2]


class Config(Settings):
    """A config with one value."""

    a: Any = 1


LAUGHS = (
    "l0: &l0 [x, x]\n"
    + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
    + "a: *l29\n"
)
MERGES = "l0: &l0 {x: 1}\n" + "".join(
    f"l{i}: &l{i}\n  <<: [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.system ['touch {made}']",
            "could not determine a constructor",
        ),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        (LAUGHS, "it unfolds to more than 100000 values"),
        (MERGES, "it unfolds to more than 100000 values"),
        ("a: &a [*a]", "it unfolds to more than 100000 values"),
        ("a: " + "[" * 1200, "nested too deep"),
        ("a: 2001-99-99", "month must be in"),
        ("#" * (1 << 20) + "\n", "more than 1048576 bytes"),
    ],
    ids=["call", "name", "laughs", "merges", "itself", "nested", "date", "long"],
)
def test_configs_that_unfold_or_run(
    tmp_path: Path, little_memory: None, text: str, message: str
) -> None:
    made = tmp_path / "made"
    (tmp_path / "c.yaml").write_text(text.replace("{made}", str(made)))
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(Config, tmp_path / "c.yaml")
    assert len(str(caught.value)) < 400
    assert not made.exists()


def test_a_config_may_still_have_aliases(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: {b: &b {x: 1}, c: *b, d: {<<: *b, y: 2}}\n")
    assert load_settings(Config, tmp_path / "c.yaml").a == {
        "b": {"x": 1},
        "c": {"x": 1},
        "d": {"x": 1, "y": 2},
    }


def test_overrides_that_unfold(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    with pytest.raises(SettingsError, match="is not valid YAML"):
        load_settings(Config, tmp_path / "c.yaml", ["a=" + "[" * 1200])


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: str) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


def test_weights_that_run(tmp_path: Path) -> None:
    torch.save({"step": Evil(str(tmp_path / "made"))}, tmp_path / "w.pt")
    for read in (read_weights, load_checkpoint):
        with pytest.raises(PretrackError, match="cannot be read"):
            read(tmp_path / "w.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", len(DEEP)) + DEEP,
        struct.pack("<Q", 66)
        + b'{"a":{"dtype":"F32","shape":[1073741824,8],"data_offsets":[0,4]}} ',
        struct.pack("<Q", 66)
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[99999999,10000]}} ',
        b"",
    ],
)
def test_safetensors_that_lie(tmp_path: Path, little_memory: None, header: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(header + bytes(8))
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "state", [[1, 2], {"model": {}}, {"settings": 3, "step": 1}, {"settings": {}, "step": "x"}]
)
def test_checkpoints_of_other_programs(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "step_00000001.pt")
    with pytest.raises(PretrackError, match="is not a checkpoint of pretrack"):
        load_checkpoint(tmp_path / "step_00000001.pt")


# Patterns that the product's files are searched for: nothing is loaded here. Each has a text that
# makes a match harmless, or None. A subclass of Unpickler that refuses names is allowed.
UNSAFE_CALLS = {
    r"torch\.load\(": "weights_only=True",
    r"\byaml\.(load|unsafe_load|full_load)\w*\(": None,
    r"\bpickle\.(load|Unpickler\()|\bfrom pickle\b|\bimport pickle as\b|allow_pickle=True": None,
    r"\b(dill|joblib|marshal|shelve)\b": None,
    r"\.extractall\(|\.extract\(|unpack_archive": None,
    r"(?<![\w.])(eval|exec)\(|os\.system\(|shell=True": None,
}


def unsafe_lines(folder: Path) -> list[str]:
    """List the lines of Python files below a folder that could run the content of a file."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"{folder} has no Python files: nothing would be searched"
    return [
        f"{path.relative_to(folder)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for call, harmless in UNSAFE_CALLS.items()
        if re.search(call, line) and not (harmless and harmless in line)
    ]


@pytest.mark.parametrize("folder", ["shards", "manifests", "pipeline", "trainer"])
def test_no_code_runs_what_it_reads(folder: str) -> None:
    assert unsafe_lines(ROOT / folder) == []


@pytest.mark.parametrize(
    "line",
    [
        "state = torch.load(path)",
        "state = torch.load(path, weights_only=False)",
        "values = yaml.load(text, yaml.Loader)",
        "values = yaml.unsafe_load(text)",
        "values = yaml.full_load_all(text)",
        "rows = pickle.loads(data)",
        "rows = pickle.Unpickler(file).load()",
        "from pickle import loads",
        "import pickle as p",
        "array = np.load(file, allow_pickle=True)",
        "import joblib",
        "tar.extractall(folder)",
        "archive.extract(name)",
        "shutil.unpack_archive(file)",
        "value = eval(text)",
        "exec(text)",
        'os.system(f"ls {name}")',
        "subprocess.run(command, shell=True)",
    ],
)
def test_an_unsafe_call_is_found_wherever_it_is(tmp_path: Path, line: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "fine.py").write_text(
        "torch.load(path, weights_only=True)\nmodel.eval()\nyaml.safe_load(text)\n"
        "class Strict(pickle.Unpickler):\n    pass\n"
    )
    (tmp_path / "deep" / "unsafe.py").write_text(f"import os\n\n    {line}\n")
    assert unsafe_lines(tmp_path) == [f"deep/unsafe.py:3: {line}"]


def test_a_search_of_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="has no Python files"):
        unsafe_lines(tmp_path)


@pytest.mark.slow
def test_the_cli_reports_a_hostile_config_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(LAUGHS)
    command = [sys.executable, "-m", "pipeline", "build", str(tmp_path / "c.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert "unfolds to more than 100000 values" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
