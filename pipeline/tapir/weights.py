"""Find, identify and load checkpoints of TAPIR and BootsTAPIR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.network_trackers.checkpoints import Checkpoints
from pipeline.tapir.sides import BASE_SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.tapir.model import Tapir

Mode = Literal["offline", "causal"]
RANDOM_WEIGHTS = "random"
OFFICIAL_MODES: dict[str, Mode] = {"bootstapir": "offline", "causal_bootstapir": "causal"}
"""The mode that each official checkpoint was trained for. A file does not tell."""
CHECKPOINTS = Checkpoints(
    network="TAPIR",
    repository="google/tapnet",
    files={
        "bootstapir": "bootstapir_checkpoint_v2.pt",
        "causal_bootstapir": "causal_bootstapir_checkpoint.pt",
    },
    random=(RANDOM_WEIGHTS,),
    licence="Apache-2.0: commercial use is allowed",
    otherwise="choose tracks.tracker=lucas_kanade",
)


def load_model(
    weights: str | Path,
    device: str = "cpu",
    compiled: bool = False,
    *,
    mode: Mode = "offline",
    base_side: int = BASE_SIDE,
) -> Tapir:
    """Load the network with its weights, ready for inference.

    weights:   a path; an official name (`bootstapir`, `causal_bootstapir`), looked up in the
               Hugging Face cache; or `random`
    compiled:  compile it at its first clips (`Tapir.compile_parts`)
    mode:      `causal` for weights that were trained to see earlier frames only
    base_side: pixels of a side of the frames in which tracks are first estimated

    Raises PretrackError if the weights are missing or the file is not a TAPIR checkpoint.
    """
    import torch

    from pipeline.tapir.model import Tapir

    causal, name = mode == "causal", str(weights)

    def fitting(state: Mapping[str, Tensor]) -> Tapir:
        correlations = state["torch_pips_mixer.linear.weight"].shape[1] - 388
        extra = any(key.startswith("extra_convs.") for key in state)
        levels = correlations // 49 - 2
        return Tapir(levels, extra_convs=extra, causal=causal, base_side=base_side)

    if name == RANDOM_WEIGHTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Tapir(causal=causal, base_side=base_side)
    else:
        model = CHECKPOINTS.load(name, fitting)
    if compiled:
        model.compile_parts()
    return model.eval().requires_grad_(False).to(device)
