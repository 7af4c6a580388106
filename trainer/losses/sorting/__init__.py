"""The sorting loss of 3DPoV: similarities → soft permutations or soft ranks → one loss per track.

`objective.py` is the entry point. Below it are `network.py`, `cross_entropy.py` (on CUDA
`cross_entropy_kernel/`) and `soft_rank.py` (on CUDA `soft_rank_kernel.py`).
"""
