"""CoTracker3 for inference: `weights.load_model`, then `tracking.track`.

Video → encoder (feature maps) → model with its transformer (track estimates) → tracking (tracks).
Usable on its own. Needs torch (`pip install 'pretrack[cotracker3]'`), but importing this package or
`weights` does not load it."""
