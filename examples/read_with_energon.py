"""Read clips with Megatron-Energon, from a folder with a card.

Usage: python read_with_energon.py OUT
"""

from __future__ import annotations

import sys
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)


@stateless  # type: ignore[untyped-decorator]
def cook(sample: dict[str, Any]) -> dict[str, Any]:
    """Stack the frames of a clip: tensors [3, H, W] named 000.jpg, 001.jpg, …"""
    frames = [sample[name] for name in sorted(sample) if name.endswith(".jpg")]
    return {**basic_sample_keys(sample), "frames": frames, "tracks": sample["tracks.zst"]}


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Batch clips as lists: they differ in length."""

    cookers = (Cooker(cook),)

    def batch(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: [sample[name] for sample in samples] for name in samples[0]}


def main(out: str) -> None:
    dataset = get_train_dataset(
        out,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=4,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    batch = next(iter(get_loader(dataset)))
    for key, frames in zip(batch["__key__"], batch["frames"], strict=True):
        print(key, len(frames), tuple(frames[0].shape))


if __name__ == "__main__":
    main(sys.argv[1])
