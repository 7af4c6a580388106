"""One step of multi-view training: sets of views → feature maps → losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import OptimSettings, TrainSettings
from trainer.data.batch import Batch, track_mask
from trainer.losses.keep_base import distance_from_base
from trainer.model.backbone import Backbone, Tokens, normalised_images
from trainer.model.lora import base_model
from trainer.multiview.correspondences import SetDraws, choose_correspondences
from trainer.multiview.losses import location_errors, mean_over_sets, still_errors
from trainer.multiview.multiview_model import SetAdapters, ray_map, registers_of
from trainer.multiview.settings import MultiviewSettings


@dataclass(frozen=True)
class SetFigures:
    """Figures of a part of a step, scalars on its device.

    never_moves: the location error of an answer that never moves, on the same correspondences
    pairs:       fraction of the wanted correspondences that there were
    posed:       fraction of sets with camera rays
    views:       views per set
    """

    never_moves: Tensor
    pairs: Tensor
    posed: Tensor
    views: int


class MultiviewStep(nn.Module):
    """A frozen backbone, perhaps with LoRA, and the adapters between its blocks."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, adapters: SetAdapters, settings: TrainSettings) -> None:
        super().__init__()
        assert settings.multiview is not None
        self.backbone, self.adapters = backbone, adapters
        self.settings, self.multiview = settings, settings.multiview
        # Not a submodule: its weights are the backbone's.
        self._base = [base_model(backbone)]
        data = settings.data
        self.register_buffer("mean", torch.tensor(data.mean), persistent=False)
        self.register_buffer("std", torch.tensor(data.std), persistent=False)

    def rates(self, optim: OptimSettings) -> list[tuple[list[nn.Module], float]]:
        """Return one group: adapters, rays and LoRA learn at the same rate."""
        return [([self.backbone, self.adapters], 1.0)]

    def forward(
        self, batch: Batch, draws: SetDraws
    ) -> tuple[Tensor, dict[str, Tensor], SetFigures]:
        """Return the loss, its parts and figures. Transformers run in the settings' precision."""
        s, device = self.multiview, batch["frames"].device.type
        size, views = batch["frames"].shape[-1], draws.order.shape[1]
        sets = torch.arange(len(draws.order), device=draws.order.device)[:, None]
        frames = batch["frames"][sets, draws.order]
        positions = batch["positions"][sets, draws.order]
        mask = track_mask(batch, self.settings.tracks)[sets, draws.order]
        bfloat16 = self.settings.run.precision == "bfloat16" and device == "cuda"
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            tokens = self.backbone.trunk(
                normalised_images(frames.flatten(0, 1), self.mean, self.std)
            )
            features = self.set_features(tokens, views, self._rays(batch, draws)).float()
            with torch.no_grad():
                base = self.base_features(tokens, views).float() if s.keep else features
        pairs = choose_correspondences(mask, draws, s.pairs, s.directions == "both")
        with torch.autocast(device, enabled=False):
            errors = location_errors(
                features,
                positions,
                pairs,
                size=size,
                temperature=s.temperature,
                corners=s.cells == "corners",
            )
            location = mean_over_sets(errors, pairs.counted)
            keep = distance_from_base(features, base) if s.keep else torch.zeros_like(location)
        still = still_errors(positions, pairs, size)
        figures = SetFigures(
            never_moves=mean_over_sets(still, pairs.counted),
            pairs=pairs.counted.sum() / (len(mask) * s.pairs),
            posed=self._posed(batch, draws).mean(),
            views=views,
        )
        loss = s.location * location + s.keep * keep
        return loss, {"location": location.detach(), "keep": keep.detach()}, figures

    def _posed(self, batch: Batch, draws: SetDraws) -> Tensor:
        """Return 1 for each set whose rays are used, else 0: float32 [B]."""
        posed = batch.get("posed")
        if posed is None or not self.multiview.ray_width:
            return torch.zeros(len(draws.posed), device=draws.posed.device)
        return (posed & (draws.posed > 0)).float()

    def _rays(self, batch: Batch, draws: SetDraws) -> Tensor | None:
        """Return the ray maps of the views that are shown, all zero for sets without cameras."""
        if not self.multiview.ray_width:
            return None
        sets = torch.arange(len(draws.order), device=draws.order.device)[:, None]
        intrinsics = batch["intrinsics"][sets, draws.order]
        world_to_camera = batch["world_to_camera"][sets, draws.order]
        size = batch["frames"].shape[-1]
        # Coordinates would have the precision of bfloat16.
        with torch.autocast(intrinsics.device.type, enabled=False):
            rays = ray_map(intrinsics, world_to_camera, (size, size), self.multiview.scale)
        # Not left out: every weight needs a gradient on every rank.
        return rays * self._posed(batch, draws)[:, None, None, None, None]

    def set_features(self, tokens: Tokens, views: int, rays: Tensor | None) -> Tensor:
        """Run the blocks and adapters: tokens of B * M views → features [B, M, h, w, D]."""
        backbone, values = self.backbone, tokens.values
        embedded = self.adapters.embed(rays)
        blocks = backbone.model.blocks[backbone.frozen :]
        for number, (block, extras) in enumerate(zip(blocks, tokens.extras, strict=True)):
            values = block(values, **extras).unflatten(0, (-1, views))
            values = self.adapters(number, values, tokens.grid, embedded).flatten(0, 1)
        return self._as_maps(values, tokens, views)

    def base_features(self, tokens: Tokens, views: int) -> Tensor:
        """Return the features that the base model has of each view alone: [B, M, h, w, D]."""
        (base,), values = self._base, tokens.values
        blocks = base.model.blocks[base.frozen :]
        for block, extras in zip(blocks, tokens.extras, strict=True):
            values = block(values, **extras)
        return self._as_maps(values, tokens, views)

    def _as_maps(self, values: Tensor, tokens: Tokens, views: int) -> Tensor:
        if self.multiview.features == "normed":
            values = self.backbone.model.norm(values)
        rows, columns = tokens.grid
        patches = values[:, -rows * columns :]
        return patches.reshape(-1, views, rows, columns, values.shape[-1])


def make_adapters(backbone: Backbone, settings: MultiviewSettings, blocks: int) -> SetAdapters:
    """Make the adapters after the last `blocks` blocks of a backbone."""
    return SetAdapters(
        width=backbone.width,
        blocks=blocks,
        patch=backbone.patch,
        registers=registers_of(backbone.model),
        heads=settings.heads,
        ray_width=settings.ray_width,
        shared=settings.shared,
        pool=settings.pool,
    )


@torch.no_grad()
def multiview_flops(model: MultiviewStep) -> float:
    """Return the floating-point operations per set and step, as torch counts them.

    Forward passes with and without adapters; the backward pass costs one more pass through the
    blocks, whose weights are frozen, and two through the adapters. LoRA and losses are not counted.
    """
    s = model.settings.data
    device = next(model.parameters()).device
    images = torch.zeros(s.frames, 3, s.size, s.size, device=device)
    rays = torch.zeros(1, s.frames, 6, s.size, s.size, device=device)
    with FlopCounterMode(display=False) as trunk:
        tokens = model.backbone.trunk(images)
    with FlopCounterMode(display=False) as base:
        model.base_features(tokens, s.frames)
    with FlopCounterMode(display=False) as whole:
        model.set_features(tokens, s.frames, rays)
    blocks = base.get_total_flops()
    adapters = whole.get_total_flops() - blocks
    passes = 3 if model.multiview.keep else 2
    return trunk.get_total_flops() + passes * blocks + 3 * adapters
