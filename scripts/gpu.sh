#!/usr/bin/env bash
# Runs, on a machine with an NVIDIA GPU, all that cannot run elsewhere, and writes one report of it.
#
#   bash scripts/gpu.sh [STEP ...] [-- ARGUMENT ...]     arguments go to the bench: --quick for a first try
#
# Steps, in this order, all of them unless some are named:
#   doctor    the device, and what can run on it
#   correct   tests marked gpu, but Triton's; those of gigabytes after the others, one at a time
#   triton    Triton's tests marked gpu, which compile kernels for minutes
#   bench     `python -m bench --device cuda` in each of FRD_GPU_DTYPES (default: "float32 bfloat16")
#
#   FRD_PYTHON   an interpreter that is used as it is, with torch and pytest in it: nothing is fetched from an index, so
#                that it works without a network. Unset, .venv is made as test.sh makes it, with FRD_TORCH.
#   FRD_OUT      the one folder that all output goes to (default: build/gpu); report.md and report.json are the report
#   FRD_LIMIT    seconds that a step may take (default: 570)
#   FRD_WORKERS  processes of pytest, where pytest-xdist is there (default: 8)
#
# A step that fails, or takes longer, is in the report as plainly as the others, and the rest goes on; the exit status is
# 0 only if nothing failed. Needs a CUDA build of torch and an nvcc of its major version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=(doctor correct triton bench) steps=()
while (($#)) && [[ $1 != -- ]]; do
  if [[ " ${all[*]} " != *" $1 "* ]]; then
    echo "error: there is no step $1; steps are ${all[*]}, and arguments of the bench come after --" >&2
    exit 2
  fi
  steps+=("$1")
  shift
done
(($#)) && shift
((${#steps[@]})) || steps=("${all[@]}")

gpus=$(nvidia-smi -L 2>/dev/null) || gpus=
if [[ $gpus != *"GPU "* ]]; then
  echo "error: there is no NVIDIA GPU here: nvidia-smi is missing or lists none. bash scripts/test.sh runs the rest" >&2
  exit 1
fi

export FRD_CUDA=1 PYTHONUNBUFFERED=1 out=${FRD_OUT:-build/gpu}
rm -rf "$out"/{report.md,report.json,*.log,*.xml,float*.json,bfloat16.json}
mkdir -p "$out"
if [[ -n ${FRD_PYTHON:-} ]]; then
  export python=$FRD_PYTHON
  "$python" -m pip install --no-index --no-build-isolation --no-deps -e . 2>&1 | tee "$out/install.log"
else
  export FRD_EXTRAS=${FRD_EXTRAS:-bench,test,triton}
  source scripts/environment.sh
  export python=.venv/bin/python
fi
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
  echo "error: the torch of $python sees no CUDA device: it should be a CUDA build (without FRD_PYTHON: FRD_TORCH)" >&2
  exit 1
}

tests() {  # record, marks, arguments
  "$python" -m pytest -m "$2" --junitxml="$out/$1.xml" "${@:3}"
}

workers() { "$python" -c 'import xdist' 2>/dev/null && echo "-n${FRD_WORKERS:-8}" || true; }

do_doctor() { nvidia-smi && "$python" -m fused_rnn_dropout doctor; }

do_correct() {
  local status=0
  # shellcheck disable=SC2046  # no argument where there are no workers
  tests correct "gpu and not gpu_large" --ignore-glob='tests/test_triton_*' $(workers) || status=$?
  tests large gpu_large --ignore-glob='tests/test_triton_*' || status=$?
  return $status
}

# shellcheck disable=SC2046
do_triton() { tests triton gpu tests/test_triton_*.py $(workers); }

do_bench() {
  local status=0 dtype
  for dtype in ${FRD_GPU_DTYPES:-float32 bfloat16}; do
    "$python" -m bench --device cuda --dtype "$dtype" --output "$out/$dtype.json" "$@" || status=$?
  done
  return $status
}
export -f tests workers do_doctor do_correct do_triton do_bench

report=("$python" -m bench gpu-report --output "$out/report.md")
for name in "${steps[@]}"; do
  printf '\n==> %s\n' "$name"
  status=0 before=$SECONDS
  timeout --kill-after=10 "${FRD_LIMIT:-570}" bash -c 'do_'"$name"' "$@"' "$name" "$@" 2>&1 | tee "$out/$name.log" || status=$?
  report+=(--step "$name" "$status" "$((SECONDS - before))" "$out/$name.log")
  case $name in
    correct) report+=(--tests "$out/correct.xml" --tests "$out/large.xml") ;;
    triton) report+=(--tests "$out/triton.xml") ;;
    bench) for dtype in ${FRD_GPU_DTYPES:-float32 bfloat16}; do report+=(--results "$out/$dtype.json"); done ;;
  esac
done

printf '\n==> writing %s\n' "$out/report.md"
exec "${report[@]}"
