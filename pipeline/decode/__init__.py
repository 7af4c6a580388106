"""Decode video files and image files to frames, in child processes that can be killed.

`subprocess_decoder` (parent) → `messages` → `worker` (child) → `video`, `images`, `gpu` → frames.
"""
