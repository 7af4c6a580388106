"""Settings of a training run.

Where the published 3DPoV code and what its formulas ask for differ, there is a field whose docstring says what it changes. The
defaults are the repaired values, `recipe: pretrack`; `recipe: upstream` replaces them by the published ones, listed in `UPSTREAM`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from manifests.settings import LocationSetting, Settings
from shards.errors import SettingsError
from trainer.data.clip_filter import parse_filter
from trainer.losses.settings import LossSettings

UPSTREAM: dict[str, dict[str, Any]] = {
    "data": {
        "anchor": "first",
        "direction": "forward",
        "crop": "squash",
        "flip": 0.0,
        "reduced_decoding": False,
        "std": (0.228, 0.224, 0.225),
    },
    "tracks": {"confidence": 0.0, "mask_outside": False, "align_corners": True},
    "loss": {
        "objective": "published",
        "sorter": "bitonic",
        "detach_teacher": False,
        "frames": "curriculum",
    },
    "optim": {"period": 8680},
    "teacher": {"average": "all"},
    "run": {"precision": "float32"},
}
"""3DPoV as its code computes it, where that is not a field's default. The cosine's period is 217 steps times its 40 epochs."""


class ColourSettings(Settings):
    """Changes of a sample's colours. Those of all its frames are the same, unless `per_frame`."""

    jitter: float = Field(default=0.0, ge=0, le=1)
    """Chance of changing brightness, contrast, saturation and hue, in an order that is drawn too."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    """With `jitter`: the factor is drawn from 1 - this to 1 + this."""
    contrast: float = Field(default=0.4, ge=0, le=1)
    """Likewise."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """Likewise."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """With `jitter`: turns the colour circle by up to this part of it, either way."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Chance of losing all colour."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Chance of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """With `blur`: its least and largest sigma, in pixels of the sample."""
    per_frame: bool = False
    """Draws anew for every frame."""
    student_only: bool = False
    """The teacher sees the anchor frame as it was; the sample then carries it a second time."""

    @property
    def changes(self) -> bool:
        """Whether anything can change at all."""
        return max(self.jitter, self.grey, self.blur) > 0

    @model_validator(mode="after")
    def _sigmas(self) -> ColourSettings:
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError("'blur_sigma' should be two numbers above 0, the smaller one first")
        return self


class CacheSettings(Settings):
    """Where what was read of shards on a bucket or a web server is kept."""

    folder: Path
    """On a local disk; several runs may share it."""
    gb: float = Field(gt=0)
    """Its largest size, in 10^9 bytes. What was not read for the longest time makes room."""


class DataSettings(Settings):
    """Which clips, which of their frames, and how they are shown to the backbone."""

    out: tuple[LocationSetting, ...] = Field(min_length=1)
    """Output folders of finished builds, or their URLs. Without `weights` their clips are one list, each with the same chance."""
    snapshot: str | None = None
    """The snapshot to train on, where there is one folder; otherwise each folder's current one. A resumed run keeps its own."""
    split: str = "train"
    """Only clips of this split."""
    where: str = ""
    """Only clips for which this holds: `"visible_fraction > 0.5 and motion > 0.01 and dataset in ('co3d', 'dl3dv')"`. It may speak
    of every column of the clips table with one value a clip."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """What parts of an epoch come from where, by dataset or by folder of `out`: `{co3d: 1, dl3dv: 2}`. An epoch still has as many
    clips as there are; a small dataset's come round several times in it, a large one's go on where the epoch before left off."""
    shuffle_shards: int = Field(default=0, ge=0)
    """0: clips in an order drawn over all shards. K: shards in an order that is drawn, and the clips of each K of them shuffled
    among each other, so that what is read lies close together: for spinning disks, say."""
    frames: int = Field(default=4, ge=2)
    """Frames a sample, T: the anchor frame and T - 1 others."""
    step: int = Field(default=10, ge=0)
    """Stored frames between two frames of a sample. A clip that is too short gets a smaller step, never below 1. 0 shows the anchor
    frame T times: with `crop_per_frame`, views of one moment."""
    anchor: Literal["random", "first"] = "random"
    """Which of a clip's stored anchors a sample starts at."""
    direction: Literal["both", "forward"] = "both"
    """Whether a sample may also step backward in time. Published: forward."""
    size: int = Field(default=224, ge=14)
    """Side of the square the backbone sees, in pixels; a multiple of its patch."""
    crop: Literal["random", "centre", "native", "squash"] = "random"
    """`squash` resizes the whole frame to a square, whatever its shape, as published. `random` takes one random box a sample,
    between 3:4 and 4:3 in shape, the same in all its frames. `centre` is the largest square in the middle. `native` is the middle
    at the pixels it is stored with, not resized (published for DL3DV as `dl3dv_crop`); clips smaller than that are left out."""
    crop_scale: float = Field(default=0.5, gt=0, le=1)
    """With `crop: random`: the smallest part of a frame's area that the box may cover."""
    crop_per_frame: bool = False
    """Draws a box (with `crop: random`) and a mirroring for every frame of a sample, not one for all."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring a sample. Published: 0 in effect for every dataset without annotations."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation that pixels are divided by. Published: 0.228 for red in training (and 0.229 in evaluation)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean that is taken from pixels first (in units of 0..1, RGB)."""
    colour: ColourSettings = ColourSettings()
    """Changes of colours, none by default and as published."""
    reduced_decoding: bool = True
    """Decodes only every 2nd, 4th or 8th pixel's worth of an image where the view is at least that much larger than `size`. Random
    boxes are then whole multiples of it. Published: false."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a clip that cannot be read does: `stop` ends the run with an error that names it; `skip` shows another clip in its
    place, and the log says which were left out and how many."""
    cache: CacheSettings | None = None
    """Keeps what was read of remote shards on a local disk."""

    @field_validator("out", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @field_validator("where")
    @classmethod
    def _understood(cls, value: str) -> str:
        try:
            if value.strip():
                parse_filter(value)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _one_snapshot(self) -> DataSettings:
        if self.snapshot is not None and len(self.out) > 1:
            raise ValueError("'snapshot' can only be named where 'out' is one folder")
        return self


class TrackFilterSettings(Settings):
    """Which points of a track count, and where on the patch grid they lie."""

    visibility: float = Field(default=0.9, ge=0, lt=1)
    """A point is visible where its stored probability is above this."""
    confidence: float = Field(default=0.1, ge=0, le=1)
    """... and its stored confidence at least this. Published: confidence is not used (0 here)."""
    mask_outside: bool = True
    """Points outside the shown frame count as invisible. Published: false, they are moved to its border and counted."""
    align_corners: bool = False
    """Published: true, which reads a point up to half a patch (7 px) away from where it is, most at the border. False is exact."""


class LoraSettings(Settings):
    """Low-rank adapters, trained in place of the weights of the last blocks. They are merged into the exported weights."""

    rank: int = Field(default=8, ge=1)
    """Rank of the change of a layer's weight."""
    alpha: float = Field(default=8.0, gt=0)
    """The change is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that an input of an adapter is left out."""
    layers: tuple[str, ...] = Field(default=("qkv", "proj"), min_length=1)
    """Which linear layers of a block have one, by timm's names: also `fc1` and `fc2`."""


class ModelSettings(Settings):
    """The backbone, what of it is trained, and the projection head."""

    backbone: str
    """A short name from `trainer.model.backbone.BACKBONES`, such as `dinov2_reg_base`, or any vision transformer of timm by its name."""
    weights: str
    """A weight file (safetensors or torch), `hub` to let timm download its own, or `random`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for timm's create_model, such as `depth: 4`."""
    trainable_blocks: int = Field(default=2, ge=0)
    """How many of the last blocks are trained; everything before them is frozen."""
    lora: LoraSettings | None = None
    """Trains adapters in those blocks, and not their weights (extra `lora`)."""
    train_norm: bool = False
    """Whether the final norm is trained. Published: frozen."""
    head: tuple[int, ...] = Field(default=(1024, 1024, 512, 256), min_length=1)
    """Widths of the projection head's layers; the last is the embedding's."""


class ReferenceSettings(Settings):
    """What the similarities that get sorted are taken against: crops of patch features of frames in the batch."""

    count: int = Field(default=5, ge=1)
    """Reference frames a clip, R: one of its own, and R - 1 of other clips of the same rank's batch."""
    crop_ratio: float = Field(default=0.5, gt=0, le=1)
    """Side of the crop, as a part of the patch grid's side."""
    across_ranks: bool = False
    """Draws the R - 1 from the clips of all ranks, whose features are gathered for it. Published: false."""


class OptimSettings(Settings):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Learning rate of the head."""
    backbone_ratio: float = Field(default=0.1, gt=0)
    """The backbone's learning rate, as a part of the head's."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """Of weights with two or more axes; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    period: int | None = Field(default=None, ge=1)
    """Steps of the cosine from full rate to 0; null: to the end of the run. Published: 217 an epoch, whatever the epoch's length,
    after which the rate climbs again."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null: not clipped, as published."""

    @model_validator(mode="after")
    def _rises_first(self) -> OptimSettings:
        if self.period is not None and self.warmup >= self.period:
            raise ValueError(
                f"'optim.warmup: {self.warmup}' should be less than 'optim.period: {self.period}', of which it is a part"
            )
        return self


class TeacherSettings(Settings):
    """The teacher: an exponential moving average of the student."""

    momentum: float = Field(default=0.99, ge=0, le=1)
    """The part of the teacher kept at each step. 0: the teacher is the student of the step before."""
    final_momentum: float | None = Field(default=None, ge=0, le=1)
    """The momentum goes there by a cosine over the run, as in NeCo (0.9995 to 1). Null: it stays, as published."""
    average: Literal["trained", "all"] = "trained"
    """Published: `all`, which also averages frozen weights, moving them by rounding errors. The teacher then cannot share the
    student's frozen blocks and runs its own."""

    @model_validator(mode="after")
    def _slows_down(self) -> TeacherSettings:
        if self.final_momentum is not None and self.final_momentum < self.momentum:
            raise ValueError(
                f"'teacher.final_momentum: {self.final_momentum}' should be no less than 'teacher.momentum: {self.momentum}': "
                "a teacher slows down"
            )
        return self


class RunSettings(Settings):
    """Where, how long and on what."""

    out: Path
    """The folder where checkpoints, logs and the trained weights go. Of several nodes only the first rank's needs it: what a run
    goes on from is read there, and sent to the others."""
    seed: int = Field(default=1, ge=0)
    """Every random choice follows from it."""
    batch_size: int = Field(default=32, ge=1)
    """Clips a step, over all ranks together; no more than there are, and shared evenly by the ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a rank's clips of a step go through the model in, for less memory. References are drawn within a part."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the clips; either this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; either this or `epochs`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the transformers on CUDA (the CPU always has float32); the loss is always in float32. Published: float32."""
    compile: bool = False
    """Compiles the transformers' blocks (torch.compile). Worth it for long runs on CUDA; the first steps take longer."""
    workers: int = Field(default=2, ge=0)
    """Processes that read clips, a rank. Changes nothing in what is read. Each takes five batches' worth of shared memory."""
    resume: bool = True
    """Goes on from the newest checkpoint in `out`, if there is one. False: an `out` that holds a run is an error."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step always makes one."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    export: Literal["student", "teacher"] = "student"
    """Whose backbone is exported as weights, before the first step and after the last."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of progress."""
    watch: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where figures go beside the console. The last two must be installed."""
    pictures: int = Field(default=2, ge=0)
    """Clips whose features are drawn for TensorBoard at every checkpoint, their first three principal components as colours."""

    @model_validator(mode="after")
    def _length(self) -> RunSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "set one of 'run.steps' and 'run.epochs', and leave the other out or null"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"'run.batch_size: {self.batch_size}' cannot be shared by {self.accumulate} parts ('run.accumulate')"
            )
        return self


class TrainSettings(Settings):
    """Everything a training run is made from."""

    recipe: Literal["pretrack", "upstream"] = "pretrack"
    """`upstream`: fields that are not given take the values in `UPSTREAM` instead of their defaults."""
    data: DataSettings
    tracks: TrackFilterSettings = TrackFilterSettings()
    model: ModelSettings
    references: ReferenceSettings = ReferenceSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    teacher: TeacherSettings = TeacherSettings()
    run: RunSettings

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("recipe") != "upstream":
            return values
        given = {name: values.get(name) or {} for name in UPSTREAM}
        return values | {
            name: UPSTREAM[name] | part for name, part in given.items() if isinstance(part, dict)
        }

    @model_validator(mode="after")
    def _adapters(self) -> TrainSettings:
        if self.model.lora and self.teacher.average == "all":
            raise ValueError(
                "'model.lora' goes with 'teacher.average: trained', which averages the adapters"
            )
        if self.model.lora and self.model.trainable_blocks == 0:
            raise ValueError(
                "'model.lora' has no blocks to adapt: set 'model.trainable_blocks' to how many of the last should be"
            )
        return self

    @model_validator(mode="after")
    def _intra_reference(self) -> TrainSettings:
        if self.data.frames < 3:
            raise ValueError(
                "'data.frames' must be at least 3: a clip's own reference is neither its first frame nor its last"
            )
        return self
