"""What the settings of a build add to the fingerprint of its frames."""

from __future__ import annotations

from manifests.fingerprint import fingerprint
from pipeline.config import FrameSettings


def test_the_fingerprint_names_the_device_only_where_a_gpu_decodes() -> None:
    """Shards from before the setting existed are kept."""
    assert fingerprint(FrameSettings().of_content()) == "03558e35d205bb66058256293836df29"
    on_gpu = FrameSettings(device="cuda").of_content()
    assert on_gpu == {**FrameSettings().of_content(), "device": "cuda"}
