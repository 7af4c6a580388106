"""Public benchmarks: SPair-71k, NAVI and PASCAL VOC.

Dataset on disk (`*_data.py`) → features → result per model → `run.py` compares and writes.
"""
