"""`python -m trainer` that also saves each rank's clip keys, losses and weights, for tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from trainer import run_setup
from trainer import train as training
from trainer.__main__ import main
from trainer.methods import tracks

keys: list[list[str]] = []
losses: list[float] = []
models: list[Any] = []
run_step, make = training.forward_backward, run_setup.make_step


def record_step(forward: Any, batch: Any, indices: Any) -> Any:
    result = run_step(forward, batch, indices)
    keys.append(list(batch["key"]))
    losses.append(result[0].item())
    return result


def record_models(*arguments: Any) -> Any:
    model = make(*arguments)
    models[:] = [model.student, model.teacher, model.losses]
    return model


if __name__ == "__main__":
    training.forward_backward, tracks.make_step = record_step, record_models  # type: ignore[assignment, attr-defined]
    code = main(sys.argv[1:])
    weights = [dict(model.state_dict()) for model in models]
    torch.save(
        {"keys": keys, "losses": losses, "weights": weights},
        Path(sys.argv[1]).parent / "run" / f"rank{os.environ['RANK']}.pt",
    )
    sys.exit(code)
