"""Whether models were trained on the footage that they are evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from manifests.wording import pluralise
from shards.errors import SettingsError
from trainer.data.footage import Footage
from trainer.training_footage import TrainingFootage

_MOST_NAMES = 10
"""Most names of each kind in results."""


@dataclass(frozen=True)
class Overlap:
    """What a model was trained on of the footage that it is evaluated on.

    shown:      all footage of the evaluation
    shared:     the part of it that the model was trained on
    trained_on: all that is known of the model's training
    """

    model: str
    shown: Footage
    shared: Footage
    trained_on: TrainingFootage

    @classmethod
    def of(cls, model: str, shown: Footage, trained_on: TrainingFootage) -> Self:
        """Compare the footage of an evaluation with what a model was trained on."""
        return cls(model, shown, trained_on.shared_with(shown), trained_on)

    @property
    def found(self) -> bool:
        """Whether any footage is known to be shared."""
        return bool(self.shared.sequences or self.shared.parts)

    def to_json(self) -> dict[str, Any]:
        """Describe the overlap for results: `found`, `none`, or `unknown`."""
        none = "none" if self.trained_on.complete else "unknown"
        return {
            "overlap": "found" if self.found else none,
            "sequences": len(self.shared.sequences),
            "of_sequences": len(self.shown.sequences),
            "parts": len(self.shared.parts),
            "of_parts": len(self.shown.parts),
            "examples": [*self.shared.sequences[:_MOST_NAMES], *self.shared.parts[:_MOST_NAMES]],
            "trained_on": self.trained_on.to_json(),
        }

    def __str__(self) -> str:
        """Say it in a sentence, without the full stop."""
        if self.found:
            return f"'{self.model}' was trained on {self.shares}"
        trained_on = self.trained_on
        if not (len(trained_on.sequences) or trained_on.complete):
            return f"it is unknown whether '{self.model}' was trained on these clips"
        start = "" if trained_on.complete else "; of the weights that it started from it is unknown"
        return f"'{self.model}' was not trained on these clips{start}"

    @property
    def sentence(self) -> str:
        """The same as a sentence of its own, for what is printed."""
        text = str(self)
        return f"{text[0].upper()}{text[1:]}."

    @property
    def shares(self) -> str:
        """How much is shared, such as `2 of 8 sequences of these clips, such as NAME`."""
        kinds = [
            ("sequence", self.shared.sequences, self.shown.sequences),
            ("part", self.shared.parts, self.shown.parts),
        ]
        shares = [
            f"{len(shared)} of {pluralise(len(shown), kind)}"
            for kind, shared, shown in kinds
            if shared
        ]
        example = (self.shared.sequences or self.shared.parts)[0]
        return f"{' and '.join(shares)} of these clips, such as {example}"


def check_overlap(
    models: Mapping[str, TrainingFootage], shown: Footage, *, allow: bool
) -> list[Overlap]:
    """Compare the footage of an evaluation with what models, by their names, were trained on.

    Raises SettingsError if a model was trained on some of it, unless that is allowed.
    """
    overlaps = [Overlap.of(model, shown, trained_on) for model, trained_on in models.items()]
    for overlap in overlaps:
        if overlap.found and not allow:
            raise SettingsError(
                f"{overlap}: evaluate on other clips, or give '--allow-overlap', which has the "
                "results say so"
            )
    return overlaps
