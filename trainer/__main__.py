"""`python -m trainer CONFIG [key=value ...]`: train; under torchrun, one process per rank."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shards.standard_streams import accept_any_text
from trainer.cli import make_app

if TYPE_CHECKING:
    from trainer.config import TrainSettings


def main(arguments: list[str], kind: type[TrainSettings] | None = None) -> int:
    """Run the command and return its exit status.

    0; 1 after one sentence on what is wrong; 2 if the command line cannot be used; 130 after
    Ctrl-C; 143 after a stop by SIGTERM. `kind` may have more settings than pretrack's own
    (examples/custom_loss.py).
    """
    accept_any_text()  # its help, too, must print where the encoding is not UTF-8
    try:
        make_app(kind)(arguments, prog_name="python -m trainer")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
