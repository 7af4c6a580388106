"""Settings of the losses: the `loss` part of a training config.

Cheap to import: the losses themselves, and torch with them, are imported by `LossSettings.make`
alone. They read these settings but never import them at run time, so no import circle closes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from manifests.settings import Settings

if TYPE_CHECKING:
    from trainer.losses.weighted_sum import Losses


class InfoNCESettings(Settings):
    """`trainer.losses.info_nce`: a track is to be told from the clip's others."""

    weight: float = Field(default=1.0, ge=0)
    """Its part in the sum of all losses; 0 leaves it out."""
    temperature: float = Field(default=0.07, gt=0)
    """Cosines are divided by this: smaller looks at the likest negatives alone."""
    apart: float = Field(default=0.1, ge=0)
    """Tracks nearer than this in the anchor frame, in parts of its side, are no negatives of each other."""
    other_clips: bool = False
    """Whether the tracks of the other clips in the rank's batch are negatives, too."""


class SmoothAPSettings(Settings):
    """`trainer.losses.smooth_ap`: a smooth average precision of finding a track's point among the clip's (3DCorrEnhance)."""

    weight: float = Field(default=1.0, ge=0)
    """Its part in the sum of all losses; 0 leaves it out."""
    temperature: float = Field(default=0.01, gt=0)
    """Of the sigmoid that stands for "is ranked above": smaller is nearer to true ranks, and has gradients in fewer places."""
    near: float = Field(default=0.005, gt=0)
    """Tracks nearer than this in the anchor frame, in parts of its side, are at the same point: all of them are to be found."""
    far: float = Field(default=0.1, gt=0)
    """Tracks further than this are wrong finds; those between the two count as neither."""

    @model_validator(mode="after")
    def _near_is_nearer(self) -> SmoothAPSettings:
        if self.near > self.far:
            raise ValueError(
                "'near' should be no larger than 'far': a track would be at the same point and a wrong find at once"
            )
        return self


class ClusterSettings(Settings):
    """`trainer.losses.clusters`: a track keeps the cluster that the teacher puts it in in the anchor frame (MoSiC)."""

    weight: float = Field(default=1.0, ge=0)
    """Its part in the sum of all losses; 0 leaves it out."""
    prototypes: int = Field(default=200, ge=2)
    """Clusters, each with a trained unit vector."""
    temperature: float = Field(default=0.1, gt=0)
    """The student's cosines with the prototypes are divided by this."""
    epsilon: float = Field(default=0.06, ge=0.025)
    """Sinkhorn's entropy: smaller makes harder assignments, and below the limit float32 no longer holds them."""
    iterations: int = Field(default=3, ge=1)
    """Sinkhorn's rounds."""
    soft: bool = False
    """The target is the teacher's whole assignment. False: its largest entry alone."""


class TrackMeanSettings(Settings):
    """`trainer.losses.track_mean`: a track's embedding is to be the teacher's mean along it. The teacher sees every frame then."""

    weight: float = Field(default=1.0, ge=0)
    """Its part in the sum of all losses; 0 leaves it out."""


class LossSettings(Settings):
    """What is done with the student's and the teacher's similarities to a reference's patches, and which losses are added to it."""

    sorting: float = Field(default=1.0, ge=0)
    """The sorting loss's part in the sum of all losses; 0 leaves it out. The fields down to `detach_teacher` are its own."""
    objective: Literal["spearman", "teacher_student", "published"] = "spearman"
    """`published`: -sum student * log teacher over soft permutations, linear in the student. `teacher_student`: the other way round
    (NeCo's), -sum teacher * log student. `spearman`: 1 - correlation of the student's soft ranks with the teacher's ranks. In the
    last two the teacher's order is a constant, whatever `detach_teacher` says."""
    sorter: Literal["torchsort", "bitonic", "odd_even"] = "torchsort"
    """Where soft permutations or soft ranks come from. `torchsort` makes ranks only, so it goes with `spearman`."""
    distribution: Literal["cauchy", "logistic"] = "cauchy"
    """The networks' soft comparison."""
    student_steepness: float = Field(default=20.0, gt=0)
    """Steepness of the student's network: how hard it sorts."""
    teacher_steepness: float = Field(default=3.0, gt=0)
    """Steepness of the teacher's network."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to probabilities inside the logarithm."""
    strength: float = Field(default=0.03, gt=0)
    """torchsort's regularisation, of similarities standardised over each row: smaller is nearer to hard ranks."""
    detach_teacher: bool = True
    """Published: false, gradients also reach the references (features of the student) through the teacher's ordering."""
    frames: Literal["all", "curriculum"] = "all"
    """Which frames are compared with the anchor. Published: `curriculum`: all at step 0, then one fewer, the nearest first, and one
    more fewer every `curriculum_steps`, down to the last frame alone."""
    curriculum_steps: int = Field(default=1085, ge=1)
    """Steps between two changes of the curriculum."""
    info_nce: InfoNCESettings | None = None
    """Adds InfoNCE on correspondences: `{}` with its defaults. This one and those below: null leaves it out."""
    smooth_ap: SmoothAPSettings | None = None
    """Adds SmoothAP."""
    clusters: ClusterSettings | None = None
    """Adds clusters carried along tracks."""
    track_mean: TrackMeanSettings | None = None
    """Adds the distance from the teacher's mean along a track."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses that are used, by name: of every field that has a `weight`, also of a subclass's."""
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

    def make(self, width: int) -> Losses:
        """These losses, of embeddings [..., width]. A subclass with losses of its own passes them to `make_losses`."""
        from trainer.losses.weighted_sum import (
            make_losses,  # torch takes seconds to import; a wrong key should not
        )

        return make_losses(self, width)

    @model_validator(mode="after")
    def _any_loss(self) -> LossSettings:
        if not self.weights:
            raise ValueError(
                "nothing would be trained, since every loss has weight 0: set 'loss.sorting' above 0, or the 'weight' of "
                "'loss.info_nce', 'loss.smooth_ap', 'loss.clusters' or 'loss.track_mean'"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> LossSettings:
        if self.sorter == "torchsort" and self.objective != "spearman":
            raise ValueError(
                f"the sorter 'torchsort' makes ranks and no permutation, which the objective '{self.objective}' needs: "
                "choose the sorter 'bitonic' or 'odd_even', or the objective 'spearman'"
            )
        return self
