"""`method: multiview`: the views of a scene see each other (Multi-View Foundation Models)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifests.snapshot import Snapshot
from shards.errors import SettingsError
from trainer.config import TrainSettings
from trainer.data.batch import Batch
from trainer.distributed import Rank
from trainer.model.backbone import Backbone, make_backbone, normalised_images
from trainer.model.lora import add_adapters
from trainer.multiview.correspondences import SetDraws, draw_sets, sets_of_rank
from trainer.multiview.export import export_multiview
from trainer.multiview.settings import MultiviewSettings
from trainer.multiview.step import MultiviewStep, SetFigures, make_adapters, multiview_flops
from trainer.schedule import step_seed
from trainer.training_footage import TrainingFootage


class MultiviewMethod:
    """Adapters between the blocks of a frozen backbone. See `Method`."""

    parts: ClassVar[tuple[str, ...]] = ("backbone", "adapters")
    console: ClassVar[Mapping[str, int]] = {
        "loss_location": 4,
        "never_moves": 4,
        "pairs": 2,
        "posed": 2,
    }

    def __init__(
        self,
        settings: TrainSettings,
        checkpoint: Mapping[str, Any] | None,
        rank: Rank,
        points: int,
    ) -> None:
        self.settings, self.rank, self.points = settings, rank, points
        model, multiview = settings.model, settings.multiview
        assert multiview is not None
        backbone = make_backbone(
            model.backbone, None if checkpoint else model.weights, model.options
        )
        backbone.grid(settings.data.size)
        check_heads(backbone, multiview)
        backbone.freeze(model.trainable_blocks, train_norm=False)
        backbone.requires_grad_(False)
        if model.lora:
            add_adapters(backbone, model.lora)
        adapters = make_adapters(backbone, multiview, model.trainable_blocks)
        self.model = MultiviewStep(backbone, adapters, settings)
        if checkpoint:
            for part in self.parts:
                self.model.get_submodule(part).load_state_dict(checkpoint[part])
        self.model.to(rank.device)

    def flops_per_clip(self) -> float:
        """Return the floating-point operations per set and step."""
        return multiview_flops(self.model)

    def draw(self, step: int) -> list[SetDraws]:
        """Draw views and correspondences for all ranks; each rank takes its own.

        Seeds torch's default generators too, for the dropout of LoRA.
        """
        run, multiview = self.settings.run, self.settings.multiview
        assert multiview is not None
        torch.manual_seed(step_seed(run.seed, step, self.rank.number))
        generator = torch.Generator().manual_seed(step_seed(run.seed, step, 0))
        parts = []
        for _ in range(run.accumulate):
            draws = draw_sets(
                run.batch_size // run.accumulate,
                frames=self.settings.data.frames,
                points=self.points,
                settings=multiview,
                generator=generator,
            )
            parts.append(sets_of_rank(draws, self.rank.number, self.rank.world))
        return parts

    def after_step(self, step: int, last_step: int) -> dict[str, float | Tensor]:
        """Do nothing."""
        return {}

    def figures(self, kept: SetFigures, draws: SetDraws) -> dict[str, float | Tensor]:
        """Return the figures of a set."""
        return {
            "never_moves": kept.never_moves,
            "pairs": kept.pairs,
            "posed": kept.posed,
            "views": kept.views,
        }

    @torch.no_grad()
    def features(self, clip: Batch) -> Tensor:
        """Return the features of a clip's frames as one set, without rays."""
        device, data = self.rank.device, self.settings.data
        frames = clip["frames"].to(device)
        rays = torch.zeros(1, len(frames), 6, data.size, data.size, device=device)
        self.model.eval()
        tokens = self.model.backbone.trunk(normalised_images(frames, data.mean, data.std))
        features = self.model.set_features(tokens, len(frames), rays)[0]
        self.model.train()
        return features

    def keep_bfloat16(self) -> None:
        """Do nothing: all blocks take part in the backward pass."""

    def compile(self) -> None:
        """Compile the backbone's blocks, not the adapters."""
        self.model.backbone.compile()

    def export(self, snapshots: Sequence[Snapshot], step: int, trained_on: TrainingFootage) -> Path:
        """Write merged weights, adapters and their loader."""
        return export_multiview(self.model, snapshots, step, trained_on)


def check_heads(backbone: Backbone, settings: MultiviewSettings) -> None:
    """Raise SettingsError if an adapter's heads do not divide the backbone's width."""
    if backbone.width % settings.heads:
        raise SettingsError(
            f"'multiview.heads: {settings.heads}' does not divide the {backbone.width} channels of "
            f"{backbone.timm_id}: take a divisor"
        )
