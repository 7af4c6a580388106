"""Write a small copy of uCO3D: the layout, tables and packed numbers of its own downloader."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np

from tests.helpers.panning import STEP, panning_frames, write_video

FOLDER = "tools/hammer/1-2-3"
WIDTH, HEIGHT, RATE = 160, 120, 25
FRAMES = 24
"""Frames of the video file."""
ANNOTATED = (0, 1, 3, 5, 6, 8, 10, 11, 13, 15, 16, 18)
"""The frames of the file that have annotations: unevenly spaced, as in uCO3D."""
FOCAL, PRINCIPAL = (2.5, 2.5), (0.25, -0.125)
"""In PyTorch3D's NDC: 150 pixels, and a centre that is 15 left of the middle and 7.5 below it."""
DISTANCE = 3.0
"""The content of the frames is a plane at this depth."""

_FRAMES = """
CREATE TABLE frame_annots (
    sequence_name VARCHAR NOT NULL, frame_number INTEGER NOT NULL, frame_timestamp FLOAT,
    _image_path VARCHAR NOT NULL, _image_size BLOB NOT NULL,
    _depth_path VARCHAR, _depth_scale_adjustment FLOAT, _depth_mask_path VARCHAR,
    _mask_path VARCHAR, _mask_mass FLOAT, _mask_bounding_box_xywh BLOB,
    _viewpoint_R BLOB, _viewpoint_T BLOB, _viewpoint_focal_length BLOB,
    _viewpoint_principal_point BLOB, _viewpoint_colmap_distortion_coeffs BLOB,
    _viewpoint_intrinsics_format VARCHAR,
    PRIMARY KEY (sequence_name, frame_number)
)"""
_SEQUENCES = """
CREATE TABLE sequence_annots (
    sequence_name VARCHAR NOT NULL, category VARCHAR, super_category VARCHAR,
    _video_path VARCHAR, _video_length FLOAT, _mask_video_path VARCHAR, _mask_video_length FLOAT,
    _depth_video_path VARCHAR, _depth_video_length FLOAT,
    _sparse_point_cloud_path VARCHAR, _sparse_point_cloud_n_points INTEGER,
    _point_cloud_path VARCHAR, _point_cloud_n_points INTEGER,
    _segmented_point_cloud_path VARCHAR, _segmented_point_cloud_n_points INTEGER,
    _gaussian_splats_dir VARCHAR, _gaussian_splats_n_gaussians INTEGER,
    _reconstruction_quality_viewpoint FLOAT, _reconstruction_quality_gaussian_splats FLOAT,
    _reconstruction_quality_gaussian_splats_psnr FLOAT,
    _reconstruction_quality_gaussian_splats_ssim FLOAT,
    _reconstruction_quality_gaussian_splats_lpips FLOAT,
    _reconstruction_quality_sfm_n_registered_cameras INTEGER,
    _reconstruction_quality_sfm_mean_track_length FLOAT,
    _reconstruction_quality_sfm_bundle_adjustment_final_cost FLOAT,
    _caption_text VARCHAR, _caption_clip_score FLOAT,
    _short_caption_text VARCHAR, _short_caption_clip_score FLOAT,
    _alignment_R BLOB, _alignment_T BLOB, _alignment_scale FLOAT NOT NULL,
    PRIMARY KEY (sequence_name)
)"""


def write_uco3d(root: Path) -> None:
    """Write a dataset of one sequence whose video is there, and one whose video is not.

    The first is a plane before which the camera moves sideways, so that its content moves by STEP
    per frame of the file. Its mask is a square that moves by 4 pixels per frame of the file.
    """
    write_video(root / FOLDER / "rgb_video.mp4", panning_frames(7, FRAMES, WIDTH, HEIGHT), RATE)
    write_masks(root / FOLDER / "mask_video.mkv")
    with closing(sqlite3.connect(root / "metadata.sqlite")) as metadata, metadata:
        metadata.execute(_FRAMES)
        metadata.execute(_SEQUENCES)
        insert_sequence(metadata, FOLDER, quality=0.75)
        for number, index in enumerate(ANNOTATED):
            insert_frame(metadata, FOLDER, number, index / RATE, T=camera_position(index))
        insert_sequence(metadata, "tools/saw/4-5-6", quality=0.25)
    (root / "set_lists").mkdir()
    path = root / "set_lists/set_lists_static-categories.sqlite"
    with closing(sqlite3.connect(path)) as lists, lists:
        lists.execute("CREATE TABLE set_lists (frame_number INT, sequence_name TEXT, subset TEXT)")
        rows = [(n, "1-2-3", "train") for n in range(len(ANNOTATED))] + [(0, "4-5-6", "val")]
        lists.executemany("INSERT INTO set_lists VALUES (?, ?, ?)", rows)


def camera_position(index: int) -> tuple[float, float, float]:
    """PyTorch3D's T of a frame of the file: to the left and up, for STEP pixels per frame."""
    dx, dy = (step * DISTANCE / (FOCAL[0] * HEIGHT / 2) for step in STEP)
    return -dx * index, -dy * index, DISTANCE


def insert_sequence(metadata: sqlite3.Connection, folder: str, **changes: Any) -> None:
    """Describe a sequence SUPER_CATEGORY/CATEGORY/NAME."""
    super_category, category, name = folder.split("/")
    row = {
        "sequence_name": name,
        "category": category,
        "super_category": super_category,
        "_video_path": f"{folder}/rgb_video.mp4",
        "_mask_video_path": f"{folder}/mask_video.mkv",
        "_depth_video_path": f"{folder}/depth_maps.h5",
        "_reconstruction_quality_viewpoint": changes.pop("quality", None),
        "_alignment_scale": 1.0,
        **changes,
    }
    _insert(metadata, "sequence_annots", row)


def insert_frame(
    metadata: sqlite3.Connection, folder: str, number: int, time: float | None, **changes: Any
) -> None:
    """Describe a frame; numbers are packed as uCO3D's own code packs them.

    `R` (nested tuples) and `T` are PyTorch3D's. Other changes are columns.
    """
    rotation = changes.pop("R", ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    row = {
        "sequence_name": folder.split("/")[-1],
        "frame_number": number,
        "frame_timestamp": time,
        "_image_path": f"{folder}/images/frame{number:06d}.jpg",
        "_image_size": struct.pack("ii", HEIGHT, WIDTH),
        "_depth_scale_adjustment": 1.5,
        "_viewpoint_R": struct.pack("9f", *np.ravel(rotation)),
        "_viewpoint_T": struct.pack("fff", *changes.pop("T", (0.0, 0.0, DISTANCE))),
        "_viewpoint_focal_length": struct.pack("ff", *FOCAL),
        "_viewpoint_principal_point": struct.pack("ff", *PRINCIPAL),
        "_viewpoint_colmap_distortion_coeffs": struct.pack("12f", *[0.0] * 12),
        "_viewpoint_intrinsics_format": "ndc_isotropic",
        **changes,
    }
    _insert(metadata, "frame_annots", row)


def write_masks(path: Path, frames: int = FRAMES, rate: int = RATE) -> None:
    """Write a grey video of a square that begins in column 20 + 4 * frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray"
        for index in range(frames):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[40:60, 20 + 4 * index : 40 + 4 * index] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(mask, format="gray")))
        container.mux(stream.encode())


def write_depths(path: Path, missing: tuple[int, ...] = ()) -> None:
    """Write depth maps of half the resolution, without those of the frames `missing`.

    That of frame n is 1 + n / 4 in its left half, and ten times that in its right half.
    """
    with h5py.File(path, "w") as file:
        for number in range(len(ANNOTATED)):
            if number not in missing:
                depth = np.full((HEIGHT // 2, WIDTH // 2), 1 + number / 4, np.float16)
                depth[:, WIDTH // 4 :] *= 10
                file.create_dataset(str(number + 1), data=depth, compression="gzip")


def _insert(metadata: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    metadata.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values())
    )
