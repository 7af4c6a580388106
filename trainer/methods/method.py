"""The interface of a training method. `trainer.train` has the loop and knows no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from manifests.snapshot import Snapshot
from trainer.config import OptimSettings, TrainSettings
from trainer.data.batch import Batch
from trainer.distributed import Rank
from trainer.methods.draws import Draws
from trainer.training_footage import TrainingFootage


class TrainedModel(Protocol):
    """The model of a method, a module that DistributedDataParallel wraps.

    Its forward pass maps a batch and the draws of a part of a step, both on its device, to the
    loss, the unweighted parts of the loss by name, and whatever `Method.figures` reads. The host
    should never wait for the device in it.
    """

    def rates(self, optim: OptimSettings) -> list[tuple[list[nn.Module], float]]:
        """Return groups of modules, each with its learning rate as a fraction of `optim.lr`."""
        ...


class Method(Protocol):
    """A method of a run, on one rank."""

    parts: ClassVar[tuple[str, ...]]
    """Submodules of `model` whose weights a checkpoint holds, under these names."""
    console: ClassVar[Mapping[str, int]]
    """Figures on the console's lines beside the loss, and their digits."""
    model: Any
    """A `TrainedModel`, on the rank's device."""

    def __init__(
        self,
        settings: TrainSettings,
        checkpoint: Mapping[str, Any] | None,
        rank: Rank,
        points: int,
    ) -> None:
        """Make the modules, with start weights or those of a checkpoint.

        points: tracks per clip

        Draws start weights from torch's default generator. Raises PretrackError for settings that
        do not fit each other or the number of ranks.
        """
        ...

    def flops_per_clip(self) -> float:
        """Return the floating-point operations of the model per clip and step."""
        ...

    def draw(self, step: int) -> Sequence[Draws]:
        """Draw on the CPU what each part of a step (`run.accumulate`) uses of this rank's clips.

        Random choices follow from the step, the seed and the rank.
        """
        ...

    def after_step(self, step: int, last_step: int) -> dict[str, float | Tensor]:
        """Do what follows the optimizer's step number `step`, counted from 0; return figures."""
        ...

    def figures(self, kept: Any, draws: Any) -> Mapping[str, float | Tensor]:
        """Return what to log beside the losses, for the last part of a step.

        kept, draws: what the model returned for it, and what was drawn
        """
        ...

    def features(self, clip: Batch) -> Tensor:
        """Return features [T, h, w, D] of a clip without the axis B, for pictures, on any device.

        Leaves the model in training mode.
        """
        ...

    def keep_bfloat16(self) -> None:
        """Keep copies of frozen weights in bfloat16, if that saves time. Called once on CUDA."""
        ...

    def compile(self) -> None:
        """Compile the transformers' blocks."""
        ...

    def export(self, snapshots: Sequence[Snapshot], step: int, trained_on: TrainingFootage) -> Path:
        """Write the weights after `step` steps to the run's folder; return their path."""
        ...
