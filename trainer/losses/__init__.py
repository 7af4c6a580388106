"""Losses on the tracks of a batch, one a file: the sorting loss (`trainer.losses.sorting.objective`) and what may be added to it."""
