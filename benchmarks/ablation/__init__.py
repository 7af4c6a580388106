"""The ablation runner behind `python -m benchmarks.objectives`.

Data flows down: a YAML (`experiment`) → tasks (`plan`) → processes (`queue`, `task`) → scores per
sequence (`scoring`) → comparisons (`crossed`, `results`) → a page (`page`).
"""
