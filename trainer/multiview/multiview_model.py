"""A multi-view vision transformer: photographs of one scene, with cameras, to one map per view.

This file needs torch and timm alone. It is exported beside trained weights:

    import torch
    from multiview_model import load

    model = load("weights")                        # the folder, or one JSON file in it
    images = (photographs / 255 - model.mean) / model.std
    features = model(images, intrinsics, world_to_camera)

Legend of shapes: B sets of M views of H x W pixels; patches of P pixels, h = H / P and w = W / P; n
tokens per view; C and D channels.

Cameras are pinholes with OpenCV's axes (x right, y down, z forward), in pixels of the images that
the model sees, pixel centres at whole numbers. View 0 of a set is the origin of its rays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class Adapter(nn.Module):
    """Attention over all tokens of a set, and a feed-forward layer: a change of each token.

    Without residual connections inside. The last layer is zero at first, so nothing changes.
    """

    def __init__(self, inputs: int, outputs: int, *, heads: int, pool: int) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.norm = nn.LayerNorm(inputs)
        self.qkv = nn.Linear(inputs, 3 * inputs)
        self.proj = nn.Linear(inputs, inputs)
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2 = nn.Linear(4 * inputs, inputs)
        self.zero = nn.Linear(inputs, outputs)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the change of tokens: [B, M, n, C] → [B, M, n, D].

        grid: rows and columns of patches, which are the last of the n tokens
        """
        u = self.norm(tokens)
        if self.pool > 1:
            u = _pooled(u, grid, self.pool)
        b, m, n, c = u.shape
        qkv = self.qkv(u).view(b, m * n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        u = self.proj(attended.transpose(1, 2).reshape(b, m, n, c))
        if self.pool > 1:
            u = _enlarged(u, grid, self.pool)
        change: Tensor = self.zero(self.fc2(F.gelu(self.fc1(u))))
        return change


def _pooled(tokens: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Replace patches by maxima over `pool` x `pool` of them; at odd sides over fewer."""
    (h, w), (b, m, n, c) = grid, tokens.shape
    others, patches = tokens.split([n - h * w, h * w], dim=2)
    maps = patches.reshape(b * m, h, w, c).permute(0, 3, 1, 2)
    maxima = F.max_pool2d(maps, pool, ceil_mode=True).flatten(2).transpose(1, 2)
    return torch.cat([others, maxima.reshape(b, m, -1, c)], dim=2)


def _enlarged(tokens: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Enlarge pooled patches to the grid again, bilinearly."""
    (h, w), (b, m, n, c) = grid, tokens.shape
    rows, columns = -(-h // pool), -(-w // pool)
    others, patches = tokens.split([n - rows * columns, rows * columns], dim=2)
    maps = patches.reshape(b * m, rows, columns, c).permute(0, 3, 1, 2)
    large = F.interpolate(maps, (h, w), mode="bilinear", align_corners=False)
    return torch.cat([others, large.flatten(2).transpose(1, 2).reshape(b, m, -1, c)], dim=2)


class SetAdapters(nn.Module):
    """The adapters after a backbone's last blocks, and the embedding of camera rays.

    width:     channels of the backbone, D
    blocks:    number of blocks that are followed by an adapter
    patch:     side of a patch, P
    registers: prefix tokens that take part; the class token before them does not
    ray_width: channels of embedded rays, which enter the first adapter; 0 for none
    shared:    whether one adapter serves all blocks but the first
    """

    def __init__(
        self,
        *,
        width: int,
        blocks: int,
        patch: int,
        registers: int,
        heads: int,
        ray_width: int,
        shared: bool,
        pool: int,
    ) -> None:
        super().__init__()
        self.registers = registers
        self.rays = nn.Conv2d(6, ray_width, patch, stride=patch) if ray_width else None
        inputs = [width + ray_width] + [width] * ((min(blocks, 2) if shared else blocks) - 1)
        self.adapters = nn.ModuleList(
            Adapter(count, width, heads=heads, pool=pool) for count in inputs
        )

    def embed(self, rays: Tensor | None) -> Tensor | None:
        """Embed a ray map [B, M, 6, H, W] patch by patch: [B, M, h w, ray width]."""
        if self.rays is None:
            return None
        assert rays is not None
        embedded: Tensor = self.rays(rays.flatten(0, 1))
        return embedded.flatten(2).transpose(1, 2).unflatten(0, rays.shape[:2])

    def forward(
        self, block: int, tokens: Tensor, grid: tuple[int, int], rays: Tensor | None
    ) -> Tensor:
        """Let the tokens [B, M, n, D] after a block see each other; return them changed.

        block: its number among those with adapters
        rays:  embedded rays, for block 0
        """
        skipped = tokens.shape[2] - grid[0] * grid[1] - self.registers
        kept, taking_part = tokens[:, :, :skipped], tokens[:, :, skipped:]
        inputs = taking_part
        if block == 0 and rays is not None:
            # Registers look nowhere.
            padded = F.pad(rays.to(tokens.dtype), (0, 0, self.registers, 0))
            inputs = torch.cat([taking_part, padded], dim=-1)
        adapter = self.adapters[min(block, len(self.adapters) - 1)]
        return torch.cat([kept, taking_part + adapter(inputs, grid)], dim=2)


def registers_of(model: Any) -> int:
    """Return the prefix tokens of a timm model that take part: DINOv2's registers."""
    return int(getattr(model, "num_reg_tokens", 0) or 0)


def cameras_from_view_0(world_to_camera: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """Return each camera's rotation to view 0's axes [B, M, 3, 3], and its position in them.

    world_to_camera: [B, M, 3, 4]
    scale:           the unit of positions: `largest_distance` between two cameras of the set, or
                     `first_view`, half of view 0's distance from the centre of all cameras

    Positions are [B, M, 3]. Neither depends on the world's axes and origin, nor on its unit.
    """
    rotation, shift = world_to_camera[..., :3], world_to_camera[..., 3]
    to_view_0 = rotation[:, :1] @ rotation.transpose(-1, -2)
    positions = shift[:, :1] - (to_view_0 @ shift[..., None])[..., 0]
    if scale == "first_view":
        distance = positions.mean(dim=1).norm(dim=-1)
        factor = torch.where(distance < 1e-5, 2.0, 2 / distance.clamp_min(1e-5))
    else:
        largest = (positions[:, :, None] - positions[:, None]).norm(dim=-1).amax(dim=(1, 2))
        # Distances of no more than rounding errors are 0.
        rounding = 1e-5 * shift.norm(dim=-1).amax(dim=1)
        factor = torch.where(largest > rounding, 1 / largest.clamp_min(1e-30), 0.0)
    return to_view_0, positions * factor[:, None, None]


def ray_map(
    intrinsics: Tensor, world_to_camera: Tensor, size: tuple[int, int], scale: str
) -> Tensor:
    """Return the ray through each pixel in Plücker coordinates (d, o x d): [B, M, 6, H, W].

    d is its unit direction in view 0's axes and o its camera's position (`cameras_from_view_0`).

    intrinsics:      [B, M, 3, 3] without skew
    world_to_camera: [B, M, 3, 4]
    size:            (H, W)
    """
    to_view_0, positions = cameras_from_view_0(world_to_camera, scale)
    y, x = torch.meshgrid(
        *(torch.arange(side, device=intrinsics.device).to(intrinsics.dtype) for side in size),
        indexing="ij",
    )
    fx, fy, cx, cy = (
        intrinsics[..., i, j][..., None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    in_camera = torch.stack(
        torch.broadcast_tensors((x - cx) / fx, (y - cy) / fy, torch.ones_like(x)), dim=-3
    )
    directions = F.normalize(torch.einsum("bmij,bmjhw->bmihw", to_view_0, in_camera), dim=2)
    origins = positions[..., None, None].expand_as(directions)
    return torch.cat([directions, torch.linalg.cross(origins, directions, dim=2)], dim=2)


class MultiviewModel(nn.Module):
    """A timm vision transformer with adapters after its last blocks.

    Its `backbone`, called by itself as any model of timm, takes each image for a set of one view
    without a camera.

    mean, std: of the images that it was trained on, [3, 1, 1], for pixel values from 0 to 1
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Any,
        adapters: SetAdapters,
        *,
        blocks: int,
        normed: bool,
        scale: str,
        mean: Any = (0.485, 0.456, 0.406),
        std: Any = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = adapters
        self.scale = scale
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # Of the pass that runs: views per set, their rays, and grid and embedded rays.
        self._views = 1
        self._rays: Tensor | None = None
        self._embedded: tuple[tuple[int, int], Tensor | None] = (1, 1), None
        if not normed:
            backbone.norm = nn.Identity()
        backbone.patch_embed.register_forward_pre_hook(self._embed_rays)
        for number, block in enumerate(backbone.blocks[-blocks:]):
            block.register_forward_hook(self._after_block(number))

    def _embed_rays(self, patch_embed: Any, inputs: tuple[Tensor]) -> None:
        """Embed the rays of the images that are about to be encoded, zero if there are none."""
        (images,) = inputs
        (height, width), patch = images.shape[-2:], int(patch_embed.patch_size[0])
        rays = self._rays
        if rays is None:
            rays = images.new_zeros(len(images) // self._views, self._views, 6, height, width)
        self._embedded = (height // patch, width // patch), self.adapters.embed(rays)

    def _after_block(self, number: int) -> Any:
        """Return a forward hook that runs the adapter after a block."""

        def change(_module: nn.Module, _inputs: Any, tokens: Tensor) -> Tensor:
            grid, rays = self._embedded
            sets = tokens.unflatten(0, (-1, self._views))
            return self.adapters(number, sets, grid, rays).flatten(0, 1)

        return change

    def forward(
        self,
        images: Tensor,
        intrinsics: Tensor | None = None,
        world_to_camera: Tensor | None = None,
    ) -> Tensor:
        """Encode sets of views together: normalised images [B, M, 3, H, W] → [B, M, h, w, D].

        intrinsics, world_to_camera: [B, M, 3, 3] and [B, M, 3, 4]; None for views whose cameras are
        unknown
        """
        size, patch = images.shape[-2:], int(self.backbone.patch_embed.patch_size[0])
        rays: Any = None
        if intrinsics is not None and world_to_camera is not None:
            rays = ray_map(intrinsics, world_to_camera, (size[0], size[1]), self.scale).to(images)
        with self.sets_of(images.shape[1], rays):
            tokens = self.backbone.forward_features(images.flatten(0, 1))
        rows, columns = size[0] // patch, size[1] // patch
        patches = tokens[:, -rows * columns :]
        return patches.reshape(*images.shape[:2], rows, columns, patches.shape[-1])

    @contextmanager
    def sets_of(self, views: int, rays: Tensor | None) -> Iterator[None]:
        """Let `backbone` take every `views` images for a set, until the context ends.

        rays: [B, views, 6, H, W]; None for views whose cameras are unknown
        """
        self._views, self._rays = views, rays
        try:
            yield
        finally:
            self._views, self._rays = 1, None


def load(path: str | Path) -> MultiviewModel:
    """Load exported weights, in evaluation mode.

    path: the folder of the export, for the one after the most steps, or a JSON file in it

    Raises ValueError if there is no multi-view export.
    """
    path = Path(path)
    exports = sorted(path.glob("*.multiview.safetensors")) if path.is_dir() else []
    if path.is_dir() and not exports:
        raise ValueError(f"{path} holds no *.multiview.safetensors")
    if exports:
        path = exports[-1].with_name(exports[-1].name.replace(".multiview.safetensors", ".json"))
    description = json.loads(path.read_text(encoding="utf-8"))
    if "multiview" not in description:
        raise ValueError(f"{path} describes no multi-view model")
    m = description["multiview"]
    backbone: Any = timm.create_model(description["timm_id"], **m["timm_arguments"])
    backbone.load_state_dict(load_file(path.with_suffix(".safetensors")))
    adapters = SetAdapters(
        width=backbone.embed_dim,
        patch=backbone.patch_embed.patch_size[0],
        registers=registers_of(backbone),
        **{name: m[name] for name in ("blocks", "heads", "ray_width", "shared", "pool")},
    )
    adapters.load_state_dict(load_file(path.with_suffix(".multiview.safetensors")))
    model = MultiviewModel(
        backbone,
        adapters,
        blocks=m["blocks"],
        normed=m["features"] == "normed",
        scale=m["scale"],
        mean=description["mean"],
        std=description["std"],
    )
    return model.eval()
