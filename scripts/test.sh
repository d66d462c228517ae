#!/usr/bin/env bash
# Runs the tests in .venv, which it makes first where there is none.
#
#   bash scripts/test.sh          every test; of the cases of one that has many a tenth, another tenth for each commit
#   bash scripts/test.sh --all    all cases: about 90 minutes of one core
#   bash scripts/test.sh -k gru   other arguments go to pytest, which then runs in one process
#
# The first two run in a process for each core, at most 8; FRD_WORKERS=1 says otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

case "$*" in
  "") part=(--sample 0.1) what="the tests, of large ones a tenth of the cases," ;;
  --all) part=() what="all tests" ;;
  *)
    say "running the tests"
    exec .venv/bin/python -m pytest "$@"
    ;;
esac
cores=$(nproc)
workers=${FRD_WORKERS:-$((cores < 8 ? cores : 8))}
say "running $what in $workers processes"
# One thread in each process: tests that are about threads ask for their own.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest "${part[@]}" --numprocesses "$workers" --dist worksteal
