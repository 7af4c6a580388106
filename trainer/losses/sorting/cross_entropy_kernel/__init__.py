"""Triton kernel for the cross-entropy of two soft permutations and its gradients.

`launch` starts the kernel `rows`. It sorts a row's values (`values`), then takes states through the
bitonic network (`bitonic`, within registers `merges`) or the odd-even one (`odd_even`) and back.
`lane_sums` and `instructions` are below these.
"""
