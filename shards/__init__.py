"""Define how clips are stored: types, track codec, JPEG, geometry, tar writer and readers, files.

A clip goes through `codec` and `jpeg` to `writer`, into one tar per shard, and back by `reader`.
"""
