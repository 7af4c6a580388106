"""Preprocess video datasets to shards of frames and point tracks; the `pretrack` command.

The data flows: `sources` → `planning` → `decode` → `trackers` → `execution`; `inspection` reads.
"""
