#!/bin/sh
# Builds torchsort for the Python given as $1. It comes as source alone and needs torch installed first.
# Where nvcc is found without a GPU its CUDA half does not build, so nvcc is hidden there. If there is no compiler at all the
# trainer goes on without it: its PyTorch path gives the same values, more slowly.
set -u
python=$1
"$python" -c 'import torchsort' 2>/dev/null && exit 0

hidden=$(mktemp -d)
trap 'rm -rf "$hidden"' EXIT
path=$PATH
if command -v nvcc >/dev/null 2>&1 && ! nvidia-smi >/dev/null 2>&1; then
    for tool in gcc g++ cc c++ as ld ar nm ranlib strip ninja sh env uname git; do
        found=$(command -v "$tool") && ln -s "$found" "$hidden/$tool"
    done
    path=$hidden
    IFS=:
    for folder in $PATH; do
        [ -x "$folder/nvcc" ] || path=$path:$folder
    done
    unset IFS CUDA_HOME CUDA_PATH
fi
if ! PATH=$path "$python" -m pip install --no-build-isolation --constraint constraints.txt torchsort >"$hidden/log" 2>&1; then
    cat "$hidden/log" >&2
    echo 'torchsort could not be built (is there a C++ compiler?): the trainer uses its PyTorch path instead' >&2
fi
