#!/usr/bin/env bash
# Compiles csrc/cuda under CUDA 12: clang++ with pip's headers, libdevice and ptxas of that version, which have no nvcc.
#
#   bash tools/check_cuda12.sh
#
# Every .cu is compiled to machine code for sm_80 and parsed for the host, every .cpp parsed. It says that sources, and
# the kernels' PTX, keep to what CUDA 12 has; a library for CUDA 12 is built with its nvcc. Needs clang++ of 19 or later
# (FRD_CLANGXX names another than clang++-19) and pip (PYTHON, default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clangxx=${FRD_CLANGXX:-clang++-19}
version=12.8
command -v "$clangxx" >/dev/null || { echo "error: no $clangxx (Debian, Ubuntu: package clang-19)" >&2; exit 2; }

folder=build/cuda12
toolkit=$folder/toolkit-$version
if [[ ! -d $toolkit ]]; then
  rm -rf "$folder"
  "${PYTHON:-python3}" -m pip install --quiet --no-deps --target "$folder/packages" \
    nvidia-cuda-{nvcc,runtime,cccl}-cu12=="$version.*" nvidia-curand-cu12  # curand: clang includes its headers
  mkdir -p "$folder/partial"
  for package in cuda_nvcc cuda_runtime cuda_cccl curand; do
    cp -r "$folder/packages/nvidia/$package/." "$folder/partial"
  done
  mv "$folder/partial" "$toolkit"
fi

flags=(-std=c++20 -O3 -Icsrc -Wall -Wextra -Werror -Wno-unknown-cuda-version)
cuda=(-x cuda --cuda-path="$toolkit" --cuda-gpu-arch=sm_80 "${flags[@]}")
check() {
  echo "$1"
  case $1 in
  *.cu)
    "$clangxx" "${cuda[@]}" --cuda-device-only -c "$1" -o "$folder/$(basename "$1" .cu).cubin" &&
      "$clangxx" "${cuda[@]}" --cuda-host-only -fsyntax-only "$1"
    ;;
  *) "$clangxx" "${flags[@]}" -isystem "$toolkit/include" -fsyntax-only "$1" ;;
  esac
}
sources=(csrc/cuda/*.cu csrc/cuda/schedules/*.cpp)
for source in "${sources[@]}"; do
  check "$source"
done
echo "${#sources[@]} sources compile under CUDA $version"
