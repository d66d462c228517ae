#!/usr/bin/env bash
# Builds the CPU's library with the sanitizers of addresses and of undefined behaviour, and runs the tests of its kernels
# on it: bash tools/check_sanitizers.sh [ARGUMENT of pytest ...]. PYTHON (default: python3) needs torch and pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(command -v "${PYTHON:-python3}")
[[ $python == /* ]] || python=$PWD/$python
FRD_EXTRA_CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
  "$python" setup.py -q build --build-base build/sanitized

sanitized=$(echo "$PWD"/build/sanitized/lib.*)
with_sanitizers=(
  env PYTHONPATH="$sanitized" OMP_NUM_THREADS=2
  # Python itself is not instrumented: the runtime must come first, and what Python never frees is no leak of ours.
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
)
# `python -c` and `python -m pytest` would import from the working folder first, and so the library in the checkout.
loaded=$(cd build && "${with_sanitizers[@]}" "$python" -c 'import fused_rnn_dropout._C as c; print(c.__file__)')
[[ $loaded == "$sanitized"/* ]]
# pytest must leave stderr alone: a report that it had captured would be lost when the sanitizer ends the process.
"${with_sanitizers[@]}" "$(dirname "$python")/pytest" -q --capture=sys -m "not slow and not cuda and not triton" "$@" \
  tests/kernels/test_{sites,sizes,packed,zeros,gradients,kept,ends_of_rates,dtypes,cpu_only,geometry,operators}.py \
  tests/masks/test_counters.py tests/surface/test_known_bugs.py
