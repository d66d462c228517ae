#!/usr/bin/env bash
# Runs, on a machine with an NVIDIA GPU, all that cannot run elsewhere, and writes one report of it.
#
#   bash scripts/gpu.sh [ARGUMENT ...]     arguments go to the bench: --quick for a first try, --shapes awd,wide
#
# Makes .venv as test.sh does, with the GPU's kernels in it; runs the tests that are marked gpu; measures with
# `python -m bench --device cuda` in each of FRD_GPU_DTYPES (default: "float32 bfloat16"); writes gpu-report.md and
# gpu-report.json here, and logs to build/gpu. What fails is in the report, in full, and the rest goes on; the exit status
# is 0 only if nothing failed. Needs a CUDA build of torch (environment.sh: FRD_TORCH) and an nvcc of its major version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
  echo "error: there is no NVIDIA GPU here: nvidia-smi is missing or lists none. bash scripts/test.sh runs the rest" >&2
  exit 1
fi

export FRD_CUDA=1 FRD_EXTRAS=${FRD_EXTRAS:-demo,test,triton} PYTHONUNBUFFERED=1
source scripts/environment.sh
.venv/bin/python -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
  fail "torch $(torch_version) in .venv sees no CUDA device: remove .venv, and name a CUDA build with FRD_TORCH"

folder=build/gpu
rm -rf "$folder"
mkdir -p "$folder"
report=(.venv/bin/python -m bench gpu-report --tests "$folder/tests.xml" --output gpu-report.md)

step() {  # name, log, command: shows and keeps what it says; a failure is for the report
  local name=$1 log=$folder/$2
  say "$name"
  "${@:3}" 2>&1 | tee "$log" || report+=(--failed "$name" "$log")
}

step "tests marked gpu" tests.log .venv/bin/python -m pytest -m gpu --junitxml="$folder/tests.xml"
for dtype in ${FRD_GPU_DTYPES:-float32 bfloat16}; do
  step "measurements in $dtype" "$dtype.log" .venv/bin/python -m bench --device cuda --compiled \
    --dtype "$dtype" --output "$folder/$dtype.json" "$@"
  report+=(--results "$folder/$dtype.json")
done

say "writing gpu-report.md"
exec "${report[@]}"
