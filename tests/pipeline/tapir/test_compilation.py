"""How often `torch.compile` compiles TAPIR; graphs are then run by PyTorch's ordinary kernels."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipeline.tapir.tracking import track
from pipeline.tapir.weights import load_model


@pytest.mark.slow
def test_a_build_compiles_encoder_and_iteration_once_and_for_a_single_clip_once_more() -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    model = load_model("random", base_side=32)
    model.compile_parts(backend=counter)
    graphs = []
    for clips, frames, anchors in ((2, 4, (0, 2)), (1, 3, (0,)), (1, 5, (0, 2)), (3, 6, (0,))):
        video = torch.zeros(clips, frames, 3, 24, 32, dtype=torch.uint8)
        track(model, video, grid=2, anchors=anchors, iterations=2, memory=1 << 24)
        graphs.append(counter.frame_count)
    assert graphs == [2, 3, 3, 3]
