#!/usr/bin/env bash
# Runs the tests in .venv, which it makes first where there is none.
#
#   bash scripts/test.sh                 all of them, in a process for each core, at most 8; FRD_WORKERS=1 says otherwise
#   bash scripts/test.sh --sample 0.1    a tenth of the cases of tests that have many, another tenth for each commit
#   bash scripts/test.sh -k gru          arguments go to pytest, which then runs in one process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

if [[ $# -eq 0 ]]; then
  cores=$(nproc)
  workers=${FRD_WORKERS:-$((cores < 8 ? cores : 8))}
  say "running all tests in $workers processes: about 80 minutes of one core, shared among them"
  # One thread in each process: tests that are about threads ask for their own.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  exec .venv/bin/python -m pytest --numprocesses "$workers" --dist worksteal
fi

say "running the tests"
exec .venv/bin/python -m pytest "$@"
