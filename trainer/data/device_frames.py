"""Make the frames of a batch on the device, from crops or JPEGs (`data.resize: device`)."""

from __future__ import annotations

from typing import cast

import torch

from trainer.data.batch import Batch
from trainer.data.device_colour import change_many_colours
from trainer.data.device_decoding import decode_crops
from trainer.data.device_resize import resize_boxes
from trainer.data.settings import DataSettings


def make_frames(batch: Batch, settings: DataSettings) -> Batch:
    """Resize, flip and change the colours of a batch's crops; return it with frames instead.

    It runs on the device that has the crops, and on its current stream; nothing waits for the
    device. JPEGs are decoded to crops first, as by `decode_crops`, which waits. A batch that has
    frames is returned as it is.
    """
    batch = decode_crops(batch)
    if "crops" not in batch:
        return batch
    crops, boxes = batch["crops"], batch["boxes"]
    # Under autocast, products of matrices would have the precision of bfloat16.
    with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
        frames = resize_boxes(crops.flatten(0, 1), boxes.reshape(-1, 3), settings.size)
        clips = frames.view(*boxes.shape[:2], *frames.shape[1:])
        made = {"frames": clips}
        if settings.colour.student_only:
            made["teacher_frame"] = clips[:, 0].clone()
        if "colours" in batch:
            change_many_colours(frames, batch["colours"].reshape(len(frames), -1))
    used = ("crops", "boxes", "colours")
    return cast(Batch, made | {name: value for name, value in batch.items() if name not in used})
