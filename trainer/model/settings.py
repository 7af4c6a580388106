"""Settings of student and teacher: the parts `model`, `references` and `teacher` of a config.

Cheap to import: torch takes seconds, and a mistyped key should be reported before.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.settings import ExtendedSettings, Settings


class LoraSettings(Settings):
    """Low-rank adapters (LoRA), trained instead of the last blocks' weights and merged into them on
    export."""

    rank: int = Field(default=8, ge=1)
    """Rank of an adapter's update of a weight."""
    alpha: float = Field(default=8.0, gt=0)
    """The update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of an adapter's input."""
    layers: tuple[str, ...] = Field(default=("qkv", "proj"), min_length=1)
    """Linear layers of a block that get an adapter, by timm's names; `fc1` and `fc2` are possible
    too."""


class ModelSettings(Settings):
    """The backbone, which of its weights are trained, and the projection head."""

    backbone: str
    """A short name from `trainer.model.backbone.BACKBONES`, such as `dinov2_reg_base`, or the timm
    name of any vision transformer."""
    weights: str
    """A weight file (safetensors or torch), `hub` to let timm download weights, or `random`.
    `FILE:PART` chooses one of several backbones in a file, such as `w.pth:student`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's `create_model`, such as `depth: 4`."""
    trainable_blocks: int = Field(default=2, ge=0)
    """Number of last blocks that are trained; everything before them is frozen."""
    lora: LoraSettings | None = None
    """Trains adapters in these blocks instead of their weights; needs the extra `lora`."""
    train_norm: bool = False
    """Whether the final norm is trained. Published: false."""
    train_embeddings: bool = False
    """Whether the embeddings of patches and positions are trained, as from random weights they
    should be; all blocks must be trained too. Published: false."""
    head: tuple[int, ...] = Field(default=(1024, 1024, 512, 256), min_length=1)
    """Output widths of the projection head's layers; the last one is the embedding's width."""


class ReferenceSettings(ExtendedSettings):
    """References: patches to which a track's similarities are what the sorting loss sorts."""

    added: ClassVar[frozenset[str]] = frozenset({"kind", "queue", "patches", "stored"})

    count: int = Field(default=5, ge=1)
    """References per clip, R. Crops: one from its own frames, and R - 1 from other clips in the
    same rank's batch."""
    crop_ratio: float = Field(default=0.5, gt=0, le=1)
    """Side of a crop, as a fraction of the patch grid's side."""
    across_ranks: bool = False
    """Draws the R - 1 references from the clips of all ranks, and all-gathers their features.
    Published: false."""
    kind: Literal["crops", "queue"] = "crops"
    """`crops`: squares of patches that the student sees in the batch, with gradient, as 3DPoV
    publishes. `queue`: single patches that the teacher saw in this and earlier steps, without
    gradient, as in NeCo."""
    queue: int = Field(default=8192, ge=1)
    """With `kind: queue`: length of the queue, over all ranks. The checkpoint holds it."""
    patches: int = Field(default=49, ge=2)
    """With `kind: queue`: patches in a reference, P, drawn at random from the queue."""
    stored: int = Field(default=10, ge=1)
    """With `kind: queue`: patches per clip and step that enter the queue, drawn at random from the
    anchor frame."""

    @model_validator(mode="after")
    def _check_kind(self) -> ReferenceSettings:
        if self.kind == "queue" and self.across_ranks:
            raise ValueError(
                "'across_ranks' belongs to 'kind: crops', and the queue holds patches of all ranks "
                "anyway: leave it out"
            )
        return self


class TeacherSettings(Settings):
    """The teacher: an exponential moving average (EMA) of the student."""

    momentum: float = Field(default=0.99, ge=0, le=1)
    """EMA momentum: the fraction of the teacher kept at each step. With 0 the teacher is the
    previous step's student."""
    final_momentum: float | None = Field(default=None, ge=0, le=1)
    """Momentum at the last step, reached by a cosine from `momentum`, as in NeCo (0.9995 to 1).
    Null keeps `momentum` constant, as published."""
    average: Literal["trained", "all"] = "trained"
    """Which weights are averaged. Published: `all`, which also averages frozen weights and so moves
    them by rounding errors. The teacher then cannot share the student's frozen blocks and runs its
    own."""

    @model_validator(mode="after")
    def _check_momentum(self) -> TeacherSettings:
        if self.final_momentum is not None and self.final_momentum < self.momentum:
            raise ValueError(
                f"'teacher.final_momentum: {self.final_momentum}' should be no less than "
                f"'teacher.momentum: {self.momentum}': a teacher slows down"
            )
        return self
