"""Folders that hold more than one kind of picture: the colour video is told from the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline.sources.listing import images_in
from pipeline.sources.picture_kinds import (
    choose_video,
    describe_others,
    header_of,
    picture_kinds,
)


def write(folder: Path, names: list[str], mode: str = "RGB") -> None:
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 4)).save(folder / name)


def numbered(pattern: str, count: int = 6) -> list[str]:
    return [pattern.replace("#", f"{number:04d}") for number in range(count)]


def chosen(folder: Path) -> tuple[list[str], str]:
    """Return the names of the video's images, and the sentence on what is left out."""
    kinds = picture_kinds(folder, images_in(folder, ""))
    video = choose_video(kinds)
    others = [kind for kind in kinds if kind is not video]
    names = sorted(file.name for file in video.files) if video else []
    return names, describe_others(video, others) if others else ""


@pytest.mark.parametrize(
    ("colour", "other"),
    [
        ("frame-#.color.png", "frame-#.depth.png"),
        ("rgb_#.png", "depth_#.png"),
        ("#.jpg", "#_mask.png"),
        ("IMG_#.jpg", "thumb_#.jpg"),
        ("#.png", "#_normals.png"),
        ("#_x.png", "#_seg.png"),
        ("z_frame_#.jpg", "left_#.jpg"),
    ],
)
def test_the_colour_images_are_kept_by_their_names(tmp_path: Path, colour: str, other: str) -> None:
    """All are in colour and equally many here, so that only names can tell."""
    write(tmp_path, numbered(colour))
    write(tmp_path, numbered(other))
    names, sentence = chosen(tmp_path)
    assert names == numbered(colour)
    assert sentence.endswith(f": 6 {other.replace('#', '*')}")


def test_thumbnails_are_left_out_even_if_there_are_more_of_them(tmp_path: Path) -> None:
    write(tmp_path, numbered("IMG_#.jpg", 5))
    write(tmp_path, numbered("thumb_#.jpg", 12))
    assert chosen(tmp_path)[0] == numbered("IMG_#.jpg", 5)


@pytest.mark.parametrize(
    ("mode", "said"), [("I;16", "16-bit grey"), ("L", "grey"), ("P", "palette")]
)
def test_images_with_the_same_numbers_are_told_apart_by_their_pixels(
    tmp_path: Path, mode: str, said: str
) -> None:
    """Masks and depth beside `.jpg` images, as in many datasets: 0001.jpg and 0001.png."""
    write(tmp_path, numbered("#.jpg"))
    write(tmp_path, numbered("#.png"), mode)
    names, sentence = chosen(tmp_path)
    assert names == numbered("#.jpg")
    assert sentence.endswith(f"6 *.png ({said})")


def test_depth_between_colour_images_of_one_numbering_is_left_out(tmp_path: Path) -> None:
    names = numbered("#.png", 60)
    write(tmp_path, names[::2])
    write(tmp_path, names[1::2], "I;16")
    kept, sentence = chosen(tmp_path)
    assert kept == names[::2]
    assert sentence == (
        "30 images beside the video's 30 *.png are of other kinds and left out: "
        "30 *.png (16-bit grey)"
    )


def test_a_cover_and_other_single_images_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, numbered("frame#.png", 10))
    write(tmp_path, ["cover.png", "poster.png"])
    kept, sentence = chosen(tmp_path)
    assert kept == numbered("frame#.png", 10)
    assert sentence.endswith("1 cover.png, 1 poster.png")


def test_a_folder_of_one_kind_is_the_video_whatever_it_is(tmp_path: Path) -> None:
    """A user may want tracks in depth maps, and masks may be a party's."""
    for folder, pattern, mode in (
        ("grey", "#.png", "L"),
        ("deep", "depth_#.png", "I;16"),
        ("party", "mask_#.png", "RGB"),
    ):
        write(tmp_path / folder, numbered(pattern), mode)
        assert chosen(tmp_path / folder) == (numbered(pattern), "")
    write(tmp_path / "party", ["cover.png"])
    assert chosen(tmp_path / "party")[0] == numbered("mask_#.png")


def test_names_that_have_nothing_in_common_are_one_kind(tmp_path: Path) -> None:
    names = ["apple.png", "boat.png", "ce3f01.png", "d.png"]
    write(tmp_path, names)
    assert chosen(tmp_path) == (names, "")


def test_a_few_colour_images_do_not_replace_a_grey_video(tmp_path: Path) -> None:
    write(tmp_path, numbered("frame_#.png", 40), "L")
    write(tmp_path, ["plot_1.png", "plot_2.png"])
    assert chosen(tmp_path)[0] == numbered("frame_#.png", 40)


def test_a_folder_of_depth_and_masks_has_no_video_and_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, numbered("depth_#.png"), "I;16")
    write(tmp_path, numbered("mask_#.png"), "L")
    assert chosen(tmp_path) == (
        [],
        "none of its kinds of pictures is a colour video (6 depth_*.png (16-bit grey), "
        "6 mask_*.png (grey)): put the images of the video into a folder of their own",
    )


def test_images_that_cannot_be_opened_stay_with_the_video(tmp_path: Path) -> None:
    write(tmp_path, numbered("#.png"))
    for name in ("0002.png", "0005.png"):
        (tmp_path / name).write_bytes(b"")
    write(tmp_path, ["0004.png"], "I;16")
    assert chosen(tmp_path)[0] == ["0000.png", "0001.png", "0002.png", "0003.png", "0005.png"]


def test_pixels_are_described_by_their_mode() -> None:
    modes = {"RGB": "colour", "CMYK": "colour", "1": "grey", "LA": "grey", "I;16B": "16-bit grey"}
    assert {mode: header_of(mode, False).channels for mode in modes} == modes
    assert header_of("F", False).channels == "32-bit grey"
    assert header_of("RGBA", True).alpha
