"""What CoTracker3 and TAPIR share: finding weights, checked input, norms, and predicted tracks.

Both networks (`pipeline.cotracker3`, `pipeline.tapir`) work without a build. `pipeline.trackers`
makes them trackers of a build."""
