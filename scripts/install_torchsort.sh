#!/bin/sh
# Build torchsort for the Python given as $1. It is published as source only and needs torch first.
# On a machine with nvcc but no GPU its CUDA build fails, so nvcc is hidden from it there. Without any
# compiler, torchsort is left out: the trainer's PyTorch path gives the same values more slowly.
set -u
python=$1
"$python" -c 'import torchsort' 2>/dev/null && exit 0

hidden=$(mktemp -d)
trap 'rm -rf "$hidden"' EXIT
path=$PATH
if command -v nvcc >/dev/null 2>&1 && ! nvidia-smi >/dev/null 2>&1; then
    # Link the tools that a build needs, because they often lie beside nvcc.
    for tool in gcc g++ cc c++ as ld ar nm ranlib strip ninja sh env uname git; do
        found=$(command -v "$tool") && ln -s "$found" "$hidden/$tool"
    done
    path=$hidden
    IFS=:
    # Keep every other folder of PATH that has no nvcc in it.
    for folder in $PATH; do
        [ -x "$folder/nvcc" ] || path=$path:$folder
    done
    unset IFS CUDA_HOME CUDA_PATH
fi
if ! PATH=$path "$python" -m pip install --no-build-isolation --constraint constraints.txt torchsort >"$hidden/log" 2>&1; then
    cat "$hidden/log" >&2
    echo 'torchsort could not be built (is there a C++ compiler?): the trainer will use its slower PyTorch path' >&2
fi
