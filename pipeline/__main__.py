"""`python -m pipeline` is `pretrack`."""

from pipeline.cli import app

if __name__ == "__main__":
    app(prog_name="pretrack")
