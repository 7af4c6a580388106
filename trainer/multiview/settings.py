"""Settings of `method: multiview`. Cheap to import, unlike torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from manifests.settings import Settings


class MultiviewSettings(Settings):
    """Multi-view training (`method: multiview`): the frames of a sample are a set of views."""

    heads: int = Field(default=8, ge=1)
    """Attention heads of an adapter; a divisor of the backbone's width and of that width plus
    `ray_width`."""
    ray_width: int = Field(default=128, ge=0)
    """Channels of the embedded camera rays that enter the first adapter. 0 uses no cameras."""
    shared: bool = True
    """Whether one adapter serves all blocks but the first, as in the published code. False: each
    block has its own."""
    pool: Literal[1, 2] = 1
    """2 lets adapters attend to maxima over 2 x 2 patches, a quarter of the tokens."""
    scale: Literal["largest_distance", "first_view"] = "largest_distance"
    """Unit of camera positions. `largest_distance`: the largest distance between two cameras of the
    set. `first_view`: half the first camera's distance from the set's centre, as published, which
    explodes where that distance is small."""
    drop_poses: float = Field(default=0.1, ge=0, le=1)
    """Probability that a set's rays are all zero, as those of sets without cameras are. Published:
    0."""
    fewer_views: float = Field(default=0.1, ge=0, le=1)
    """Probability that a step shows fewer than `data.frames` views of each set, from 1 up.
    Published: 0."""
    pairs: int = Field(default=128, ge=1)
    """Correspondences per set, drawn from all that are visible in two of its views."""
    directions: Literal["both", "forward"] = "both"
    """Which of a correspondence's two views is searched. `forward`: always the later one in the
    set, so never the first, as published. `both`: either."""
    temperature: float = Field(default=0.02, gt=0)
    """Cosines are divided by this before the softmax over patches."""
    cells: Literal["centres", "corners"] = "centres"
    """Where patches lie. `corners`: the outer patches' centres are at the image's borders, as
    published, which is up to half a patch off."""
    location: float = Field(default=1.0, ge=0)
    """Weight of the location loss."""
    keep: float = Field(default=0.1, ge=0)
    """Weight of the regulariser, which keeps features near those of the base model."""
    features: Literal["normed", "raw"] = "normed"
    """Features after the final norm, or before it, as published for DINOv2."""

    @model_validator(mode="after")
    def _check_weights(self) -> MultiviewSettings:
        if not (self.location or self.keep):
            raise ValueError("nothing would be trained: set 'location' or 'keep' above 0")
        if self.ray_width % self.heads:
            raise ValueError(
                f"'ray_width: {self.ray_width}' should be a multiple of 'heads: {self.heads}'"
            )
        return self
