# pretrack in a container, for a CPU or for NVIDIA GPUs:
#
#     docker build --target cpu -t pretrack:cpu .
#     docker build --target cuda -t pretrack:cuda .
#     docker run --gpus all --shm-size 16g -v /data:/data pretrack:cuda pretrack build /data/my.yaml
#
# The GPU's driver comes from the host, by the NVIDIA Container Toolkit; torch brings CUDA's libraries.
FROM python:3.11-slim-bookworm AS base

# g++ builds torchsort and the kernels of torch.compile; EGL renders scenes; FFmpeg is for torchcodec.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg g++ libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/pretrack
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY scripts/install_torchsort.sh scripts/
COPY shards shards
COPY manifests manifests
COPY pipeline pipeline
COPY trainer trainer
COPY configs configs

FROM base AS cpu
# Of two builds of one version, pip takes the one that names the CPU: it has no CUDA libraries.
RUN pip install --constraint constraints.txt setuptools wheel \
    && pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    '.[pipeline,tapir,train,scenes,synthetic,uco3d,hub,aws]' \
    && sh scripts/install_torchsort.sh python
RUN useradd --create-home --uid 1000 pretrack
USER 1000
WORKDIR /home/pretrack
CMD ["pretrack", "--help"]

FROM base AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video,graphics
RUN pip install --constraint constraints.txt setuptools wheel \
    && pip install --constraint constraints.txt \
    '.[pipeline,cotracker3,tapir,train,scenes,synthetic,uco3d,torchcodec,hub,aws]' \
    && sh scripts/install_torchsort.sh python
RUN useradd --create-home --uid 1000 pretrack
USER 1000
WORKDIR /home/pretrack
CMD ["pretrack", "--help"]
