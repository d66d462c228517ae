"""Plants faults in the GPU's kernels and schedules, one at a time, and checks that their tests catch each of them.

    python tools/mutate_cuda.py [--list] [--only NAME ...]

The sources are copied once; for each fault one file is changed, what depends on it is compiled for the host shim, and
the tests are run until the first one fails. The unchanged sources go first and must pass. Exits with 1 if a fault goes
unnoticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutate import ROOT, Fault

TESTS = ("tests/test_cuda_kernels.py", "tests/test_cudnn.py", "tests/test_cudnn_choice.py")

FAULTS = (
    Fault("backward takes the masks of another step", "csrc/cuda/lstm_backward.cu",
          "drops_of(p.masks, b, u + i, p.step.t, bits.at[i])", "drops_of(p.masks, b, u + i, p.step.t + 1, bits.at[i])"),
    Fault("GRU backward takes the masks of another step", "csrc/cuda/gru_backward.cu",
          "drops_of(p.masks, b, u + i, p.step.t, bits.at[i])", "drops_of(p.masks, b, u + i, p.step.t + 1, bits.at[i])"),
    Fault("every unit of a thread takes the masks of the first", "csrc/cuda/lstm_forward.cu",
          "drops_of(p.masks, b, u + i,", "drops_of(p.masks, b, u,"),
    Fault("a projected unit takes the mask of its neighbour", "csrc/cuda/lstm_projection.cu",
          "drops_of(p.masks, b, u + i,", "drops_of(p.masks, b, u + i + 1,"),
    Fault("zoneout left out in backward with a projection", "csrc/cuda/lstm_projection_backward.cu",
          "if (sites.zone_h.on) keep.at[i]", "if (false) keep.at[i]"),
    Fault("barrier left out of the sums of columns", "csrc/cuda/column_sums.cu", "    __syncthreads();", "   "),
    Fault("sums of columns over the first rows only", "csrc/cuda/column_sums.cu",
          "begin + rows_of_a_block < rows ?", "true ?"),
    Fault("barrier left out of dropout", "csrc/cuda/drop_rows.cu", "  __syncthreads();", " "),
    Fault("dropout ignores step_offset", "csrc/cuda/drop_rows.cu", "p.step_offset + static_cast<uint32_t>(head.t)",
          "static_cast<uint32_t>(head.t)"),
    Fault("a locked mask is that of its first steps' last quad", "csrc/cuda/drop_rows.cu", "(column + quad) / 4",
          "column / 4"),
    Fault("hidden mask left out on the way to h_0", "csrc/cuda/leave.cu",
          "hidden_of(p.masks, bits, widen<S>(p.through[at]))", "widen<S>(p.through[at])"),
    Fault("dead units enter alive", "csrc/cuda/lstm_forward.cu",
          "if (enters) c.at[i] = enter_of", "if (false) c.at[i] = enter_of"),
    Fault("hidden mask of each example where the batch shares one", "csrc/cuda/sequence_masks.cu",
          "(p.flags & FLAG_HIDDEN_BATCH_SHARED) ? SEQ : example", "example"),
    Fault("the products' operand is h after the step", "csrc/cuda/operand.cu",
          "(step.row_before + b)", "(step.row + b)"),
    Fault("weight mask shared by all rows", "csrc/cuda/masked_weight.cu",
          "static_cast<uint32_t>(column / 4), static_cast<uint32_t>(row), SEQ",
          "static_cast<uint32_t>(column / 4), 0u, SEQ"),
    Fault("rows of a GRU's W in the order of U", "csrc/cuda/masked_weight.cu",
          "moved < p.rows ? moved : moved - p.rows", "row"),
    Fault("rates out of range are taken as they are", "csrc/cuda/prepare.cu", "p < 0 ? 0 : p > most ? most : p", "p"),
    Fault("the scale of h_n's gradient left out", "csrc/cuda/gru_backward.cu", "dh.at[i] *= sites.read_scale;", ";"),
    Fault("bias forgotten when gates are computed again", "csrc/cuda/activate.cu",
          "return p.b_ih ? value + (p.b_ih[at] + p.b_hh[at]) : value;", "return value;"),
    Fault("no gradient for h_0 of rows that end early in a reversed pass", "csrc/cuda/lstm_schedule.cpp",
          "    leave_h(now.active, sent);", ""),
    Fault("the gate gradients of a whole step after, not of its rows", "csrc/cuda/gru_schedule.cpp",
          "if (sent) call.multiply(recurrent_gradients(after, sent)",
          "if (sent) call.multiply(recurrent_gradients(t, sent)"),
    Fault("the bits of masks per sequence of another word", "csrc/cuda/sequence_masks.cu",
          "dropped(words.w[WORD_UPDATE], call", "dropped(words.w[WORD_CELL], call"),
    Fault("weight mask left out of its gradient for cuDNN", "csrc/bind/cuda_weights.cpp",
          "type_of(weights[i].scalar_type()), shape, streams[i]);", "type_of(weights[i].scalar_type()), shape, -1);"),
    Fault("cuDNN reads as biases what nobody wrote", "csrc/bind/cuda_weights.cpp",
          "cudaMemsetAsync(to + first * each, 0, static_cast<size_t>((last - first) * each)",
          "cudaMemsetAsync(to + first * each, 0, 0 * static_cast<size_t>((last - first) * each)"),
    Fault("only the last gap of cuDNN's buffer is written", "csrc/bind/cuda_weights.cpp",
          "if (first > end) found.emplace_back(end, first);", ""),
    Fault("gradients of frozen weights are asked for", "fused_rnn_dropout/cudnn.py",
          "return tuple(next(made) if tensor.requires_grad else tensor for tensor in tensors)",
          "return tuple(_Once.apply(op, *tensors))"),
    Fault("bfloat16 for a cuDNN that does not take it", "fused_rnn_dropout/cudnn_library.py",
          "version[:2] < _BFLOAT16_VERSION or ", ""),
    Fault("cuDNN's longest sequence is forgotten", "fused_rnn_dropout/cudnn_library.py",
          "if steps > MOST_STEPS:", "if False:"),
    Fault("a layout is asked for inside a capture", "fused_rnn_dropout/cudnn_library.py",
          "if unknown and capturing(", "if False and capturing("),
    Fault("cuDNN's weights masked as those of the first layer", "fused_rnn_dropout/cudnn.py",
          "stream(kind, first + number, direction)", "stream(kind, 0, direction)"),
    Fault("a site inside a step does not keep cuDNN away", "fused_rnn_dropout/cudnn.py",
          "if name in _INSIDE)", "if name in _INSIDE[1:])"),
)  # fmt: skip


def run_tests(work: Path) -> tuple[bool, str]:
    """Whether the tests passed, and the line that says what failed."""
    environment = {**os.environ, "PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line", *TESTS]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode not in (0, 1):
        return False, f"the tests could not run: {done.stdout.strip()[-300:]}{done.stderr.strip()[-300:]}"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0] if failed else done.stdout.strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="plant only the faults whose names contain NAME")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or any(part in fault.name for part in options.only)]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for folder in ("csrc", "fused_rnn_dropout", "tests"):
            shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", work)
        print("compiling the kernels as they are, and running the tests on them", flush=True)
        passed, line = run_tests(work)
        if not passed:
            print(f"the tests fail without a fault: {line}")
            return 1
        unnoticed = []
        for number, fault in enumerate(chosen, 1):
            start, changed = time.monotonic(), work / fault.file
            text = changed.read_text()
            if fault.old not in text:
                raise SystemExit(f"{fault.name}: {fault.file} no longer holds {fault.old!r}")
            changed.write_text(text.replace(fault.old, fault.new))
            passed, line = run_tests(work)
            changed.write_text(text)
            seconds = time.monotonic() - start
            print(f"[{number}/{len(chosen)}] {'UNNOTICED' if passed else 'caught'}: {fault.name} ({seconds:.0f} s)"
                  f"{'' if passed else chr(10) + '    by ' + line[:150]}", flush=True)  # fmt: skip
            if passed:
                unnoticed.append(fault.name)
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} faults caught")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
