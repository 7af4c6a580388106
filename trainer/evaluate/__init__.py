"""Judge backbones, on held-out clips without labels and on public benchmarks.

Models → features → scores → differences with intervals → tables, JSON and pictures.
"""
