"""Frames out of video files and image files, in processes that can be stopped."""
