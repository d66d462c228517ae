#!/usr/bin/env bash
# One step of gpu.sh, which says what each does, and sets python, out, dry, workers and dtypes.
set -euo pipefail
trap 'exit 130' INT  # otherwise the next command would run when the present one has been ended

on_a_gpu() { [[ ! $dry ]] || echo "dry run; on a GPU this would be: $*"; }

pytest() {  # marks, arguments
  "$python" -m pytest -m "$1" "${@:2}"
}

tests() {  # record, marks, arguments. Dry: which tests these are, as none of them runs without a device
  if [[ $dry ]]; then
    on_a_gpu pytest -m "'$2'" "${@:3}"
    pytest "$2" "${@:3}" --collect-only -qq
  else
    # shellcheck disable=SC2046  # no argument where there are no workers, nor where each test needs the device for itself
    pytest "$2" "${@:3}" --junitxml="$out/$1.xml" $([[ $1 == large || $1 == persistent ]] || processes)
  fi
}

processes() {
  "$python" -c 'import xdist' 2>/dev/null || return 0
  local most=$(($(nproc) - 2))
  most=$((most < 1 ? 1 : most > 14 ? 14 : most))
  echo "-n${workers:-$most}"
}

build() {
  on_a_gpu "FRD_CUDA=1 $python setup.py build_ext --inplace"
  if [[ $dry ]] && compgen -G 'fused_rnn_dropout/_C.*so' >/dev/null; then
    echo "the library is there"
  elif [[ $dry ]]; then
    "$python" setup.py build_ext --inplace
  elif [[ ! ${FRD_PYTHON:-} ]]; then
    export FRD_EXTRAS=${FRD_EXTRAS:-bench,test,triton}
    source scripts/environment.sh
  elif [[ ! -e build/carry/manifest.json ]] || ! "$python" scripts/carried.py use; then
    "$python" setup.py build_ext --inplace
  fi
  if [[ ! $dry ]] && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "error: the torch of $python sees no CUDA device: it should be a CUDA build (without FRD_PYTHON: FRD_TORCH)" >&2
    return 1
  fi
}

doctor() {
  on_a_gpu nvidia-smi
  [[ $dry ]] || nvidia-smi
  "$python" -m fused_rnn_dropout doctor
}

correct() {
  local status=0
  tests correct "gpu and not gpu_large and not triton" || status=$?
  tests large gpu_large || status=$?
  if [[ $dry ]]; then
    pytest "not slow" tests/surface/test_known_bugs.py --junitxml="$out/correct.xml" || status=$?
  fi
  return $status
}

triton() {
  if [[ $dry ]]; then  # in Triton's interpreter, where these tests are not marked gpu
    tests triton triton
    pytest "not slow" tests/kernels/test_triton_backend.py -k words --junitxml="$out/triton.xml"
  else
    tests triton "gpu and triton"
  fi
}

persistent() {  # what is not right is not timed
  local files=(tests/kernels/test_exchange.py tests/kernels/test_persistent.py) dtypes=${dtypes// /,}
  tests persistent "gpu and not triton" "${files[@]}" -rP
  if [[ $dry ]]; then
    pytest "not gpu" "${files[0]}" -k takes_the_time -rP --junitxml="$out/persistent.xml"
  fi
  {
    printf 'A step of the exchange alone, one row, by form, words and blocks:\n\n'
    grep -E '^[a-z0-9]+ [a-z]+ [0-9]+ blocks: .* us a step$' "$out/persistent.log" | sed 's/^/- /' || echo "- it was not timed"
  } >"$out/exchange.md"
  if [[ $dry ]]; then
    on_a_gpu "python -m bench schedules --dtypes $dtypes"
    "$python" tests/host_run.py bench schedules --cells LSTM --dtypes "$dtypes" --hidden 8,16 --batch 2 --steps 4 --rounds 2 \
      --output "$out/schedules.json"
  else
    "$python" -m bench schedules --dtypes "$dtypes" --output "$out/schedules.json"
  fi
}

bench() {
  local status=0 dtype
  for dtype in $dtypes; do
    if [[ $dry ]]; then
      on_a_gpu "python -m bench --device cuda --dtype $dtype $*"
      "$python" -m bench --quick --rounds 2 --tasks train --contenders torch,all --no-memory --no-scaling \
        --dtype "$dtype" --output "$out/$dtype.json" || status=$?
    else
      "$python" -m bench --device cuda --dtype "$dtype" --output "$out/$dtype.json" "$@" || status=$?
    fi
  done
  return $status
}

"$@"
