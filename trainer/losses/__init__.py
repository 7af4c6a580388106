"""Losses on the tracks of a batch: one file per loss, their settings in `settings.py`.

`Embeddings` (embeddings.py) go into every loss; `weighted_sum.py` adds the losses up to one scalar.
"""
