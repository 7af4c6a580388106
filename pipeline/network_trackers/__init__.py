"""What trackers that are networks share: finding weights, GPUs, batches of clips, checked input.

Below it lies the interface of all trackers (`pipeline.trackers.protocol`); above it the networks
(`pipeline.cotracker3`, `pipeline.tapir`) and their settings in `pipeline.trackers`."""
