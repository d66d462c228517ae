#!/usr/bin/env bash
# ThreadSanitizer on CUDA kernels that the host shim runs: silent on right ones, and not on planted races.
#
#   bash tools/check_races.sh [PROGRAM.cu ...]     default: tests/cuda/races_*.cu
#
# A program is one source file with the cases that tests/cuda/races.h describes; it includes the kernels that it runs.
# Each is built with g++ and with clang++: no compiler may report a race in a right case, and at least one must report
# one in every racy case. Needs
#   g++, clang++   with C++20 and the runtime of -fsanitize=thread (Debian, Ubuntu: clang-19 libclang-rt-19-dev; with
#                  llvm-19 clang's reports have names). FRD_GXX and FRD_CLANGXX name others than the newest found.
#   setarch        of util-linux: ThreadSanitizer fails under random addresses on newer kernels.
# What is missing is an error: nothing is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

newest() {  # of a command and its versions: newest clang++ -> clang++-19
  local found
  found=$(compgen -c "$1" | grep -xE "${1//+/\\+}(-[0-9]+)?" | sort -uVr | head -n 1 || true)
  echo "${found:-$1}"
}

gxx=${FRD_GXX:-$(newest g++)}
clangxx=${FRD_CLANGXX:-$(newest clang++)}
flags=(-x c++ -DFRD_CUDA_ON_HOST -std=c++20 -O1 -g1 -fno-omit-frame-pointer -fsanitize=thread -Wall -Wextra
       -Wno-unknown-pragmas -Icsrc -Itests/cuda)
folder=build/races
mkdir -p "$folder"

setarch -R true 2>/dev/null || fail "'setarch -R' is missing (package util-linux) or not permitted here"
for compiler in "$gxx" "$clangxx"; do
  command -v "$compiler" >/dev/null || fail "no $compiler: both g++ and clang++ are needed"
  log=$(echo 'int main() {}' | "$compiler" "${flags[@]}" -o "$folder/probe" - 2>&1) ||
    fail "$compiler cannot build with -fsanitize=thread (for clang, the package libclang-rt-NN-dev): $log"
  setarch -R "$folder/probe" || fail "a program that $compiler built with -fsanitize=thread does not run"
done

programs=("$@")
((${#programs[@]})) || programs=(tests/cuda/races_*.cu)
failures=0
wrong() { printf 'WRONG  %s\n' "$*"; failures=$((failures + 1)); }

run_case() {  # binary, case, log -> silent, race or failed
  local status=0
  TSAN_OPTIONS="exitcode=66" timeout 300 setarch -R "$1" "$2" >"$3" 2>&1 || status=$?
  if grep -q 'WARNING: ThreadSanitizer: data race' "$3"; then
    echo race
  elif ((status)); then
    echo failed
  else
    echo silent
  fi
}

for program in "${programs[@]}"; do
  name=$(basename "$program" .cu)
  for compiler in "$gxx" "$clangxx"; do
    "$compiler" "${flags[@]}" "$program" -o "$folder/$name.$compiler"
  done
  printf '\n%s, with %s and %s\n' "$program" "$gxx" "$clangxx"
  while read -r line; do
    case=${line% *} kind=${line##* }
    results=()
    for compiler in "$gxx" "$clangxx"; do
      results+=("$(run_case "$folder/$name.$compiler" "$case" "$folder/$name.$compiler.${case//[^a-z0-9]/_}.log")")
    done
    printf '%-6s %-7s %-7s %s\n' "$kind" "${results[@]}" "$case"
    for result in "${results[@]}"; do
      if [[ $result == failed || ($kind == right && $result != silent) ]]; then
        wrong "$case: see $folder/$name.*.${case//[^a-z0-9]/_}.log"
        break
      fi
    done
    if [[ $kind == racy && " ${results[*]} " != *" race "* ]]; then wrong "$case: no compiler's build reports it"; fi
  done < <("$folder/$name.$gxx")
done

((failures == 0)) || { printf '\n%d wrong\n' "$failures"; exit 1; }
printf '\nall as they should be\n'
