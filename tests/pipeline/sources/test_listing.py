"""Order, frame numbers and identity of listed files."""

from __future__ import annotations

from pipeline.sources.listing import ListedFile, identity_of, number_frames, trailing_number


def order(*names: str) -> list[tuple[int, str]]:
    return [
        (number, file.name)
        for number, file in number_frames(ListedFile(name, 1, 1) for name in names)
    ]


def test_frames_are_ordered_by_number() -> None:
    assert order("f10.jpg", "f9.jpg", "f2.jpg") == [(2, "f2.jpg"), (9, "f9.jpg"), (10, "f10.jpg")]
    assert order("F7.JPG", "f3.png") == [(3, "f3.png"), (7, "F7.JPG")]


def test_numbers_after_different_beginnings_do_not_order_frames() -> None:
    """The seconds and fractions of TUM's names: the fraction alone would put 103.01 first."""
    assert order("103.016667.png", "102.983333.png", "102.750000.png") == [
        (0, "102.750000.png"),
        (1, "102.983333.png"),
        (2, "103.016667.png"),
    ]
    assert order("9.07.38.jpg", "10.00.01.jpg", "9.08.02.jpg") == [
        (0, "9.07.38.jpg"),
        (1, "9.08.02.jpg"),
        (2, "10.00.01.jpg"),
    ]
    assert order("a7.jpg", "b3.png") == [(0, "a7.jpg"), (1, "b3.png")]


def test_times_in_seconds_are_ordered_as_decimal_numbers() -> None:
    """As Python prints them, without zeros at the end: 0.2 is later than 0.16."""
    seconds = ["0.0.png", "0.04.png", "0.16.png", "0.2.png", "1.0.png", "10.12.png"]
    assert [name for _, name in order(*reversed(seconds))] == seconds
    epoch = ["1341847980.72.png", "1341847980.722.png", "1341847980.8.png", "1341847981.1.png"]
    assert [name for _, name in order(*reversed(epoch))] == epoch


def test_two_counters_in_a_name_are_ordered_as_whole_numbers() -> None:
    counters = [f"{scene}.{frame}.png" for scene in (1, 2) for frame in range(1, 12)]
    assert [name for _, name in order(*reversed(counters))] == counters


def test_without_distinct_numbers_frames_are_counted_in_natural_order() -> None:
    assert order("1.jpg", "1.png", "2.jpg") == [(0, "1.jpg"), (1, "1.png"), (2, "2.jpg")]
    assert order("x10_a.jpg", "x9_a.jpg") == [(0, "x9_a.jpg"), (1, "x10_a.jpg")]
    assert order("end.jpg", "2.jpg") == [(0, "2.jpg"), (1, "end.jpg")]


def test_a_frame_number_that_does_not_fit_an_int64_is_none() -> None:
    assert trailing_number("frame_00012") == 12
    assert trailing_number("12_frame") is None
    assert trailing_number("9" * 18) == 10**18 - 1
    assert trailing_number("1" * 19) is None


def test_identity_changes_with_name_size_and_stamp() -> None:
    identities = {
        identity_of([ListedFile(*file)])
        for file in (("a", 1, 1), ("b", 1, 1), ("a", 2, 1), ("a", 1, 2), ("a", 11, 0))
    }
    assert len(identities) == 5
    assert identity_of([ListedFile("a", 1, 1)]) in identities
