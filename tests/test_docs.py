"""The documentation builds without a warning, loads nothing from elsewhere, matches the code."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pyarrow as pa
import pytest
import yaml
from pydantic import BaseModel, Field
from typer.main import get_command

from manifests.settings import Settings
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS
from pipeline.cli import app
from pipeline.config import BuildSettings
from pipeline.inspection.sql import SnapshotQueries
from shards.clip import Camera, ClipInfo
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips
from trainer.config import TrainSettings
from trainer.data.settings import DataSettings
from trainer.losses.settings import LossSettings

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md"))]
"""The pages of the site, and those that GitHub shows."""
PACKAGES = ("shards", "manifests", "pipeline", "trainer")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with every warning an error."""
    pytest.importorskip(
        "mkdocs", reason="the site needs the extra 'docs': pip install 'pretrack[docs]'"
    )
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Resources(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.urls.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("next", "prev", "canonical"):
            self.urls.append(given.get("href") or "")


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {page.relative_to(site).as_posix() for page in pages} >= {
        p.relative_to(DOCS).with_suffix(".html").as_posix() for p in PAGES
    }
    for page in pages:
        resources = Resources()
        resources.feed(page.read_text())
        assert resources.urls
        outside = [url for url in resources.urls if url.startswith(("http:", "https:", "//"))]
        assert not outside, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet
    assert not list(site.rglob("*.py")), "hooks are no part of the site"


@pytest.mark.slow
def test_the_settings_pages_have_every_setting(site: Path) -> None:
    build, training = (
        (site / "settings" / f"{name}.html").read_text() for name in ("build", "training")
    )
    for key in (
        "clip_frames",
        "anchors",
        "min_viewpoint_quality",
        "tracker_gpus",
        "Forward-backward",
        "from 1 to 128",
    ):
        assert key in build
    for key in ("crop_scale", "student_steepness", "jitter", "checkpoint_every"):
        assert key in training


@pytest.mark.slow
def test_the_pages_show_the_files_that_they_include(site: Path) -> None:
    included = {
        page: re.findall(r'^--8<-- "(.+)"$', page.read_text(), re.MULTILINE) for page in PAGES
    }
    assert sum(map(len, included.values())) > 10
    for page, files in included.items():
        text = html.unescape(
            re.sub("<[^>]+>", "", (site / page.relative_to(DOCS).with_suffix(".html")).read_text())
        )
        assert "--8" not in text, page
        for file in files:
            assert "\n".join((REPOSITORY / file).read_text().splitlines()[-3:]) in text, file


def hook(name: str) -> ModuleType:
    """Load a hook of the site as MkDocs does."""
    spec = importlib.util.spec_from_file_location(f"{name}_hook", DOCS / "hooks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", [BuildSettings, TrainSettings])
def test_every_setting_is_explained(model: type) -> None:
    rows = [line for line in hook("settings").settings_page(model) if line.startswith("| `")]
    assert len(rows) > 20
    for row in rows:
        key, kind, default, meaning = re.split(r"(?<!\\)\|", row)[1:5]
        assert kind.strip(), row
        assert default.strip(), row
        assert len(meaning.strip()) > 5, f"{model.__name__}: {key} has no docstring"
        assert meaning.rstrip().endswith((".", ".)")), (
            f"{model.__name__}: {key} ends amid a sentence"
        )
        assert "typing." not in row


def test_types_and_bounds_of_settings_are_in_words() -> None:
    class Inner(BaseModel):
        """The first paragraph
        has two lines.

        The second is left out.
        """

    class Model(BaseModel):
        """Settings of several types."""

        size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] | None = None
        count: int | None = Field(None, ge=1, lt=9, description="Number.")
        names: tuple[str, ...] = Field(("a", "b"), description="Names.")
        mode: Literal["fast", "exact"] = Field("fast", description="Mode.")
        shares: dict[str, float] = Field({}, description="Shares.")
        inner: Inner

    rows = [line for line in hook("settings").settings_page(Model) if line.startswith("| `")]
    assert rows == [
        "| `size` | list of 2 integers from 16 or null | `null` |  |",
        "| `count` | integer from 1 below 9 or null | `null` | Number. |",
        "| `names` | list of texts | `['a', 'b']` | Names. |",
        "| `mode` | `fast` or `exact` | `fast` | Mode. |",
        "| `shares` | mapping of text to number | `{}` | Shares. |",
        "| `inner` | section, below | *required* | The first paragraph has two lines. |",
    ]


def test_the_commands_page_has_every_option() -> None:
    text = "\n".join(hook("commands").commands_page())
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        shown = set(re.findall(r"^\| `(--[a-z-]+)", sections[name], re.MULTILINE))
        assert shown == {
            parameter.opts[0]
            for parameter in command.params
            if parameter.param_type_name == "option"
        }, name
        assert command.help.splitlines()[0] in sections[name]


@cache
def strings() -> frozenset[str]:
    """Return every string in the code, with … for the values that an f-string formats."""
    texts = set()
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.add(
                        "".join(
                            str(part.value) if isinstance(part, ast.Constant) else "…"
                            for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return frozenset(texts)


def rows_of(text: str) -> list[str]:
    """Return the code spans in the first cells of a page's tables."""
    return [
        code
        for line in text.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    ]


def test_every_message_of_the_trouble_page_is_in_the_code() -> None:
    code = "\n".join(strings())
    messages = rows_of((DOCS / "trouble.md").read_text())
    assert len(messages) > 40
    for message in messages:
        parts = [re.escape(part) for part in message.split("…")]
        assert max(map(len, parts)) > 10, message
        assert re.search("[^\n]*".join(parts), code), f"no code says '{message}'"


@pytest.mark.parametrize(
    "page", sorted((DOCS / "datasets").glob("*.md")), ids=lambda page: page.stem
)
def test_every_reason_of_a_datasets_page_is_in_the_code(page: Path) -> None:
    _, _, left_out = page.read_text().partition("## What is left out")
    for reason in rows_of(left_out):
        assert reason in strings(), f"nothing is left out for '{reason}'"
    assert f"configs/{page.stem}.yaml" in page.read_text()


@pytest.mark.parametrize(
    ("heading", "schema"),
    [("clips", CLIPS), ("shards", SHARDS), ("videos", VIDEOS), ("failures", FAILURES)],
)
def test_the_format_page_has_every_column_with_its_type(heading: str, schema: pa.Schema) -> None:
    section = (DOCS / "format.md").read_text().split(f"\n### {heading}\n")[1].split("\n#")[0]
    typed: dict[str, str] = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            names, kind, _ = line.strip("| ").split(" | ", 2)
            typed |= dict.fromkeys(re.findall(r"`(\w+)`", names), kind.split(",")[0])
    assert typed.keys() == set(schema.names)
    for column in schema:
        inner = column.type.value_type if pa.types.is_list(column.type) else column.type
        name = "struct" if pa.types.is_struct(inner) else str(inner).replace("float", "float32")
        assert typed[column.name] == (
            f"list of {name}" if pa.types.is_list(column.type) else name
        ), column.name


def test_the_format_page_has_every_field_of_a_description() -> None:
    section = (
        (DOCS / "format.md")
        .read_text()
        .split("\n### The description\n")[1]
        .split("\n### The tracks\n")[0]
    )
    assert set(rows_of(section)) == {field.name for field in (*fields(ClipInfo), *fields(Camera))}


def test_files_that_the_pages_name_are_there() -> None:
    folders = "configs|examples|benchmarks|docs|scripts|tests|pipeline|trainer|manifests|shards"
    named = {
        name
        for page in TEXTS
        for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/.]+\w\b", page.read_text())
    }
    assert len(named) > 60
    made_by_readers = {"pipeline/sources/davis.py"}
    missing = {
        name
        for name in named - made_by_readers
        if not (REPOSITORY / name).exists()
        and not re.search(r"NAME|SOURCE|\.tar$|\.parquet$", name)
    }
    assert not missing


def test_names_that_the_pages_import_exist() -> None:
    blocks = [
        block
        for page in TEXTS
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    imported = {
        (node.module, alias.name)
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES
        for alias in node.names
    }
    assert len(imported) > 8
    for module, name in imported:
        assert hasattr(importlib.import_module(str(module)), name), f"{module}.{name}"


def test_the_changelog_names_where_imports_moved_to() -> None:
    moved = re.findall(
        r"^\| `(?:trainer|pipeline|shards)\.[^|]+ \| `([\w.]+)`",
        (REPOSITORY / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert len(moved) > 12
    for path in moved:
        module, _, name = path.rpartition(".")
        parent = importlib.import_module(module)
        assert hasattr(parent, name) or importlib.util.find_spec(path), path


def test_commands_that_the_pages_name_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    evaluations = commands["evaluate"]
    shell = "\n".join(
        block
        for page in TEXTS
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    )
    used = set(re.findall(r"^\s*pretrack (\w+)", shell, re.MULTILINE))
    assert used >= {"build", "plan", "stats", "export", "train", "evaluate"}
    assert used <= commands.keys()
    for name, arguments in re.findall(r"pretrack (\w+)([^\n#|]*)", shell):
        command = commands[name]
        if name == "evaluate":
            command = evaluations.get_command(None, arguments.split()[0])
        options = {option for parameter in command.params for option in parameter.opts}
        shown = set(re.findall(r"(?<!\w)--[a-z-]+", arguments.split('"')[0]))
        assert shown <= options, f"{name}{arguments}"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> SnapshotQueries:
    return SnapshotQueries(
        publish_clips(
            tmp_path_factory.mktemp("asked"),
            [make_clip(f"made-{n}-00000000-000000", n) for n in range(2)],
        )
    )


def queries() -> list[str]:
    """Return every query in the pages: those after --sql, and those in blocks of SQL."""
    text = "\n".join(page.read_text() for page in TEXTS)
    blocks = [
        query
        for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
        for query in block.split(";")
        if query.strip()
    ]
    return [*re.findall(r'--sql "(.*?)"', text, re.DOTALL), *blocks]


@pytest.mark.parametrize("sql", queries())
def test_queries_that_the_pages_show_are_answered(questions: SnapshotQueries, sql: str) -> None:
    assert questions.ask(sql).columns


def test_settings_that_the_pages_show_are_understood() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "jobs" / "train.md").read_text(), re.DOTALL)
    models: dict[str, type[Settings]] = {"data": DataSettings, "loss": LossSettings}
    parts = {name: part for block in blocks for name, part in yaml.safe_load(block).items()}
    assert parts.keys() == models.keys()
    for name, part in parts.items():
        models[name].model_validate(part)
