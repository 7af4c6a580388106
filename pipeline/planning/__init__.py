"""Decide what a build has to do: compare the clips that should exist with the shards that do.

Sources → `catalog` (from `source_listing` and `file_scans`) → `clip_windows` → `assignment` →
`plan`, with `existing_shards` read back.
"""
