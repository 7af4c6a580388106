"""Train vision transformers on stored point tracks with 3DPoV's sorting loss, without a tracker.

`data/` (snapshot → batch) → `model/` (batch → embeddings) → `losses/`; `train.py` is the loop, and
`evaluate/` judges what it exports.
"""
