"""Judges backbones: on held-out clips without labels, and on public benchmarks."""
