"""`python -m trainer CONFIG [key=value ...]`: trains. Under torchrun the same, over its ranks."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from manifests.settings import load_settings
from shards.errors import PretrackError, describe_os_error
from trainer.config import TrainSettings

USAGE = """usage: python -m trainer CONFIG [key=value ...]

CONFIG is a YAML file such as configs/train/demo.yaml; trainer/config.py explains every key."""


def main(arguments: list[str], kind: type[TrainSettings] = TrainSettings) -> int:
    """Runs a training; 0, 1 after printing in one sentence what is wrong, or 143 if it was asked to stop (SIGTERM) and did.

    `kind` may know more settings than pretrack's own (examples/custom_loss.py).
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stdout
    )
    logging.getLogger("trainer.data.loader").setLevel(
        logging.INFO if first else logging.WARNING
    )  # each rank leaves out clips of its own
    try:
        settings = load_settings(kind, Path(arguments[0]), arguments[1:])
        from trainer.train import (  # torch and timm take seconds to import; a wrong key should not
            Stopped,
            train,
        )

        try:
            weights = train(settings)
        except Stopped as stopped:
            logging.getLogger(__name__).info("%s", stopped)
            return 128 + signal.SIGTERM
    except PretrackError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"trainer: {describe_os_error(error)}", file=sys.stderr)
        return 1
    if first:
        print(f"trained weights: {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
