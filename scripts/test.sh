#!/usr/bin/env bash
# Runs the tests in .venv, which it makes first where there is none. Arguments go to pytest: bash scripts/test.sh -k gru
# Without any all tests run; --sample 0.1 runs a tenth of the cases of large ones, another tenth for each commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

say "running the tests"
exec .venv/bin/python -m pytest "$@"
