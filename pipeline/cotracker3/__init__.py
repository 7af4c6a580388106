"""CoTracker3 for inference, usable on its own: `weights.load_model`, then `tracking.track`. Needs torch
(`pip install 'pretrack[cotracker3]'`); importing this package, or `weights`, does not load it."""
