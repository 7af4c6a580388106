"""One step of one rank of two, with references from both ranks' clips, for the test of that: saves its loss and gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.trainer.test_step import CPU, a_step, gradients
from trainer.config import TrainSettings
from trainer.ranks import joined
from trainer.sampling import choose_references, rank_references
from trainer.step import batch_of

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = TrainSettings.model_validate_json((folder / "settings.json").read_bytes())
    with joined(settings.run) as rank:
        model, sample = a_step(settings)
        references = choose_references(4, 4, 4, 8, 4, torch.Generator().manual_seed(5))
        own = slice(2 * rank.number, 2 * rank.number + 2)
        forward = DistributedDataParallel(model)
        loss, _, _ = forward(batch_of(sample, settings, CPU, own), [1, 2, 3], rank_references(references, 2, rank.number), 4)
        loss.backward()
        torch.save({"loss": loss.item(), "gradients": gradients(model)}, folder / f"rank{rank.number}.pt")
