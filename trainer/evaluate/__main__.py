"""`python -m trainer.evaluate EVALUATION ...`: judge one or several backbones side by side."""

from __future__ import annotations

from trainer.evaluate.command import app

if __name__ == "__main__":
    app(prog_name="python -m trainer.evaluate")
