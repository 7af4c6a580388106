"""Trains vision transformers on stored point tracks with the sorting loss of 3DPoV, without a tracker in the loop."""
