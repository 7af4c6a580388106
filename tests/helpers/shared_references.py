"""One step of one of two ranks, in parts, with references from both ranks' clips.

Saves loss and gradients for the test of references across ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.trainer.model.test_step import a_step, gradients, select_clips
from trainer.config import TrainSettings
from trainer.distributed import init_distributed
from trainer.methods.tracks import draw_indices
from trainer.train import forward_backward

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = TrainSettings.model_validate_json((folder / "settings.json").read_bytes())
    with init_distributed(settings.run.device) as rank:
        model, sample = a_step(settings, clips=8)
        ranks_clips = select_clips(sample, list(range(4 * rank.number, 4 * rank.number + 4)))
        indices = draw_indices(0, patches=(8, 4), settings=settings, rank=rank)
        loss = forward_backward(DistributedDataParallel(model), ranks_clips, indices)[0]
        torch.save(
            {"loss": loss.item(), "gradients": gradients(model)}, folder / f"rank{rank.number}.pt"
        )
