"""Settings of a training run: the parts of a config, and those that belong to no folder.

Where the published 3DPoV code deviates from its formulas, a field selects one or the other, and its
docstring says what the published code does. The defaults are the repaired values
(`recipe: pretrack`); `recipe: upstream` replaces them by the published values, listed in
`UPSTREAM`. The folders `data/`, `model/`, `losses/` and `multiview/` each have their `settings.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from manifests.settings import LocationSetting, Settings
from trainer.data.settings import DataSettings as DataSettings  # users import it from here
from trainer.data.settings import TrackFilterSettings
from trainer.losses.settings import LossSettings
from trainer.model.settings import ModelSettings, ReferenceSettings, TeacherSettings
from trainer.multiview.settings import MultiviewSettings

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
"""Settings of 3DPoV's published code where they differ from the defaults.

The cosine's period is its 217 steps per epoch times its 40 epochs."""

ADDED: dict[str, Any] = {"method": "tracks", "multiview": None}
"""Fields of `TrainSettings` that came later, and the defaults at which they are not written."""


class OptimSettings(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Learning rate of the head."""
    backbone_ratio: float = Field(default=0.1, gt=0)
    """The backbone's learning rate, as a fraction of the head's."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """Weight decay of weights with two or more axes; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's coefficients of the running averages of the gradient and its square."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up of the learning rate from 0."""
    period: int | None = Field(default=None, ge=1)
    """Step at which the cosine reaches 0, warm-up included; null: the last step of the run. Past it
    the rate rises again. Published: 217 steps per epoch, whatever the epoch's true length."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Maximum norm of the gradient; null does not clip, as published."""

    @model_validator(mode="after")
    def _check_warmup(self) -> OptimSettings:
        if self.period is not None and self.warmup >= self.period:
            raise ValueError(
                f"'optim.warmup: {self.warmup}' should be less than 'optim.period: {self.period}', "
                "which includes it"
            )
        return self


class RunSettings(Settings):
    """Output folder, length, batches, device, and reports of the run."""

    out: Path
    """Folder for checkpoints, logs and the trained weights. Only the first rank reads and writes
    it, so with several nodes it need not be shared: a resumed run's checkpoint is broadcast to
    ranks that do not see it."""
    seed: int = Field(default=1, ge=0)
    """Seed of every random choice."""
    batch_size: int = Field(default=32, ge=1)
    """Clips per step, over all ranks together: at most as many as there are clips, and a multiple
    of the number of ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Number of parts that a rank's clips of a step are split into (gradient accumulation), to save
    memory. References are drawn within a part."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in epochs; set either this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run in optimiser steps; set either this or `epochs`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses CUDA if a device is available, otherwise the CPU. A device that cannot be used is
    an error."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the transformers on CUDA; the CPU always uses float32, and so does the loss.
    Checkpoints are float32. Published: float32."""
    compile: bool = False
    """Compiles the transformers' blocks (torch.compile). Worthwhile for long runs on CUDA; the
    first steps take longer."""
    workers: int = Field(default=2, ge=0)
    """Worker processes per rank that read clips. Their number does not change what is read. Each
    takes shared memory for five batches."""
    resume: bool = True
    """Resumes from the newest checkpoint in `out`, if there is one. False: an `out` that holds a
    run is an error."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step always saves one."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    export: Literal["student", "teacher"] = "student"
    """Whose backbone is exported, before the first step and after the last."""
    export_every: int | None = Field(default=None, ge=1)
    """Steps between two more exports; null exports nothing in between."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between two evaluations of the student on held-out clips, which are logged and written
    to heldout.json: before the first step, during training and after the last. Null evaluates
    nothing. Evaluations change nothing about the run."""
    evaluate_on: LocationSetting | None = None
    """Output folder, or its URL, of the build that has the held-out clips; null takes the first one
    of `data.out`. The clips are those of the split `eval`."""
    evaluate_clips: int = Field(default=16, ge=1)
    """Number of held-out clips; all of their frames are kept in memory."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two reports on the console and to `watch`. On CUDA, losses are read and checked
    only then: reading makes the program wait for the device."""
    watch: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics are logged besides the console. `wandb` and `trackio` must be installed."""
    pictures: int = Field(default=2, ge=0)
    """Number of clips whose features are drawn at the start and at every checkpoint: their first
    three principal components as colours, logged to `watch`."""

    @model_validator(mode="after")
    def _check_length(self) -> RunSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "set one of 'run.steps' and 'run.epochs', and leave the other out or null"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"'run.batch_size: {self.batch_size}' cannot be shared by {self.accumulate} parts "
                "('run.accumulate')"
            )
        return self


class TrainSettings(Settings):
    """All settings of a training run."""

    recipe: Literal["pretrack", "upstream"] = "pretrack"
    """`upstream`: fields that are not set take the published values (`UPSTREAM` in
    `trainer/config.py`) instead of their defaults."""
    method: Literal["tracks", "multiview"] = "tracks"
    """What is trained. `tracks`: a student and its teacher compare tracks across frames.
    `multiview`: adapters let the frames of a sample see each other (`multiview`)."""
    data: DataSettings
    tracks: TrackFilterSettings = TrackFilterSettings()
    model: ModelSettings
    references: ReferenceSettings = ReferenceSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    teacher: TeacherSettings = TeacherSettings()
    multiview: MultiviewSettings | None = None
    """Only with `method: multiview`, in place of `references`, `loss` and `teacher`. It takes
    `model.trainable_blocks` as the number of last blocks that are followed by an adapter; the
    backbone stays frozen, except for `model.lora`."""
    run: RunSettings

    @model_validator(mode="before")
    @classmethod
    def _apply_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("recipe") != "upstream":
            return values
        given = {name: values.get(name) or {} for name in UPSTREAM}
        return values | {
            name: UPSTREAM[name] | part for name, part in given.items() if isinstance(part, dict)
        }

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later additions at their defaults: digests of earlier settings stay."""
        values: dict[str, Any] = dump(self)
        return {
            name: value
            for name, value in values.items()
            if name not in ADDED or value != ADDED[name]
        }

    @model_validator(mode="after")
    def _check_adapters(self) -> TrainSettings:
        if self.model.lora and self.teacher.average == "all":
            raise ValueError(
                "'model.lora' requires 'teacher.average: trained', which averages the adapters"
            )
        if self.model.lora and self.model.trainable_blocks == 0:
            raise ValueError(
                "'model.lora' has no blocks to adapt: "
                "set 'model.trainable_blocks' to the number of last blocks to adapt"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _complete_multiview(cls, values: Any) -> Any:
        """With `method: multiview`, add its defaults, and cameras if it uses them."""
        if not isinstance(values, dict) or values.get("method") != "multiview":
            return values
        data, multiview = values.get("data"), values.get("multiview") or {}
        rays = not isinstance(multiview, dict) or multiview.get("ray_width") != 0
        if isinstance(data, dict) and rays:
            data = {"cameras": True} | data
        return values | {"data": data, "multiview": multiview}

    @model_validator(mode="after")
    def _check_method(self) -> TrainSettings:
        if self.method == "tracks":
            if self.multiview:
                raise ValueError("'multiview' needs 'method: multiview'")
            return self
        for name in ("references", "loss", "teacher"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"'{name}' belongs to 'method: tracks' and changes nothing with 'method: "
                    f"{self.method}': leave it out"
                )
        if self.model.trainable_blocks == 0:
            raise ValueError(
                "'method: multiview' has no blocks to put adapters after: set "
                "'model.trainable_blocks' to the number of last blocks, such as 12"
            )
        if self.tracks.epipolar_weight_px is not None:
            raise ValueError(
                "'tracks.epipolar_weight_px' belongs to 'method: tracks': leave it out, or leave "
                "tracks out by 'tracks.max_epipolar_px'"
            )
        for name in ("train_norm", "train_embeddings"):
            if getattr(self.model, name):
                raise ValueError(
                    f"'model.{name}' belongs to 'method: tracks', and 'method: multiview' freezes "
                    "the backbone: leave it out"
                )
        if self.multiview and self.multiview.ray_width and not self.data.cameras:
            raise ValueError(
                "'multiview.ray_width' above 0 needs 'data.cameras: true': set one of them, or "
                "'multiview.ray_width: 0' to train without cameras"
            )
        if self.data.colour.student_only:
            raise ValueError(
                "'data.colour.student_only' needs a teacher, and 'method: multiview' has none"
            )
        return self

    @model_validator(mode="after")
    def _check_frames(self) -> TrainSettings:
        crops = self.method == "tracks" and self.references.kind == "crops"
        if self.data.frames < 3 and crops:
            raise ValueError(
                "'data.frames' must be at least 3: a clip's own reference is neither its first "
                "frame nor its last"
            )
        return self
