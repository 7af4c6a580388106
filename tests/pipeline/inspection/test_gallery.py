"""The gallery, as a person sees it in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manifests.snapshot import Snapshot
from pipeline.cli import app
from pipeline.inspection.contact_sheet import ClipChoice
from pipeline.inspection.gallery.write import MOST_CLIPS, write_gallery
from pipeline.monitoring.progress import Progress
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import TEMPORARY
from tests.helpers.browser import Opened, chromium_browser, visit
from tests.helpers.clips import GREY, WIDTH, grey_clip
from tests.helpers.object_store import BUCKET, s3_environment, s3_server
from tests.helpers.published import publish_clips
from tests.helpers.web_server import web_server

QUIET = Progress(quiet=True)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CLIPS = {
    "pans-a-000000": {"video": "a.mp4", "source": "pans"},
    "pans-a-000008": {"video": "a.mp4", "source": "pans", "step": (9.0, 0.0)},
    "pans-b-000000": {"video": HOSTILE, "source": "pans", "split": "eval"},
    "walks-c-000000": {"video": "c.mp4", "source": "walks", "step": (0.0, 12.0)},
}
MOST_NODES_AT_FIRST, MOST_NODES = 1_000, 3_600


class Gallery:
    """A gallery in a browser."""

    def __init__(self, opened: Opened) -> None:
        self.page = opened.page
        self.page.wait_for_selector(".card")
        self.requests, self.faults = opened.requests, opened.faults

    def cards(self) -> list[str]:
        """The names on the cards."""
        names: list[str] = self.page.locator(".card .name").all_text_contents()
        return names

    def open(self, number: int) -> None:
        """Opens a clip from the list."""
        self.page.locator(".card").nth(number).click()
        self.page.wait_for_selector("canvas")

    def seek(self, frame: int) -> None:
        """Moves the slider of the player."""
        self.page.locator("#frame").evaluate(
            "(slider, t) => { slider.value = t; slider.dispatchEvent(new Event('input')) }", frame
        )

    def frame(self) -> int:
        """The frame that is shown."""
        return int(self.page.locator("#frame").input_value())

    def pixel(self, place: Iterable[float], view: int = 0) -> tuple[int, ...]:
        """The colour that a canvas shows at a place of the stored frame, in its pixels."""
        return tuple(
            self.page.locator("canvas")
            .nth(view)
            .evaluate(
                """(canvas, [x, y, width]) => {
                    const scale = canvas.width / width;
                    const at = [(x + .5) * scale, (y + .5) * scale];
                    const { data } = canvas.getContext("2d").getImageData(...at, 1, 1);
                    return [...data].slice(0, 3);
                }""",
                [*map(float, place), WIDTH],
            )
        )


def colourful(pixel: tuple[int, ...]) -> bool:
    return max(pixel) - min(pixel) > 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with chromium_browser() as browser:
        yield browser


def look(chromium: Any, address: str, **context: Any) -> Gallery:
    return Gallery(visit(chromium, address, **context))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """The same clips with 4x4 points, and with 2x2; one of them only in the first."""
    out = tmp_path_factory.mktemp("gallery") / "out"
    motion = (0.02, 0.3, 0.05, 0.2)
    made = [
        publish_clips(
            out,
            [grey_clip(key, grid=grid, **said) for key, said in list(CLIPS.items())[:count]],  # type: ignore[arg-type]
            motion=motion,
            settings={"tracks": {"tracker": "lucas_kanade", "grid": grid}},
        )
        for grid, count in ((4, 4), (2, 3))
    ]
    return made[0], made[1]


@pytest.fixture(scope="module")
def folder(snapshots: tuple[Snapshot, Snapshot], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "a gallery"
    write_gallery(snapshots[0], folder, QUIET)
    return folder


@pytest.fixture
def opened(chromium: Any, folder: Path) -> Iterator[Gallery]:
    opened = look(chromium, (folder / "index.html").as_uri())
    yield opened
    assert opened.faults == []
    opened.page.context.close()


def test_it_needs_nothing_from_elsewhere_and_loads_only_the_clip_that_is_open(
    opened: Gallery, folder: Path
) -> None:
    assert len(opened.cards()) == 4
    opened.open(1)
    outside = [
        url for url in opened.requests if not url.startswith((folder.as_uri() + "/", "data:"))
    ]
    assert outside == []
    assert [
        url.rsplit("/", 1)[1] for url in opened.requests if "/clips/" in url and url.endswith(".js")
    ] == ["000001.js"]


def test_it_works_from_a_web_server_too(chromium: Any, folder: Path) -> None:
    with web_server(folder) as served:
        opened = look(chromium, f"{served.url}/index.html#clip=pans-a-000008")
        opened.page.wait_for_selector("canvas")
        assert all(url.startswith((served.url, "data:")) for url in opened.requests)
        opened.page.context.close()
    assert opened.faults == []


@pytest.mark.slow
def test_it_works_from_the_bucket_that_it_was_written_to(
    chromium: Any, snapshots: tuple[Snapshot, Snapshot]
) -> None:
    with s3_server() as port, s3_environment(port):
        made = write_gallery(snapshots[0], Url(f"s3://{BUCKET}/pictures"), QUIET)
        assert str(made.page) == f"s3://{BUCKET}/pictures/index.html"
        known = {"Authorization": "AWS key:signature"}  # the bucket is not open to everybody
        opened = look(
            chromium,
            f"http://127.0.0.1:{port}/{BUCKET}/pictures/index.html",
            extra_http_headers=known,
        )
        opened.open(0)
        assert colourful(opened.pixel(grey_clip("pans-a-000000").tracks.positions[0, 4, 5]))
        assert opened.faults == []
        opened.page.context.close()


def test_a_name_that_is_a_script_is_only_text(opened: Gallery) -> None:
    assert HOSTILE in opened.cards()
    opened.open(opened.cards().index(HOSTILE))
    assert opened.page.locator("#name").text_content() == HOSTILE
    assert opened.page.locator("body script, body img[src=x]").count() == 0


def test_the_terms_of_the_frames_are_said(opened: Gallery) -> None:
    said = opened.page.locator("#terms li").all_text_contents()
    assert said == ["pans: made by a test", "walks: made by a test"]


@pytest.mark.slow
def test_filters(opened: Gallery) -> None:
    page = opened.page
    page.fill("#search", "c.mp4 walks")
    assert opened.cards() == ["c.mp4"]
    assert page.locator("#found").text_content() == "1 of 4 clips"
    page.click("#clear")
    assert len(opened.cards()) == 4

    page.locator(".chip", has_text="pans · eval").click()
    assert opened.cards() == [HOSTILE]
    page.click("#clear")

    page.locator("#motion input").first.fill("50")  # of a scale that ends at 0.3
    assert opened.cards() == ["a.mp4", "c.mp4"]
    page.locator("#visible input").first.fill("100")
    assert opened.cards() == []
    assert page.locator("#found").text_content() == "No clips match."
    page.click("#clear")
    page.select_option("#sort", "motion-")
    assert opened.cards() == ["a.mp4", "c.mp4", HOSTILE, "a.mp4"]


def test_points_are_drawn_where_the_tracks_are(opened: Gallery) -> None:
    tracks = grey_clip("pans-a-000000").tracks
    opened.open(0)
    for t in (0, 3, 7):
        opened.seek(t)
        for n in (0, 5, 10):
            x, y = tracks.positions[0, t, n]
            assert colourful(opened.pixel((x, y))), (t, n)
            assert not colourful(opened.pixel((x + 8, y - 8)))
    opened.page.locator("#anchors button", has_text="4").click()
    opened.seek(0)
    x, y = tracks.positions[1, 0, 6]
    assert colourful(opened.pixel((x, y)))


@pytest.mark.slow
def test_one_point_can_be_followed_alone(opened: Gallery) -> None:
    tracks = grey_clip("pans-a-000000").tracks
    opened.open(0)
    opened.seek(2)
    box = opened.page.locator("canvas").bounding_box()
    scale = box["width"] / WIDTH
    x, y = ((tracks.positions[0, 2, 5] + 0.5) * scale).tolist()
    opened.page.mouse.click(box["x"] + x, box["y"] + y)
    told = opened.page.locator("#picked").text_content()
    assert told.startswith("000001: point 5 from frame 0\n")
    assert "visible 100%, confidence 100%" in told
    assert colourful(opened.pixel(tracks.positions[0, 2, 5]))
    assert not colourful(opened.pixel(tracks.positions[0, 2, 6]))
    opened.page.mouse.click(box["x"] + x + 40, box["y"] + y + 40)
    assert opened.page.locator("#picked").text_content() == ""
    assert colourful(opened.pixel(tracks.positions[0, 2, 6]))


@pytest.mark.slow
def test_hidden_points_are_hollow_and_can_be_left_out(chromium: Any, tmp_path: Path) -> None:
    clip = grey_clip("hidden", step=(0.0, 0.0))
    clip.tracks.visibility[:, 2:] = 0
    snapshot = publish_clips(tmp_path / "out", [clip])
    page = write_gallery(snapshot, tmp_path / "gallery", QUIET).page
    assert isinstance(page, Path)
    opened = look(chromium, page.as_uri())
    opened.open(0)
    x, y = clip.tracks.positions[0, 0, 5]
    ring = """(canvas, [x, y, width]) => {
        const scale = canvas.width / width, reach = 16;
        const corner = [(x + .5) * scale - reach, (y + .5) * scale - reach];
        const { data } = canvas.getContext("2d").getImageData(...corner, 2 * reach, 2 * reach);
        const indices = [...Array(data.length / 4).keys()];
        const spreads = indices.map((i) => [...data.slice(4 * i, 4 * i + 3)]);
        return Math.max(...spreads.map((pixel) => Math.max(...pixel) - Math.min(...pixel)));
    }"""
    opened.seek(1)
    assert colourful(opened.pixel((x, y)))
    assert opened.page.locator("#curve-said").text_content() == "100% of the points are visible"
    opened.seek(4)
    assert opened.page.locator("#curve-said").text_content() == "0% of the points are visible"
    assert opened.pixel((x, y)) == pytest.approx((GREY,) * 3, abs=3)
    assert opened.page.locator("canvas").evaluate(ring, [float(x), float(y), WIDTH]) > 60
    opened.page.keyboard.press("h")
    assert opened.page.locator("canvas").evaluate(ring, [float(x), float(y), WIDTH]) < 10
    opened.page.context.close()


@pytest.mark.slow
def test_of_very_many_points_it_says_which_are_drawn(chromium: Any, tmp_path: Path) -> None:
    page = write_gallery(
        publish_clips(tmp_path / "out", [grey_clip("many", grid=50)]), tmp_path / "gallery", QUIET
    ).page
    assert isinstance(page, Path)
    opened = look(chromium, page.as_uri())
    opened.open(0)
    assert opened.page.locator("#every button[aria-pressed=true]").all_text_contents() == ["5th"]
    opened.page.context.close()


@pytest.mark.slow
def test_keys(opened: Gallery) -> None:
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("a.mp4")
    assert len(opened.cards()) == 2
    page.locator("#search").blur()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("canvas")
    assert page.url.endswith("#clip=pans-a-000000")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert opened.frame() == 1
    page.keyboard.press("j")
    page.wait_for_url("**#clip=pans-a-000008")
    page.keyboard.press("k")
    page.wait_for_url("**#clip=pans-a-000000")
    page.wait_for_selector("canvas")
    began = opened.frame()
    page.keyboard.press("Space")
    page.wait_for_function(
        "began => document.getElementById('frame').value != began", arg=str(began)
    )
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-label") == "Play"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#player").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    assert len(opened.cards()) == 2, "the list is as it was"


@pytest.mark.slow
def test_dark_and_light(chromium: Any, folder: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    opened = look(chromium, (folder / "index.html").as_uri(), color_scheme="dark")
    assert opened.page.evaluate(ground) < 60
    opened.page.click("#theme")
    assert opened.page.evaluate(ground) > 200
    opened.page.reload()
    opened.page.wait_for_selector(".card")
    assert opened.page.evaluate(ground) > 200, "the choice is kept"
    opened.page.context.close()


@pytest.mark.slow
def test_two_snapshots_side_by_side(
    chromium: Any, snapshots: tuple[Snapshot, Snapshot], tmp_path: Path
) -> None:
    made = write_gallery(snapshots[0], tmp_path, QUIET, against=snapshots[1])
    assert isinstance(made.page, Path)
    opened = look(chromium, made.page.as_uri())
    page = opened.page
    notes = page.locator("#notes li").all_text_contents()
    assert notes == [
        "From 000001 to 000002: tracks.grid 4 → 2",
        "1 of these clips is not in snapshot 000002, and shown without it.",
    ]
    opened.open(0)
    assert page.locator("canvas").count() == 2
    opened.seek(2)
    fine, coarse = (grey_clip("any", grid=grid).tracks.positions[0, 2] for grid in (4, 2))
    assert colourful(opened.pixel(fine[5], view=0))
    assert not colourful(opened.pixel(fine[5], view=1))
    assert all(colourful(opened.pixel(coarse[0], view=view)) for view in (0, 1)), (
        "a corner of both grids"
    )
    box = page.locator("canvas").first.bounding_box()
    x, y = ((fine[0] + 0.5) * box["width"] / WIDTH).tolist()
    page.mouse.click(box["x"] + x, box["y"] + y)
    told = page.locator("#picked").text_content()
    assert "000001: point 0 from frame 0" in told
    assert "000002: point 0 from frame 0" in told, "the nearest of the other grid"
    assert not colourful(opened.pixel(coarse[1], view=1))
    page.mouse.click(box["x"] + x + 40, box["y"] + y + 40)
    page.locator("#layout button", has_text="overlaid").click()
    assert page.locator("canvas").count() == 1
    assert colourful(opened.pixel(fine[5]))
    opened.page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    opened.open(3)
    assert page.locator("canvas").count() == 1
    assert opened.faults == []
    page.context.close()


@pytest.mark.slow
def test_a_finger_scrubs_on_a_phone(chromium: Any, folder: Path) -> None:
    opened = look(
        chromium,
        (folder / "index.html").as_uri(),
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
    )
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".card").first.tap()
    page.wait_for_selector("canvas")
    assert page.evaluate("document.getElementById('player').scrollWidth") <= 390
    opened.seek(0)
    box = page.locator("canvas").bounding_box()
    assert box["width"] > 340, "the picture is as wide as the phone"
    touch = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    for kind, part in (
        ("touchStart", 0.1),
        ("touchMove", 0.3),
        ("touchMove", 0.6),
        ("touchEnd", None),
    ):
        points = [] if part is None else [{"x": box["x"] + part * box["width"], "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait_for_function("document.getElementById('frame').value == '4'")  # half of 8 frames
    assert opened.faults == []
    page.context.close()


@pytest.mark.slow
def test_hundreds_of_clips_stay_light(chromium: Any, tmp_path: Path) -> None:
    clips = [
        grey_clip(f"many-{number:04d}", frames=2, grid=2, anchors=(0,))
        for number in range(MOST_CLIPS + 20)
    ]
    made = write_gallery(publish_clips(tmp_path / "out", clips), tmp_path / "gallery", QUIET)
    assert (made.clips, made.left_out) == (MOST_CLIPS, 20)
    assert isinstance(made.page, Path)
    opened = look(chromium, made.page.as_uri())
    nodes = "document.querySelectorAll('*').length"
    assert "20 more clips are not shown" in opened.page.locator("#notes").text_content()
    assert opened.page.evaluate(nodes) < MOST_NODES_AT_FIRST
    for _ in range(20):
        opened.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        if opened.page.locator(".card").count() == MOST_CLIPS:
            break
        opened.page.wait_for_timeout(50)
    assert opened.page.locator(".card").count() == MOST_CLIPS
    assert opened.page.evaluate(nodes) < MOST_NODES
    opened.page.context.close()


def test_a_smaller_gallery_over_a_larger_one_leaves_nothing_of_it(
    snapshots: tuple[Snapshot, Snapshot], tmp_path: Path
) -> None:
    write_gallery(snapshots[0], tmp_path, QUIET)
    (tmp_path / "clips" / "mine.txt").write_text("kept")
    for folder in (tmp_path, tmp_path / "clips"):  # as a killed process leaves them
        (folder / f"{TEMPORARY}0123456789ab").write_text("half of a")
    of_export = tmp_path / f"{TEMPORARY}pear.mp4"
    of_export.mkdir()
    made = write_gallery(snapshots[0], tmp_path, QUIET, ClipChoice(count=1))
    assert made.clips == 2
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [
        "000000.jpg",
        "000000.js",
        "000001.jpg",
        "000001.js",
        "mine.txt",
    ]
    assert list(tmp_path.glob(f"{TEMPORARY}*")) == [of_export]
    with pytest.raises(PretrackError, match="no clip of snapshot 000001 has 'nothing' in its key"):
        write_gallery(snapshots[0], tmp_path, QUIET, ClipChoice(("nothing",)))


def test_a_damaged_clip_is_left_out_and_named(tmp_path: Path) -> None:
    snapshot = publish_clips(tmp_path / "out", [grey_clip("made-a"), grey_clip("made-b")])
    row = snapshot.clips.to_pylist()[1]
    tar = tmp_path / "out" / "shards" / f"{row['shard']}.tar"
    data = bytearray(tar.read_bytes())
    data[row["tracks_offset"] : row["tracks_offset"] + 8] = bytes(8)
    tar.write_bytes(data)
    made = write_gallery(snapshot, tmp_path / "gallery", QUIET)
    assert made.clips == 1
    assert len(made.damaged) == 1
    assert "clip made-b in" in made.damaged[0]
    index = json.loads(
        (tmp_path / "gallery" / "clips.js")
        .read_text()
        .removeprefix("pretrackGallery(")
        .removesuffix(");\n")
    )
    assert [entry["key"] for entry in index["clips"]] == ["made-a"]
    assert index["notes"] == [f"1 clip could not be read; the first: {made.damaged[0]}"]


def test_a_figure_that_is_no_number_is_a_question_mark(chromium: Any, tmp_path: Path) -> None:
    snapshot = publish_clips(
        tmp_path / "out", [grey_clip("made-a"), grey_clip("made-b")], motion=[float("nan"), 0.1]
    )
    page = write_gallery(snapshot, tmp_path / "gallery", QUIET).page
    assert isinstance(page, Path)
    opened = look(chromium, page.as_uri())
    assert [
        "motion\u00a0?" in facts for facts in opened.page.locator(".facts").all_text_contents()
    ] == [True, False]
    assert opened.faults == []
    opened.page.context.close()


def pretrack(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    }
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment | variables,
    )


def test_the_command_opens_a_browser_where_there_is_one(
    snapshots: tuple[Snapshot, Snapshot], tmp_path: Path
) -> None:
    out = snapshots[0].out
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/visited\n')
    browser.chmod(0o755)
    done = pretrack("show", out, "--open", "--to", tmp_path / "gallery", BROWSER=f"{browser} %s")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "gallery" / "index.html"
    assert done.stdout == f"3 clips: {page}\n"
    assert (tmp_path / "visited").read_text().strip() == page.as_uri()
    alone = pretrack("show", out, "--open", "--snapshot", "000001", "--clip", "walks", "--json")
    assert json.loads(alone.stdout) == {
        "page": f"{out}/pictures/gallery/index.html",
        "clips": 1,
        "left_out": 0,
        "damaged": [],
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--against", "000001"], "--against 000001 compares snapshots in a gallery: add --open"),
        (
            ["--open", "--snapshot", "000009"],
            "has no snapshot '000009' (there are: 000001, 000002)",
        ),
        (["--open", "--clip", "nowhere"], "no clip of snapshot 000002 has 'nowhere' in its key"),
        (["--to", "s3://bucket/pictures"], "videos cannot be written to s3://bucket/pictures"),
    ],
)
def test_bad_input_is_one_sentence(
    snapshots: tuple[Snapshot, Snapshot], arguments: list[str], says: str
) -> None:
    done = CliRunner().invoke(app, ["show", str(snapshots[0].out), *arguments])
    assert done.exit_code == 1
    assert done.stderr.startswith("pretrack: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
