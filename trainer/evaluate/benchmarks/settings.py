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
    """How keypoints are matched. The defaults are Probe3D's."""

    split: Literal["trn", "val", "test"] = "test"
    """Split of the dataset. Choose checkpoints on `val`; `test` is for reporting."""
    size: int = Field(default=800, ge=16)
    """Side in pixels of the square that images are resized to."""
    pairs: int = Field(default=200, ge=1)
    """Pairs per class and pass, at most."""
    seed: int = 20
    """Seed of the shuffle that chooses pairs."""
    readout: Readout = "probe3d"
    """Position that a patch stands for. `probe3d`: its top left corner, and features are sampled as
    if the centres of the outermost patches lay on the border; with 50 patches per side a perfect
    matcher is off by 0.0153 of the image. `centre`: its centre; a perfect matcher is off by
    0.0076."""
    occluded: Occluded = "none"
    """Hide a part of the object in the target (`one`), or in source and target (`both`)."""


class NaviSettings(Settings):
    """How points are matched. The defaults are Probe3D's."""

    size: int = Field(default=512, ge=16)
    """Side in pixels of the square around the object."""
    cell: int = Field(default=4, ge=1)
    """Pixels from one point of the grid to the next."""
    matches: int = Field(default=1000, ge=1)
    """Number of matches of highest ratio that count as `best`."""
    every: int = Field(default=4, ge=1)
    """Only every n-th photograph starts a pair."""
    farthest: float = Field(default=120, gt=0)
    """Largest angle of a pair in degrees."""
    seed: int = 8
    """Seed of the draw of partners."""
    pairs: int | None = Field(default=None, ge=1)
    """Pairs, at most, evenly spaced in the list: for a quick look."""


class ProbeSettings(Settings):
    """How the probe is trained. The defaults are Probe3D's."""

    size: int = Field(default=512, ge=16)
    """Side in pixels of the square around the object."""
    every: int = Field(default=4, ge=1)
    """Only every n-th photograph is used, in training and in testing."""
    epochs: float = Field(default=10, gt=0)
    """Passes over the training photographs."""
    warmup: float = Field(default=1.5, ge=0)
    """Epochs in which the learning rate rises."""
    steps: int | None = Field(default=None, ge=1)
    """Training steps, instead of `epochs`, with the same share of warm-up: for a quick look."""
    batch: int = Field(default=8, ge=1)
    """Photographs per step."""
    rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate."""
    hidden: int = Field(default=512, ge=1)
    """Channels of the probe."""
    jitter: bool = True
    """Change brightness, contrast, saturation and hue by up to 0.2, in four images of five."""
    farthest: float = Field(default=1.0, gt=0.001)
    """Largest depth that the probe can predict, in metres."""
    relative: bool = False
    """Predict relative depth instead of metres, from 0.01 at an object's nearest point to 1."""
    snorm_gt: Normals = "probe3d"
    """Normals that count as true: `probe3d` to compare with its table, `true` for the object's."""
    seed: int = 8
    """Seed of the probe's first weights, the order of photographs and the jitter."""
    workers: int = Field(default=4, ge=0)
    """Processes that read photographs."""


class SetNormalsSettings(ProbeSettings):
    """How the probe is trained on sets of views. `epochs` and `batch` count sets."""

    views: int = Field(default=4, ge=2)
    """Photographs per set, in a row in their collection."""
    every: int = Field(default=1, ge=1)
    """Only every n-th photograph of a collection is used, in training and in testing."""
    batch: int = Field(default=2, ge=1)
    """Sets per step."""


class ClusteringSettings(Settings):
    """How validation images are clustered. The defaults are MoSiC's and 3DPoV's."""

    size: int = Field(default=224, ge=16)
    """Side in pixels of the square that images are squashed to."""
    grid: int = Field(default=56, ge=1)
    """Cells per side that features are enlarged to, bilinearly."""
    components: int = Field(default=50, ge=1)
    """Principal components of the standardised features that are clustered."""
    clusters: tuple[Annotated[int, Field(ge=1)], ...] = (21, 100)
    """Numbers of clusters, one clustering for each."""
    iterations: int = Field(default=20, ge=1)
    """Iterations of k-means."""
    points: int = Field(default=1_000_000, ge=1)
    """Cells that k-means is fitted to, equally many per image. Then all cells are assigned."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sample of cells and of k-means' first centres."""
    images: int | None = Field(default=None, ge=1)
    """Images, at most, evenly spaced in the list: for a quick look."""


class RetrievalSettings(Settings):
    """How labels are retrieved. The defaults are hummingbird's, except for `memory`."""

    size: int = Field(default=224, ge=16)
    """Side in pixels of the square that images are squashed to."""
    memory: int = Field(default=300_000, ge=1)
    """Patches in the memory, drawn at random, equally many per image: 0.9 GB for a ViT-B."""
    memory_split: Split = "trainaug"
    """Training images. `trainaug` labels 10 582 images and needs the folder SegmentationClassAug;
    `train` labels 1464."""
    neighbours: int = Field(default=30, ge=1)
    """Patches of the memory that a patch takes its label from."""
    temperature: float = Field(default=0.02, gt=0)
    """Temperature of the softmax that weights the neighbours."""
    seed: int = 0
    """Seed of the choice of patches."""
    images: int | None = Field(default=None, ge=1)
    """Training images and validation images, at most, of each: for a quick look."""
