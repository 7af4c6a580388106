"""Trackers behind one interface: frames as stored, with query points → tracks of each clip.

`protocol.Tracker` is the interface; the settings of each tracker load it. `network_tracker` runs a
network on batches of clips, on a GPU where there is one."""
