"""List the videos of a dataset: a folder on disk → `Video`, and a `Failure` for what is unusable.

Each dataset is one file: a settings class whose `find_videos` lists it. Add its name to `Source`.
"""

from typing import Annotated

from pydantic import Field

from pipeline.sources.co3d import Co3d
from pipeline.sources.dl3dv import Dl3dv
from pipeline.sources.scenes import Scenes
from pipeline.sources.synthetic import Synthetic
from pipeline.sources.uco3d import Uco3d
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.youtube_vos import YoutubeVos

Source = Annotated[
    Co3d | Uco3d | Dl3dv | YoutubeVos | VideoFolder | Synthetic | Scenes,
    Field(discriminator="dataset"),
]
