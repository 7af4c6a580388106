"""NAVI's pairs as sets of two views: what company and cameras are worth to a multi-view model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trainer.evaluate.benchmarks.navi import NaviResult, PairFeatures, evaluate_navi_pairs
from trainer.evaluate.benchmarks.settings import NaviSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import ShownCameras, grey_images, set_features
from trainer.evaluate.sets.encoding import Encoding

PAIRS = (
    Encoding("pairs", views="pairs"),
    Encoding("pairs, no cameras", views="pairs", cameras="none"),
    Encoding("pairs, wrong cameras", views="pairs", cameras="wrong"),
    Encoding("pairs, blank images", views="pairs", blank=True),
)
"""How the photographs of a pair are encoded together. The first is what a model is made for."""


def evaluate_as_pairs(
    model: EvaluatedModel, root: Path, settings: NaviSettings, final_norm: bool
) -> dict[str, NaviResult]:
    """Score a multi-view model on NAVI in each encoding, by its title.

    Cameras are those of the crops, in OpenCV's axes. A model without rays is given none.
    """
    without = (Encoding("pairs", views="pairs", cameras="none"),)
    encodings = PAIRS if model.uses_cameras else without
    return {
        encoding.title: evaluate_navi_pairs(
            pair_features(model, encoding, final_norm), model.patch, root, settings
        )
        for encoding in encodings
    }


def pair_features(model: EvaluatedModel, encoding: Encoding, final_norm: bool) -> PairFeatures:
    """Return an encoder of both photographs of a pair as one set, as an encoding says."""
    encode = set_features(model, final_norm)

    def features(images: Tensor, cameras: ShownCameras) -> Tensor:
        given = {"right": cameras, "wrong": cameras.exchanged(), "none": None}[encoding.cameras]
        return encode(grey_images(images, model) if encoding.blank else images, given)

    return features
