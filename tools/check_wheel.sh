#!/usr/bin/env bash
# Makes a wheel from an sdist, which must hold all that building reads, and checks its ABI: bash tools/check_wheel.sh
# The wheel stays in build/ci/wheel. PYTHON (default: python3) needs torch and the extra `dev`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(command -v "${PYTHON:-python3}")
folder=build/ci/wheel
rm -rf "$folder"
"$python" setup.py -q sdist -d "$folder/sdist"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$folder"/sdist/*.tar.gz
wheel=$(echo "$folder"/*.whl)
echo "$wheel"
[[ $wheel == *-cp310-abi3-* ]]
"$(dirname "$python")/abi3audit" --strict --summary "$wheel"

"$python" -m zipfile -e "$wheel" "$folder/unpacked"
# The stable ABI is C: a C++ symbol of torch would tie the library to the version it was built with.
if nm --dynamic --undefined-only --demangle "$folder"/unpacked/fused_rnn_dropout/_C*.so | grep -E '\b(at|c10|torch)::'; then
  echo "error: these symbols of torch are C++" >&2
  exit 1
fi
