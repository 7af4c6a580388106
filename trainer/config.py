"""Settings of a training run.

Where the published 3DPoV code deviates from its formulas, a field selects one or the other, and its
docstring says what the published code does. The defaults are the repaired values
(`recipe: pretrack`); `recipe: upstream` replaces them by the published values, listed in
`UPSTREAM`. Settings of the losses are in `trainer/losses/settings.py`.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from manifests.settings import ExtendedSettings, LocationSetting, Settings
from shards.errors import SettingsError
from trainer.data.clip_filter import parse_filter
from trainer.losses.settings import LossSettings
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


class ColourSettings(Settings):
    """Colour augmentation. The same changes apply to all frames of a sample, unless `per_frame`."""

    jitter: float = Field(default=0.0, ge=0, le=1)
    """Probability of changing brightness, contrast, saturation and hue, in random order."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    """With `jitter`: the brightness factor is drawn from 1 - this to 1 + this."""
    contrast: float = Field(default=0.4, ge=0, le=1)
    """With `jitter`: the contrast factor is drawn from 1 - this to 1 + this."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """With `jitter`: the saturation factor is drawn from 1 - this to 1 + this."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """With `jitter`: the hue is rotated by up to this fraction of the colour circle, either way."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of converting to greyscale."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """With `blur`: the smallest and the largest sigma, in pixels of the sample."""
    per_frame: bool = False
    """Draws changes for every frame separately."""
    student_only: bool = False
    """Gives the teacher the anchor frame in its original colours; the sample then holds that frame
    twice."""

    @property
    def changes(self) -> bool:
        """Whether any change has a probability above 0."""
        return max(self.jitter, self.grey, self.blur) > 0

    @model_validator(mode="after")
    def _check_sigmas(self) -> ColourSettings:
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError("'blur_sigma' should be two numbers above 0, the smaller one first")
        return self


class CacheSettings(Settings):
    """A local cache of what was read from shards on a bucket or a web server."""

    folder: Path
    """Folder on a local disk; several runs may share it."""
    gb: float = Field(gt=0)
    """Maximum size, in 10^9 bytes. The least recently read entries are evicted first."""


class DataSettings(Settings):
    """Which clips, which of their frames, and how frames are cropped and augmented."""

    out: tuple[LocationSetting, ...] = Field(min_length=1)
    """Output folders of finished builds, or their URLs. Without `weights`, every clip has the same
    probability, whichever folder it is in."""
    snapshot: str | None = None
    """Name of the snapshot to train on; only with one folder. By default each folder's current one.
    A resumed run keeps the snapshots it started with."""
    split: str = "train"
    """Uses only clips of this split."""
    where: str = ""
    """Uses only clips that satisfy this filter, for example
    `"visible_fraction > 0.5 and motion > 0.01 and dataset in ('co3d', 'dl3dv')"`. It may use every
    column of the clips table that has one value per clip."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Proportions in which an epoch mixes datasets or folders of `out`: `{co3d: 1, dl3dv: 2}`. An
    epoch still has as many clips as there are in total: small datasets repeat within an epoch;
    large ones continue in the next."""
    shuffle_shards: int = Field(default=0, ge=0)
    """0 shuffles clips over all shards. K > 0 shuffles the shards, and then clips within groups of
    K shards, so that reads are close together, for example for spinning disks."""
    frames: int = Field(default=4, ge=2)
    """Frames per sample, T: the anchor frame and T - 1 others."""
    step: int = Field(default=10, ge=0)
    """Step between the frames of a sample, in stored frames. A clip that is too short gets a
    smaller step, never below 1. 0 repeats the anchor frame T times: with `crop_per_frame`, crops of
    one moment."""
    frames_by: Literal["step", "angle"] = "step"
    """How the other frames of a sample are chosen: by `step`, or by the angle between their optical
    axes and that of the anchor frame (`angle`). That takes clips with poses and scores."""
    angle: tuple[float, float] = (10.0, 60.0)
    """With `frames_by: angle`: the smallest and the largest angle in degrees. Frames are drawn from
    those in between and come in the order of their angles. Clips that turn less than the smallest
    are left out; if an anchor has too few such frames, those nearest to the bounds are taken."""
    anchor: Literal["random", "first"] = "random"
    """Which of a clip's stored anchor frames a sample starts from."""
    control: Literal["none", "same", "shuffled"] = "none"
    """Trains without what tracks say, to see what they are worth. `same` shows the anchor frame in
    all frames of a sample, with its points where they are; it turns `crop_per_frame` and
    `colour.per_frame` on. `shuffled` gives each point the tracks of other points in all frames but
    the anchor frame. Clips, anchors, augmentation and losses are those of `none`."""
    direction: Literal["both", "forward"] = "both"
    """Direction in time of a sample's frames, from its anchor frame; `both` draws one. Published:
    forward."""
    size: int = Field(default=224, ge=14)
    """Side of the square input of the backbone, in pixels; a multiple of its patch size."""
    crop: Literal["random", "centre", "native", "squash"] = "random"
    """`random` draws one box per sample, with an aspect ratio between 3:4 and 4:3, the same for all
    its frames. `centre` takes the largest centred square. `native` takes the centre at the stored
    resolution, without resizing (published for DL3DV as `dl3dv_crop`); clips smaller than `size`
    are left out. `squash` resizes the whole frame to a square and ignores its aspect ratio, as
    published."""
    crop_scale: float = Field(default=0.5, gt=0, le=1)
    """With `crop: random`: the smallest fraction of a frame's area that the box may cover."""
    crop_per_frame: bool = False
    """Draws the box (with `crop: random`) and the flip for every frame of a sample separately."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip. Published: effectively 0 for every dataset without
    annotations."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation that pixel values are divided by, in units of 0..1, RGB. Published: 0.228
    for red in training (and 0.229 in evaluation)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean that is subtracted from pixel values first, in units of 0..1, RGB."""
    colour: ColourSettings = ColourSettings()
    """Colour augmentation; none by default, as published."""
    reduced_decoding: bool = True
    """Decodes an image at 1/2, 1/4 or 1/8 scale where the crop is at least that much larger than
    `size`. Random boxes are then whole multiples of the factor. Published: false."""
    resize: Literal["worker", "device"] = "worker"
    """Where frames are resized, flipped and changed in colour: in the loader's workers, or batch by
    batch on the device that trains. `device` saves up to a quarter of the workers' CPU time;
    samples are the same to one grey level. It takes more shared memory, because workers then send
    crops as large as they are stored."""
    decode: Literal["worker", "device"] = "worker"
    """Where images are decoded: in the loader's workers, or on the device that trains, batch by
    batch, which takes `resize: device`. `device` leaves only reading to the workers. On CUDA it
    uses nvJPEG, through torchvision, which repeats chroma where CPUs interpolate it, so colours are
    not quite the same. Images are then always decoded at full scale, with the boxes that
    `reduced_decoding` draws."""
    cameras: bool = False
    """Adds each frame's camera to the samples: `intrinsics`, `world_to_camera` and `posed`, of what
    is shown after crop, resize and flip. `method: multiview` uses them, and sets this."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens if a clip is missing or damaged: `stop` ends the run with an error that names
    it, and `skip` takes another clip instead; the log names and counts the clips left out."""
    cache: CacheSettings | None = None
    """Caches what was read from remote shards on a local disk."""

    @field_validator("out", mode="before")
    @classmethod
    def _wrap_single_folder(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @model_validator(mode="before")
    @classmethod
    def _vary_copies(cls, values: Any) -> Any:
        """Give each copy of the anchor frame its own crop and colours with `control: same`."""
        if not isinstance(values, dict) or values.get("control") != "same":
            return values
        colour = values.get("colour", {})
        if isinstance(colour, ColourSettings):
            colour = colour.model_dump()
        if isinstance(colour, dict):
            colour = colour | {"per_frame": True}
        return values | {"crop_per_frame": True, "colour": colour}

    @field_validator("where")
    @classmethod
    def _check_filter(cls, value: str) -> str:
        try:
            if value.strip():
                parse_filter(value)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _check_snapshot(self) -> DataSettings:
        if self.snapshot is not None and len(self.out) > 1:
            raise ValueError("'snapshot' can only be named where 'out' is one folder")
        return self

    @model_validator(mode="after")
    def _check_decode(self) -> DataSettings:
        if self.decode == "device" and self.resize == "worker":
            raise ValueError(
                "'decode: device' leaves nothing for workers to resize: set 'resize: device' too"
            )
        return self

    @property
    def decodes_reduced(self) -> bool:
        """Whether images may be decoded at reduced scale. torchvision's nvJPEG cannot do that."""
        return self.reduced_decoding and self.decode == "worker"

    @model_validator(mode="after")
    def _check_control(self) -> DataSettings:
        if self.control != "none" and self.step == 0 and self.frames_by == "step":
            raise ValueError(
                f"'control: {self.control}' replaces the frames or the tracks beside the anchor "
                "frame, and 'step: 0' shows none: set only one of them"
            )
        copies_differ = self.crop == "random" or 0 < self.flip < 1 or self.colour.changes
        if self.control == "same" and not copies_differ:
            raise ValueError(
                "'control: same' shows the anchor frame in all frames of a sample, and they would "
                "all be equal: set 'crop: random', a 'flip' between 0 and 1, or changes of "
                "'colour'"
            )
        return self

    @model_validator(mode="after")
    def _check_angle(self) -> DataSettings:
        smallest, largest = self.angle
        if not 0 <= smallest < largest <= 180:
            raise ValueError(
                f"'angle: [{smallest:g}, {largest:g}]' should be two angles from 0 to 180 degrees, "
                "the smaller one first"
            )
        return self

    @model_validator(mode="after")
    def _check_blur(self) -> DataSettings:
        reach = ceil(3 * self.colour.blur_sigma[1])
        # Frames are mirrored at their borders, once.
        if self.colour.blur and reach >= self.size:
            raise ValueError(
                f"a blur with 'colour.blur_sigma' {self.colour.blur_sigma[1]:g} reaches {reach} "
                f"pixels, which is too far for 'size: {self.size}': lower its second number to "
                f"{(self.size - 1) // 3} at most"
            )
        return self


class TrackFilterSettings(Settings):
    """Which points of a track count, and how they map to the patch grid."""

    visibility: float = Field(default=0.9, ge=0, lt=1)
    """A point counts if its stored probability of being visible is above this."""
    confidence: float = Field(default=0.1, ge=0, le=1)
    """A point counts if its stored confidence is also at least this. Published: confidence is not
    used, which is 0 here."""
    max_epipolar_px: float | None = Field(default=None, gt=0)
    """A track is left out if its stored epipolar score is larger than this: if it was ever farther
    from its anchor's epipolar line, in pixels of the stored frame. Tracks without a score, such as
    those of clips without poses, are kept. 2 suits static scenes; right tracks of moving objects
    are left out, too."""
    epipolar_weight_px: float | None = Field(default=None, gt=0)
    """Weights a track by its stored epipolar score s: it counts 1 / (1 + (s / this)²) in every loss
    of tracks. Half of a track counts if its score is this, in pixels of the stored frame; all of it
    without a score. It can be combined with `max_epipolar_px`."""
    mask_outside: bool = True
    """Whether points outside the cropped frame are ignored. Published: false, which moves them to
    the border and counts them."""
    align_corners: bool = False
    """How points map to the patch grid (`align_corners` of `grid_sample`). False is exact.
    Published: true, which samples up to half a patch (7 px) away from the point, most at the
    border."""


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
