"""Tell people and programs how a build stands: progress display, event log, metrics, `build.json`.

Facts come in from `pipeline.execution`; `status` reads `build.json` and the snapshot back out.
"""
