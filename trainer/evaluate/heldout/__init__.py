"""Evaluation without labels: do features follow the tracked points of held-out clips?

Snapshot → clips → scores (measures per point) → breakdown by bins → report and pictures.
"""
