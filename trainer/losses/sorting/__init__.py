"""The sorting loss of 3DPoV: similarities → soft permutations or soft ranks → one loss per track.

`objective.py` is the entry point. Below it are `cross_entropy.py` (on CUDA `triton_kernel.py`),
`network.py` and `soft_rank.py` (on CUDA `soft_rank_kernel.py`).
"""
