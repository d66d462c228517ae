#!/usr/bin/env bash
# Runs the demonstration in .venv, which it makes first where there is none. Arguments go on: bash scripts/demo.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

say "running the demonstration"
exec .venv/bin/python -m examples.language_model "$@"
