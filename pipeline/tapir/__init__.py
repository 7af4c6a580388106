"""TAPIR for inference: `weights.load_model`, then `tracking.track`.

Video → encoder (feature maps) → cost volume (first estimates) → mixer (refined tracks). Usable on
its own. Needs torch (`pip install 'pretrack[tapir]'`), but importing this package or `weights` does
not load it."""
