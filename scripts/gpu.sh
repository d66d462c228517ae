#!/usr/bin/env bash
# Runs, on a machine with an NVIDIA GPU, all that cannot run elsewhere, and writes one report of it.
#
#   bash scripts/gpu.sh [--dry-run] [STEP ...] [-- ARGUMENT ...]   arguments go to the bench: --quick for a first try
#   bash scripts/gpu.sh --carry [ARCHITECTURES]                    builds here what a machine without nvcc needs
#
#   --dry-run    without a GPU: every step with the CPU in its place and a small part of its work, from the libraries that
#                are there. Each step says what it would run on a GPU
#   --carry      builds both libraries for the compute capabilities given (default: 9.0) and leaves them in build/carry; it
#                needs no GPU. Where that folder is brought along and fits, it is used instead of a build
#
# Steps, in this order, all of them unless some are named:
#   build     the libraries beside the package; it always runs, and where it fails the others do not
#   doctor    the device, and what can run on it
#   correct   tests marked gpu, but Triton's; those of gigabytes after the others, one at a time
#   triton    Triton's tests marked gpu, which compile kernels for minutes
#   persistent  the persistent schedule's tests and how long a word takes from block to block; where they pass, every
#             schedule side by side, and the table of their times, for FRD_SCHEDULE_TABLE
#   bench     `python -m bench --device cuda` in each of FRD_GPU_DTYPES (default: "float32 bfloat16")
#
#   FRD_PYTHON   an interpreter that is used as it is, with a CUDA build of torch, and pytest: nothing is installed into it
#                or fetched from an index, so that it works without a network. Unset, .venv is made as test.sh makes it
#   FRD_OUT      the one folder that all output goes to (default: build/gpu); report.md and report.json are the report
#   FRD_LIMIT    seconds that a step may take (default: 570), but three times as many where the build makes .venv
#   FRD_WORKERS  processes of pytest, where pytest-xdist is there (default: two less than processors, from 1 to 14)
#   FRD_CUDA     0 leaves the CUDA library out of the build, for Triton's tests alone (default: 1)
#
# A step that fails, or takes longer, is in the report as plainly as the others, and the rest goes on. Ctrl-C ends the step
# that runs and leaves the rest out; the report says so. Exit status: 0 nothing failed, 1 something did, 2 nothing was
# run, 130 Ctrl-C. Needs an nvcc of the CUDA that torch is built for.
set -euo pipefail

refuse() { echo "error: $*" >&2; exit 2; }

# --------------------------------------------------------------------------------------------------------------------
# What was asked for
# --------------------------------------------------------------------------------------------------------------------

all=(build doctor correct triton persistent bench) steps=(build)
export dry=
carry=
case ${1:-} in
  --dry-run) dry=1; shift ;;
  --carry) carry=${2:-9.0}; (($# <= 2)) || refuse "--carry takes one argument: \"8.0;9.0\"" ;;
esac
while [[ ! $carry ]] && (($#)) && [[ $1 != -- ]]; do
  [[ " ${all[*]} " == *" $1 "* ]] || refuse "there is no step $1; steps are ${all[*]}, and arguments of the bench come after --"
  [[ $1 == build ]] || steps+=("$1")
  named=1
  shift
done
[[ ${named:-} ]] || steps=("${all[@]}")
[[ ${1:-} != -- ]] || shift

export limit=${FRD_LIMIT:-570} workers=${FRD_WORKERS:-} dtypes=${FRD_GPU_DTYPES:-float32$([[ $dry ]] || echo ' bfloat16')}
[[ $limit =~ ^[1-9][0-9]*$ ]] || refuse "FRD_LIMIT should be a number of seconds, got $limit"
[[ $workers =~ ^([1-9][0-9]*)?$ ]] || refuse "FRD_WORKERS should be a number of processes, got $workers"
for dtype in $dtypes; do
  [[ $dtype =~ ^(float32|bfloat16|float16)$ ]] || refuse "FRD_GPU_DTYPES should be of float32, bfloat16, float16, got $dtype"
done

# Relative paths are those of whoever calls. Links are left: an interpreter's link is what makes it an environment's.
export python= out=
if [[ ${FRD_PYTHON:-} ]]; then
  python=$(command -v -- "$FRD_PYTHON") || refuse "FRD_PYTHON: there is no $FRD_PYTHON"
  python=$(realpath -s -- "$python")
fi
[[ ! ${FRD_OUT:-} ]] || out=$(realpath -m -- "$FRD_OUT")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-$PWD/build/gpu}
if [[ ! $python ]]; then
  python=$PWD/.venv/bin/python
  [[ ! $dry$carry || -x $python ]] || refuse "there is no .venv: bash scripts/test.sh makes it, FRD_PYTHON names another interpreter"
fi

[[ ! $carry ]] || exec "$python" scripts/carried.py pack --architectures "$carry"

if [[ ! $dry && $(timeout 30 nvidia-smi -L 2>/dev/null) != *"GPU "* ]]; then
  refuse "there is no NVIDIA GPU here: nvidia-smi is missing or lists none. bash scripts/test.sh runs the rest, --dry-run tries this"
fi

# What an earlier call left goes, by name: there may be more in that folder.
mkdir -p -- "$out" 2>/dev/null || refuse "FRD_OUT: $out cannot be made a folder"
{ rm -f "$out"/{report.{md,json},{build,doctor,correct,triton,persistent,bench}.log,{correct,large,triton,persistent}.xml} \
  "$out"/{{float32,bfloat16,float16}.json,exchange.md,schedules.{md,json}} &&
  : >"$out/report.md"; } 2>/dev/null || refuse "FRD_OUT: $out cannot be written to"

export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [[ $dry ]]; then
  export FRD_CUDA=0 CUDA_VISIBLE_DEVICES= PIP_NO_INDEX=1
else
  export FRD_CUDA=${FRD_CUDA:-1}
fi

# --------------------------------------------------------------------------------------------------------------------
# One step after the other
# --------------------------------------------------------------------------------------------------------------------

job= stopped= failed=

stop() {  # a second signal does not wait until the step has written what it found
  if [[ $job ]]; then
    if [[ $stopped ]]; then kill -KILL -- "-$job"; else kill -INT "$job"; fi
  fi
  stopped=$1
}
trap 'stop 2' INT
trap 'stop 15' TERM
trap 'stop 1' HUP

run() {  # name, seconds, arguments; sets status. The output goes to the step's log, and here from there
  local log=$out/$1.log viewer
  : >"$log"
  # In a process group of its own, which a signal reaches as a whole. SIGINT, so that pytest and the bench write what they
  # found; they have up to half a minute for it. A pipe would be open for as long as any process that a step leaves behind.
  set -m
  timeout --signal=INT --kill-after=$((limit < 30 ? limit : 30)) "$2" bash scripts/gpu_step.sh "$1" "${@:3}" >"$log" 2>&1 </dev/null &
  job=$!
  set +m
  tail -n +1 -f -s 0.2 --pid="$job" "$log" &
  viewer=$!
  status=0
  wait "$job" || status=$?
  while kill -0 "$job" 2>/dev/null; do  # a signal ended the waiting, not the step
    status=0
    wait "$job" || status=$?
  done
  kill -KILL -- "-$job" 2>/dev/null || true  # what it left behind
  job=
  wait "$viewer" || true
}

write_report() {  # after each step, so that it is there whatever ends this machine
  local name with=$python rest=("${steps[@]:done}")
  [[ -x $with ]] || with=python3  # no .venv was made; the report needs nothing but Python
  (trap '' INT TERM HUP; exec "$with" -m bench.gpu_report --output "$out/report.md" ${dry:+--dry-run} "${report[@]}" "${rest[@]/#/--not-run=}")
}

report=() done=0
for name in "${steps[@]}"; do
  [[ ! $stopped ]] && [[ $failed != build ]] || break
  printf '\n==> %s\n' "$name"
  before=$SECONDS within=$limit
  [[ $name != build || ${FRD_PYTHON:-} || $dry ]] || within=$((3 * limit))
  run "$name" "$within" "$@"
  took=$((SECONDS - before))
  ((status != 137 || took < within)) || status=124  # it had to be killed after its time
  [[ ! $stopped ]] || status=130
  ((status == 0)) || failed=$name
  ((++done))
  report+=(--step "$name" "$status" "$took" "$out/$name.log")
  case $name$dry in
    correct) report+=(--tests "$out/correct.xml" --tests "$out/large.xml") ;;
    correct1) report+=(--tests "$out/correct.xml") ;;
    triton*) report+=(--tests "$out/triton.xml") ;;
    persistent*) report+=(--tests "$out/persistent.xml" --page "$out/exchange.md" --page "$out/schedules.md") ;;
    bench*) for dtype in $dtypes; do report+=(--results "$out/$dtype.json"); done ;;
  esac
  write_report >/dev/null || true
done

printf '\n==> report\n'
status=0
write_report || status=$?
[[ ! $stopped ]] || exit $((128 + stopped))
exit "$status"
