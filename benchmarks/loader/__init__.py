"""Compare reading clips with other libraries: `python -m benchmarks.loader`.

Clips on disk → readers (`pretrack_readers`, `other_readers`) → decoded clips of one form (`clip`) →
CPU time relative to decoding alone (`comparison`). `pretrack_figures` measures pretrack alone.
"""
