"""The `pretrack` command line: options → `planning`, `execution`, `inspection` or `trainer` → text.
Heavy imports wait until a command runs, so that `--help` answers at once."""

from pipeline.cli.program import app

__all__ = ["app"]
