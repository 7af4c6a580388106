"""Decide what a build has to do: compare the clips that should exist with the shards that do.

Sources → `catalog` → `clip_windows` → `assignment` → `plan`, with `existing_shards` read back.
"""
