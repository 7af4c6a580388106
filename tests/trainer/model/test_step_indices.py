"""Indices of a step name each frame once, survive the way to a device, and have fixed shapes."""

from __future__ import annotations

import pytest
import torch

from trainer.methods.draws import pack_draws, unpack_draws
from trainer.model.feature_sampling import References
from trainer.model.step_indices import StepIndices, make_indices


def references(*frames: list[int], across_ranks: bool = False) -> References:
    frame = torch.tensor(frames)
    return References(frame, frame % 3, frame % 2, across_ranks)


def tensors(indices: StepIndices) -> list[list[int]]:
    r = indices.references
    return [
        tensor.tolist()
        for tensor in (
            indices.compared,
            indices.compared_frames,
            indices.tail_frames,
            indices.tracked,
            r.frame,
            r.top,
            r.left,
        )
    ]


def test_each_frame_that_is_compared_or_cropped_is_named_once() -> None:
    # Two clips of 4 frames: frames 0 to 3 and 4 to 7. Frame 3 of each is compared.
    indices = make_indices(2, 4, compared=[3], references=references([7, 1], [0, 6]), side=2)
    assert tensors(indices) == [
        [3],
        [3, 7],
        [0, 1, 3, 6, 7],
        [2, 4],
        [[4, 1], [0, 3]],
        [[1, 1], [0, 0]],
        [[1, 1], [0, 0]],
    ]


def test_references_across_ranks_need_every_frame_and_keep_their_numbers() -> None:
    drawn = references([13, 1], [0, 6], across_ranks=True)
    indices = make_indices(2, 4, compared=[2, 3], references=drawn, side=2)
    assert indices.tail_frames.tolist() == list(range(8))
    assert indices.tracked.tolist() == [2, 3, 6, 7]
    assert indices.references is drawn


@pytest.mark.parametrize(
    ("compared", "drawn", "most"),
    [
        # 2 compared frames and 2 references: at most 4 frames, whichever are drawn
        ([3], ([3], [7]), 4),
        ([3], ([1], [6]), 4),
        # 4 compared frames and 6 references would be 10, and there are 8
        ([2, 3], ([5, 6, 1], [1, 2, 5]), 8),
    ],
)
def test_fixed_shapes_repeat_a_frame_that_nothing_refers_to(
    compared: list[int], drawn: tuple[list[int], ...], most: int
) -> None:
    lean, padded = (
        make_indices(
            2,
            4,
            compared=compared,
            references=references(*drawn),
            side=2,
            fixed_shapes=fixed,
        )
        for fixed in (False, True)
    )
    needed = len(lean.tail_frames)
    assert padded.tail_frames.tolist() == lean.tail_frames.tolist() + (
        [lean.tail_frames[-1].item()] * (most - needed)
    )
    assert tensors(padded)[3:] == tensors(lean)[3:]
    assert max(padded.tracked.max(), padded.references.frame.max()) < needed


def test_packed_indices_are_one_piece_and_unpack_to_the_same() -> None:
    parts = [
        make_indices(2, 4, compared=[2, 3], references=references([7, 1], [0, 6]), side=2),
        make_indices(2, 4, compared=[3], references=references([5], [2]), side=3),
    ]
    packed = pack_draws(parts)
    assert packed.ndim == 1
    copied = packed.clone()
    unpacked = unpack_draws(copied, parts)
    assert [tensors(part) for part in unpacked] == [tensors(part) for part in parts]
    assert [part.side for part in unpacked] == [2, 3]
    copied.zero_()
    assert unpacked[0].tail_frames.sum() == 0  # views, no copies
