"""Settings of data loading: the parts `data` and `tracks` of a training config.

Cheap to import: torch takes seconds, and a mistyped key should be reported before.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from manifests.settings import LocationSetting, Settings
from shards.errors import SettingsError
from trainer.data.clip_filter import parse_filter


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
    batch, which takes `resize: device`. Workers then only read, a fifth of their CPU time. On CUDA
    it uses nvJPEG, through torchvision, which repeats chroma where CPUs interpolate it, so colours
    are not quite the same. Images are then always decoded at full scale, with the boxes that
    `reduced_decoding` draws, and damage that is found within an image stops the run, also with
    `on_error: skip`."""
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
