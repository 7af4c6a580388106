"""The datasets that can be read. A new one is a file here with a settings class that finds its videos, and its name below."""

from typing import Annotated

from pydantic import Field

from pipeline.sources.co3d import Co3d
from pipeline.sources.dl3dv import Dl3dv
from pipeline.sources.synthetic import Synthetic
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.youtube_vos import YoutubeVos

Source = Annotated[
    Co3d | Dl3dv | YoutubeVos | VideoFolder | Synthetic, Field(discriminator="dataset")
]
