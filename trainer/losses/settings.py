"""Settings of the losses: the `loss` part of a training config.

Cheap to import: torch takes seconds, and a mistyped key should be reported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.settings import ExtendedSettings, Settings

if TYPE_CHECKING:
    from trainer.losses.embeddings import Loss


class InfoNCESettings(Settings):
    """`trainer.losses.info_nce`: distinguishes a track from the other tracks of its clip."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    temperature: float = Field(default=0.07, gt=0)
    """Cosines are divided by this. A smaller value concentrates on the hardest negatives."""
    apart: float = Field(default=0.1, ge=0)
    """Tracks nearer than this in the anchor frame, as a fraction of its side, are not used as
    negatives of each other."""
    other_clips: bool = False
    """Whether tracks of the other clips in the rank's batch are negatives as well."""


class SmoothAPSettings(ExtendedSettings):
    """`trainer.losses.smooth_ap`: smooth average precision of retrieving a track's anchor point
    among those of its clip (3DCorrEnhance)."""

    added: ClassVar[frozenset[str]] = frozenset({"ideal"})

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    temperature: float = Field(default=0.01, gt=0)
    """Temperature of the sigmoid that replaces "is ranked above". A smaller value is nearer to true
    ranks, but gradients vanish for more pairs."""
    near: float = Field(default=0.005, gt=0)
    """Tracks nearer than this in the anchor frame, as a fraction of its side, are positives: they
    count as the same point."""
    far: float = Field(default=0.1, gt=0)
    """Tracks further than this are negatives. Tracks between `near` and `far` are neither."""
    ideal: bool = False
    """Whether each positive is ranked beside an ideal one of cosine 1, as in 3DCorrEnhance's code.
    False: beside the other positives, as SmoothAP is defined."""

    @model_validator(mode="after")
    def _check_distances(self) -> SmoothAPSettings:
        if self.near > self.far:
            raise ValueError(
                "'near' should be no larger than 'far': "
                "a track would be a positive and a negative at once"
            )
        return self


class ClusterSettings(Settings):
    """`trainer.losses.clusters`: a track keeps the prototype that the teacher assigns to it in the
    anchor frame (MoSiC)."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    prototypes: int = Field(default=200, ge=2)
    """Number of prototypes, which are trained unit vectors."""
    temperature: float = Field(default=0.1, gt=0)
    """The student's cosines with the prototypes are divided by this before the softmax."""
    epsilon: float = Field(default=0.06, ge=0.025)
    """Weight of the entropy in Sinkhorn-Knopp: a smaller value makes harder assignments. Below
    0.025 float32 underflows."""
    iterations: int = Field(default=3, ge=1)
    """Iterations of Sinkhorn-Knopp."""
    soft: bool = False
    """Whether the target is the teacher's whole assignment. False: only its largest entry."""


class TrackMeanSettings(Settings):
    """`trainer.losses.track_mean`: moves a track's embeddings towards the teacher's mean along it.

    The teacher then runs on every compared frame, not on the anchor frame alone."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""


class ViewAgreementSettings(Settings):
    """`trainer.losses.view_agreement`: `track_mean`, and a keypoint head whose scores agree along
    tracks and peak sparsely (after ConDense's 2D side).

    The teacher runs on every compared frame, as with `track_mean`."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    keypoints: float = Field(default=1.0, gt=0)
    """Weight of the terms of the keypoint head beside the agreement of embeddings."""
    near: float = Field(default=0.15, gt=0)
    """Scores are compared, and peak, among tracks that are at most this far from each other in the
    anchor frame, as a fraction of its side."""


class TimeTuningSettings(Settings):
    """`trainer.losses.timetuning`: the teacher's clusters of the anchor frame's patches, forwarded
    to the last frame, are what the student should see there (TimeTuning)."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    carry: Literal["affinity", "tracks"] = "affinity"
    """What carries clusters forward. `affinity`: similar features near by, frame by frame, without
    any track, as published. `tracks`: the stored tracks, for the points that they show."""
    prototypes: int = Field(default=200, ge=2)
    """Number of prototypes, which are trained unit vectors. The teacher has their average."""
    temperature: float = Field(default=0.1, gt=0)
    """The student's cosines with the prototypes are divided by this before the softmax."""
    epsilon: float = Field(default=0.05, ge=0.025)
    """Weight of the entropy in Sinkhorn-Knopp. Below 0.025 float32 underflows."""
    iterations: int = Field(default=10, ge=1)
    """Iterations of Sinkhorn-Knopp, over all patches of the anchor frames of all ranks."""
    window: int = Field(default=6, ge=0)
    """With `carry: affinity`: patches this many rows and columns away are taken from, at most."""
    top: int = Field(default=5, ge=1)
    """With `carry: affinity`: the number of patches that a patch is the mean of."""
    affinity_temperature: float = Field(default=0.1, gt=0)
    """With `carry: affinity`: cosines are divided by this, and their exponentials are weights."""
    earlier: int = Field(default=7, ge=0)
    """With `carry: affinity`: how many frames before a frame are taken from, beside the anchor
    frame."""


class SelfSupervisionSettings(Settings):
    """`trainer.losses.self_supervision`: a point in a zoomed, recoloured and partly covered view of
    a frame must match itself in the frame. It uses no tracks."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""
    every_frame: bool = False
    """Whether all frames of a sample are used. False: the anchor frame alone."""
    points: int = Field(default=64, ge=2)
    """Points per frame that are compared, drawn uniformly in the view in every step."""
    smallest: float = Field(default=0.3, gt=0, le=1)
    """The smallest fraction of a frame's area that its view shows; the largest is all of it."""
    covered: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of a view's patches that are covered by the mean colour."""
    recolour: float = Field(default=0.4, ge=0, lt=1)
    """Brightness, contrast and each channel's gain of a view change by up to this fraction."""
    temperature: float = Field(default=0.1, gt=0)
    """Cosines are divided by this."""
    apart: float = Field(default=0.1, ge=0)
    """Points nearer than this, as a fraction of the frame's side, are not told apart."""


class KeepBaseSettings(Settings):
    """`trainer.losses.keep_base`: features of patches stay near those of the base model, the
    student at its start weights (Multi-View Foundation Models)."""

    weight: float = Field(default=0.1, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""


class LiftedSettings(Settings):
    """`trainer.losses.lifted`: moves features along a track towards the base model's mean along it
    (after FiT3D). It trains features, not embeddings: the head is not used."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of all losses; 0 disables the loss."""


class LossSettings(ExtendedSettings):
    """The sorting loss, which compares the student's and the teacher's similarities to the patches
    of reference crops, and the losses that are added to it."""

    added: ClassVar[frozenset[str]] = frozenset({"timetuning", "view_agreement"})

    sorting: float = Field(default=1.0, ge=0)
    """Weight of the sorting loss in the sum of all losses; 0 disables it. The fields down to
    `detach_teacher` belong to this loss."""
    objective: Literal["spearman", "teacher_student", "published"] = "spearman"
    """`published`: -sum student * log teacher over soft permutations, linear in the student.
    `teacher_student`: the reverse, as in NeCo, -sum teacher * log student. `spearman`:
    1 - correlation of the student's soft ranks with the teacher's ranks. In the last two the
    teacher's order is a constant, whatever the value of `detach_teacher`."""
    sorter: Literal["torchsort", "bitonic", "odd_even"] = "torchsort"
    """What computes soft permutations or soft ranks. `torchsort` computes ranks only and requires
    `objective: spearman`; on CUDA, a Triton kernel computes the same ranks. `bitonic` and
    `odd_even` are differentiable sorting networks."""
    distribution: Literal["cauchy", "logistic"] = "cauchy"
    """Distribution function of the sorting networks' soft comparators."""
    student_steepness: float = Field(default=20.0, gt=0)
    """Steepness of the student's sorting network: a larger value sorts harder."""
    teacher_steepness: float = Field(default=3.0, gt=0)
    """Steepness of the teacher's sorting network."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to probabilities inside the logarithm."""
    strength: float = Field(default=0.03, gt=0)
    """torchsort's regularisation strength, for similarities standardised per row: a smaller value
    is nearer to hard ranks."""
    detach_teacher: bool = True
    """Whether the teacher's order is a constant. Published: false, so gradients also reach the
    references, which are features of the student, through the teacher's similarities."""
    frames: Literal["all", "curriculum"] = "all"
    """Which frames are compared with the anchor frame. Published: `curriculum`, which compares all
    at step 0, drops the nearest frame at step 1 and another one every `curriculum_steps` after
    that, until only the last frame is left."""
    curriculum_steps: int = Field(default=1085, ge=1)
    """Steps between two changes of `frames: curriculum`."""
    info_nce: InfoNCESettings | None = None
    """Adds InfoNCE on correspondences. For this loss and those below, `{}` uses the defaults, and
    null disables the loss."""
    smooth_ap: SmoothAPSettings | None = None
    """Adds SmoothAP, a smooth average precision."""
    clusters: ClusterSettings | None = None
    """Adds clustering along tracks."""
    track_mean: TrackMeanSettings | None = None
    """Adds the cosine distance from the teacher's mean along a track."""
    self_supervision: SelfSupervisionSettings | None = None
    """Adds self-supervision by two views of a frame, which needs no tracks. Where it is the
    only loss, nothing is computed for tracks."""

    keep_base: KeepBaseSettings | None = None
    """Adds the distance of patch features from the base model's, in length and direction."""
    lifted: LiftedSettings | None = None
    """Adds the distance of features along a track from the base model's mean along it."""
    timetuning: TimeTuningSettings | None = None
    """Adds clusters that are forwarded from the anchor frame to the last frame."""
    view_agreement: ViewAgreementSettings | None = None
    """Adds the agreement of all views of a point, with a keypoint head."""

    @property
    def weights(self) -> dict[str, float]:
        """Weights above 0 by loss name, of `sorting` and of every field with a `weight`.

        This includes fields that a subclass adds.
        """
        added = {
            name: part.weight
            for name in type(self).model_fields
            if hasattr(part := getattr(self, name), "weight")
        }
        return {
            name: weight
            for name, weight in ({"sorting": self.sorting} | added).items()
            if weight > 0
        }

    def custom_losses(self) -> dict[str, Loss]:
        """Return losses from outside pretrack, by the name of their field; a subclass adds them."""
        return {}

    @model_validator(mode="after")
    def _check_weights(self) -> LossSettings:
        if not self.weights:
            raise ValueError(
                "nothing would be trained, since every loss has weight 0: set 'loss.sorting' above "
                "0, or the 'weight' of 'loss.info_nce', 'loss.smooth_ap', 'loss.clusters', "
                "'loss.track_mean', 'loss.view_agreement', 'loss.self_supervision', 'loss.lifted' "
                "or 'loss.timetuning'"
            )
        return self

    @model_validator(mode="after")
    def _check_sorter(self) -> LossSettings:
        if self.sorter == "torchsort" and self.objective != "spearman":
            raise ValueError(
                "the sorter 'torchsort' makes ranks and no permutation, which the objective "
                f"'{self.objective}' needs: choose the sorter 'bitonic' or 'odd_even', or the "
                "objective 'spearman'"
            )
        return self
