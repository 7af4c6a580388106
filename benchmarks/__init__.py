"""Measurements of pretrack beside other libraries: `python -m benchmarks.NAME` prints a table.

Real clips, rendered scenes or synthetic tables → one process each → the tables of README.md.
"""
