"""Check and time everything that runs on a GPU: `python -m benchmarks.gpu`."""
