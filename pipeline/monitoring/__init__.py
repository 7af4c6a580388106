"""Report a build to people and programs: progress display, event log, metrics, `build.json`.

`pipeline.execution` reports the facts; `status` reads `build.json` and the snapshot back.
"""
