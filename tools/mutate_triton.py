"""Plants faults in the Triton kernels, one at a time, and checks that the tests catch each of them.

    python tools/mutate_triton.py [--list] [--only NAME ...]

For each fault the package is copied, changed, and the tests run on the copy, in Triton's interpreter, until the first
one fails. The unchanged copy goes first and must pass. Exits with 1 if a fault goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS, BACKEND = "tests/test_triton_kernels.py", "tests/test_triton_backend.py"


class Fault(NamedTuple):
    """``select``: which tests to run, as pytest's ``-k`` takes it, where not those of everything in an LSTM or GRU."""

    name: str
    file: str
    old: str
    new: str
    select: str = ""
    tests: str = KERNELS


FAULTS = (
    Fault("philox with 9 rounds", "philox.py", "static_range(10)", "static_range(9)", "words_are", BACKEND),
    Fault("a threshold of 2**32 as the word 0", "philox.py", " | (threshold >= 4294967296)", "", "rates_of_one"),
    Fault(
        "the words of a call in another order",
        "philox.py",
        "tl.join(tl.join(w0, w2), tl.join(w1, w3))",
        "tl.join(tl.join(w0, w1), tl.join(w2, w3))",
        "dropout_is",
        BACKEND,
    ),
    Fault("one word for two sites", "state_masks.py", "update = below(w2,", "update = below(w1,"),
    Fault("step_offset ignored", "lstm_step.py", "sites.step_offset + t", "t"),
    Fault(
        "example ids ignored", "state_masks.py", "example = tl.load(example_ids + b, inside, other=0)", "example = b"
    ),
    Fault(
        "dropout scale rounded with the input",
        "dropout.py",
        ".to(COMPUTE)\n    fourth",
        ".to(tl.float16).to(COMPUTE)\n    fourth",
        "dropout_is",
        BACKEND,
    ),
    Fault(
        "weight mask shared by all rows",
        "weights.py",
        "(call // calls).to(tl.uint32), once",
        "(call // calls * 0).to(tl.uint32), once",
    ),
    Fault(
        "row mask by another word",
        "weights.py",
        "tl.where(lane == 0, w0, w1)",
        "tl.where(lane == 0, w1, w0)",
        "training and weight_row",
    ),
    Fault(
        "weight mask left out of its gradient",
        "weights.py",
        "return self._apply(name, grad, dtype)",
        "return grad.to(dtype)",
    ),
    Fault(
        "hidden mask left out in backward",
        "lstm_step_backward.py",
        "total += through(sum_, numbers, keys, thresholds, unit, example, stream, False, FLAGS)",
        "total += sum_",
    ),
    Fault(
        "hidden mask left out on the way to h_0",
        "entry.py",
        "grad += through(sum_, numbers, keys, thresholds, unit, example, stream, SCALED, FLAGS)",
        "grad += sum_",
    ),
    Fault(
        "backward takes the masks of another step",
        "lstm_step_backward.py",
        "batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t, sites.stream, H=units",
        "batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t + 1, sites.stream, H=units",
    ),
    Fault(
        "GRU backward takes the masks of another step",
        "gru_step.py",
        "batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t",
        "batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t + 1",
    ),
    Fault(
        "dead units enter alive",
        "state_masks.py",
        "value = tl.where(dead, 0.0, value)",
        "pass",
    ),
    Fault(
        "zoneout's masks inverted",
        "state_masks.py",
        "new = tl.where(keep_old, old, new)",
        "new = tl.where(keep_old, new, old)",
    ),
    Fault(
        "zoneout's expectation forgotten in eval",
        "state_masks.py",
        "new = z * old + (1.0 - z) * new",
        "new = z * old + new",
        "test_eval and zoneout",
    ),
    Fault(
        "h from the zoned memory",
        "cells.py",
        "h_new = lstm_output(o, c_new, numbers, FLAGS)",
        "h_new = lstm_output(o, zone_c(c, c_new, keep_c, numbers, FLAGS), numbers, FLAGS)",
    ),
    Fault(
        "the candidate's mask left out of its gradient",
        "cells.py",
        "dg = drop_update(dz * i, update, numbers, FLAGS) *",
        "dg = dz * i *",
    ),
    Fault("a GRU's leak left out", "gru_step.py", "to_old + leak, total", "to_old, total"),
    Fault(
        "the reset gate's bias in the wrong part",
        "gru_step.py",
        "u += tl.load(b_hh + unit + 2 * H",
        "n += tl.load(b_hh + unit + 2 * H",
    ),
    Fault(
        "a GRU's output without its scale",
        "gru_step.py",
        "tl.store(out + at_row, read_memory(zoned, numbers, FLAGS), inside)",
        "tl.store(out + at_row, zoned, inside)",
    ),
    Fault(
        "unzoned output where the zoned one is asked for",
        "lstm_step.py",
        "tl.store(out + row * P + unit, zoned, inside)",
        "tl.store(out + row * P + unit, h_new, inside)",
    ),
    Fault(
        "rows that are done change", "lstm_step_backward.py", "tl.where(b < active, to_old, total)", "to_old", "packed"
    ),
    Fault(
        "rows that begin later read another row",
        "entry.py",
        "begins = at_edge & (b >= edge_rows)",
        "begins = at_edge & (b > edge_rows)",
        "packed",
    ),
    Fault(
        "the operand of another half",
        "lstm_sequence.py",
        "read + (s % 2) * batch * H, read",
        "read + ((s + 1) % 2) * batch * H, read",
    ),
    Fault(
        "GRU: the operand of another half",
        "gru_sequence.py",
        "read + (s % 2) * batch * H, read",
        "read + ((s + 1) % 2) * batch * H, read",
    ),
    Fault("one half not filled", "lstm.py", "halves[1].copy_(read)", "halves[1].zero_()", "packed"),
    Fault(
        "the last block of units left out",
        "lstm_sequence.py",
        "for u0 in range(0, H, UNITS)",
        "for u0 in range(0, H - 1, UNITS)",
        "test_sizes and sequence",
    ),
    Fault(
        "the last block of a product left out",
        "gru_sequence.py",
        "for k0 in range(0, 3 * H, K)",
        "for k0 in range(0, 3 * H - K, K)",
        "test_sizes and sequence",
    ),
    Fault(
        "gates of W read for another gate",
        "lstm_sequence.py",
        "tl.load(w + 2 * H * H, fits",
        "tl.load(w + 3 * H * H, fits",
    ),
    Fault("the state starts anew with each chunk", "lstm.py", "begin, end,\n", "0, end - begin,\n", "chunks"),
    Fault(
        "sums in the dtype of values",
        "passes.py",
        "return self.x.new_empty(shape, dtype=self.compute)",
        "return self.x.new_empty(shape)",
        "low_precision or some_other or weights_of",
    ),
    Fault(
        "a specialised batch",
        "lstm_step.py",
        '    do_not_specialize=["active", "row0", "pre_row0", "step", "stream"],\n',
        "",
        "compiles_nothing",
        BACKEND,
    ),
)


def run(fault: Fault | None, folder: Path) -> tuple[bool, str]:
    """Whether the tests pass on a copy with ``fault``, and the first that did not."""
    package = folder / "fused_rnn_dropout"
    shutil.copytree(ROOT / "fused_rnn_dropout", package, ignore=shutil.ignore_patterns("__pycache__"))
    if fault is not None:
        file = package / "triton" / fault.file
        text = file.read_text()
        if fault.old not in text:
            raise SystemExit(f"{fault.name}: {fault.file} does not contain {fault.old!r}")
        file.write_text(text.replace(fault.old, fault.new))
    for name in ("tests", "tools", "pyproject.toml"):
        os.symlink(ROOT / name, folder / name)
    default = "test_everything and everything"
    if fault is not None and fault.file.startswith("gru"):
        default += " and GRU"
    select, tests = (fault.select or default, fault.tests) if fault else (default, KERNELS)
    environment = os.environ | {"PYTHONPATH": str(folder), "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "-k",
        select,
        tests,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the tests did not run:\n{done.stdout}{done.stderr}")
    first = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return done.returncode == 0, first[1] if first else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants faults in the Triton kernels; the tests must catch them.")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="only faults whose name contains one of these"
    )
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or any(part in fault.name for part in options.only)]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    unnoticed = []
    for index, fault in enumerate((None, *chosen)):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            passed, first = run(fault, Path(folder))
        well = passed == (fault is None)
        name = "no fault" if fault is None else fault.name
        said = f"caught by {first}" if first else "passed"
        print(
            f"[{index}/{len(chosen)} {time.monotonic() - begin:4.0f} s] {'ok ' if well else 'BAD'} {name}: {said}",
            flush=True,
        )
        if not well:
            unnoticed.append(name)
    print(f"{len(chosen)} faults, unnoticed: {', '.join(unnoticed) or 'none'}")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
