#!/usr/bin/env bash
# The environments of a release, 12 GB: .venv with the oldest torch, which is one for CUDA 12, and all that
# `python -m tools.release` needs of pip; build/newest with the newest, which is one for CUDA 13, to use the wheel with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OLDEST=2.10.0 NEWEST=2.14.1
extra='import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"], sep="\n")'

python3 -m venv .venv
.venv/bin/pip install --quiet "torch==$OLDEST" numpy --requirement <(.venv/bin/python -c "$extra")
python3 -m venv build/newest
build/newest/bin/pip install --quiet "torch==$NEWEST" numpy
