"""Evaluation of multi-view models on sets of views: what company, cameras and pixels are worth.

held-out clips → encoded in several ways → location errors → tables and JSON
"""
