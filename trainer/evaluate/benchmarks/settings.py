"""Settings of the benchmarks, which are also their command-line options.

Apart from the benchmarks, so that `--help` and a wrong option are answered without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manifests.settings import Settings

Readout = Literal["probe3d", "centre"]
Occluded = Literal["none", "one", "both"]
Normals = Literal["probe3d", "true"]
Split = Literal["train", "trainaug", "val"]


class SpairSettings(Settings):
    """How keypoints are looked for. The defaults are Probe3D's."""

    split: Literal["trn", "val", "test"] = "test"
    """Choose checkpoints on `val`; `test` is for reporting."""
    size: int = Field(default=800, ge=16)
    """Side in pixels of the square that images are shown at."""
    pairs: int = Field(default=200, ge=1)
    """At most this many pairs for each class and pass."""
    seed: int = 20
    """Of the shuffle that chooses pairs."""
    readout: Readout = "probe3d"
    """`probe3d`: a patch stands for its top left corner, and features are read as if the outermost patches' centres lay on the
    border; its perfect matcher is off by 0.0153 of the image with 50 patches a side. `centre`: a patch lies where it is, 0.0076."""
    occluded: Occluded = "none"
    """Hides a part of the object in the target (`one`) or in source and target (`both`)."""


class NaviSettings(Settings):
    """How points are looked for. The defaults are Probe3D's."""

    size: int = Field(default=512, ge=16)
    """Side in pixels of the square around the object."""
    cell: int = Field(default=4, ge=1)
    """Pixels between two points of the grid."""
    matches: int = Field(default=1000, ge=1)
    """How many matches of highest ratio count as `best`."""
    every: int = Field(default=4, ge=1)
    """Only every so many photographs start a pair."""
    farthest: float = Field(default=120, gt=0)
    """Largest angle of a pair in degrees."""
    seed: int = 8
    """Of the draw of partners."""
    pairs: int | None = Field(default=None, ge=1)
    """At most so many pairs, evenly from the list: for a quick look."""


class ProbeSettings(Settings):
    """How the probe is trained. The defaults are Probe3D's."""

    size: int = Field(default=512, ge=16)
    """Side in pixels of the square around the object."""
    every: int = Field(default=4, ge=1)
    """Only every so many photographs are used, in training and in testing."""
    epochs: float = Field(default=10, gt=0)
    """Passes over the photographs."""
    warmup: float = Field(default=1.5, ge=0)
    """Epochs over which the learning rate goes up."""
    steps: int | None = Field(default=None, ge=1)
    """So many steps in place of `epochs`, with the same part of them as warm-up: for a quick look."""
    batch: int = Field(default=8, ge=1)
    """Photographs a step."""
    rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate."""
    hidden: int = Field(default=512, ge=1)
    """Channels of the probe."""
    jitter: bool = True
    """Brightness, contrast, saturation and hue by up to 0.2, for four images of five."""
    farthest: float = Field(default=1.0, gt=0.001)
    """Largest depth the probe can say, in metres."""
    relative: bool = False
    """Depth from 0.01 to 1 between the nearest and the farthest point of each object, in place of metres."""
    snorm_gt: Normals = "probe3d"
    """Which normals count as true: `probe3d` for its table, `true` for those of the object."""
    seed: int = 8
    """Of the probe's first weights, the order of photographs and the jitter."""
    workers: int = Field(default=4, ge=0)
    """Processes that read photographs."""


class ClusteringSettings(Settings):
    """How validation images are clustered. The defaults are MoSiC's and 3DPoV's."""

    size: int = Field(default=224, ge=16)
    """Side in pixels of the square that images are squashed to."""
    grid: int = Field(default=56, ge=1)
    """Cells a side that features are enlarged to, bilinearly."""
    components: int = Field(default=50, ge=1)
    """Principal components of the standardised features that are clustered."""
    clusters: tuple[Annotated[int, Field(ge=1)], ...] = (21, 100)
    """How many clusters, one after the other."""
    iterations: int = Field(default=20, ge=1)
    """Of k-means."""
    points: int = Field(default=1_000_000, ge=1)
    """Cells that the centres are fitted to, evenly from the images; all cells are then given one."""
    seed: int = Field(default=0, ge=0)
    """Of the sample and of k-means' first centres."""
    images: int | None = Field(default=None, ge=1)
    """At most so many images, evenly from the list: for a quick look."""


class RetrievalSettings(Settings):
    """How labels are retrieved. The defaults are hummingbird's, but for the memory's size."""

    size: int = Field(default=224, ge=16)
    """Side in pixels of the square that images are squashed to."""
    memory: int = Field(default=300_000, ge=1)
    """Patches remembered, evenly and at random from the training images: 0.9 GB of a ViT-B."""
    memory_split: Split = "trainaug"
    """`trainaug` has labels for 10 582 images and needs the folder SegmentationClassAug; `train` has 1464."""
    neighbours: int = Field(default=30, ge=1)
    """Patches of the memory that a patch takes its label from."""
    temperature: float = Field(default=0.02, gt=0)
    """Of the softmax that weights them."""
    seed: int = 0
    """Of the choice of patches."""
    images: int | None = Field(default=None, ge=1)
    """At most so many training and so many validation images: for a quick look."""
