"""Compiles every Triton kernel for every target, without a GPU, and holds the binaries to a table of budgets.

    python tools/compile_triton.py                # compare with tests/budgets/triton.json
    python tools/compile_triton.py --sample 100   # a hundred binaries of it, others with each commit
    python tools/compile_triton.py --update       # write the installed release's table in that file anew

A release of Triton is a compiler of its own: the file has a table for each release that a supported torch brings, named
by major and minor version, with the torch that brings it and the targets it was made for. The installed release picks
its table.

Registers, stack and shared memory are read from the machine code: cuobjdump (which Triton's wheel brings along) for
cubins, the metadata of the assembly for AMD. More than the budget fails, and so do a spill and a stack, but for those
that the table of an older release admits.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from sampling import ROOT, commit, sample
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fused_rnn_dropout.sites import FLAG
from fused_rnn_dropout.triton import (
    dropout,
    entry,
    gru_sequence,
    gru_step,
    launch,
    lstm_sequence,
    lstm_step,
    lstm_step_backward,
    philox,
    rnn_sequence,
    rnn_step,
    sites,
    weights,
)

BUDGETS = ROOT / "tests/budgets/triton.json"
CUDA, HIP = ("cuda:80", "cuda:90", "cuda:100", "cuda:120"), ("hip:gfx942",)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

ALL_SITES = sum(
    FLAG[name]
    for name in (
        "HIDDEN",
        "UPDATE",
        "CELL",
        "CELL_SEQUENCE",
        "ZONEOUT_C",
        "ZONEOUT_H",
        "ZONEOUT_H_SEQUENCE",
        "OUTPUT",
        "MASKS_ON",
    )
)
"""The most that one kernel draws: masks per step, masks per sequence, those of hidden dropout and of the output."""
SITES_OF_AN_RNN = ALL_SITES - FLAG["CELL"] - FLAG["CELL_SEQUENCE"] - FLAG["ZONEOUT_C"]

STEP = {"H": 1150, "P": 400, "WIDTH": 1150, "COLUMN": 1150, "FLAGS": ALL_SITES, "BLOCK": launch.BLOCKS.step}
SMALL = launch.TILES
SEQUENCE = {
    "H": 200,
    "COLUMN": 200,
    "FLAGS": ALL_SITES,
    "ROWS": SMALL.rows,
    "UNITS": SMALL.units,
    "K": SMALL.k,
    "REVERSE": False,
}
OPTIONS = {"num_warps": SMALL.warps, "num_stages": SMALL.stages}

# Parameters by what they hold; every other pointer holds values in the dtype of the results.
WIDE = {"pre", "rec", "c", "h", "cells", "dh", "dc", "carried", "state", "numbers", "projected", "dh_new",
        "bias", "bias_apart"}  # fmt: skip
INTEGERS = {"keys", "thresholds", "example_ids", "rng", "rng_state", "rng_hidden", "rng_written", "layout"}


class Case(NamedTuple):
    """A kernel with its compile-time constants, for a dtype of results."""

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, Any]
    integers: tuple[str, ...] = ()  # pointers that hold int64 in this kernel
    none: tuple[str, ...] = ()  # pointers that are not given
    options: dict[str, Any] = {}
    targets: tuple[str, ...] = CUDA + HIP


def cases() -> list[Case]:
    found = [
        Case("words", philox.words_kernel, "fp32", {"BLOCK": 256}, ("row", "step", "target")),
        Case("prepare", sites.prepare_kernel, "fp32", {"FLAGS": ALL_SITES}, options={"num_warps": 1}),
    ]
    for dtype in ("bf16", "fp32", "fp16", "fp64"):
        targets = CUDA + HIP if dtype in ("bf16", "fp32") else ("cuda:90",)
        compute = triton.language.float64 if dtype == "fp64" else triton.language.float32

        def add(name: str, kernel: Any, constants: dict[str, Any], **more: Any) -> None:
            more = {"targets": targets, **more}  # noqa: B023  called in this turn of the loop
            found.append(Case(f"{name} {dtype}", kernel, dtype, constants, **more))  # noqa: B023

        locked = {"SITE": 1, "WIDTH": 1150, "SHARED": False, "COMPUTE": compute, "BLOCK": launch.BLOCKS.dropout}
        add("dropout", dropout.drop_rows_kernel, {**locked, "PER_STEP": True})
        masked = {"COLUMNS": 1150, "COMPUTE": compute, "BLOCK": launch.BLOCKS.weights}
        add("weights", weights.mask_weight_kernel, {**masked, "BY_ROW": False})
        add("weights by row", weights.mask_weight_kernel, {**masked, "BY_ROW": True})
        for cell, scaled in (("lstm", False), ("gru", True)):
            add(f"enter {cell}", entry.enter_kernel, {**STEP, "MEMORY": scaled, "SCALED": scaled})
            add(f"leave {cell}", entry.leave_kernel, {**STEP, "MEMORY": scaled, "SCALED": scaled})
            add(f"operands {cell}", entry.operands_kernel, {**STEP, "SCALED": scaled})
        add("lstm forward", lstm_step.lstm_forward_kernel, STEP, none=("outputs",))
        add("lstm forward, projected", lstm_step.lstm_forward_kernel, STEP, none=("h", "read", "out", "states"))
        add("lstm project", lstm_step.lstm_project_kernel, STEP)
        add("lstm activate", lstm_step.lstm_activate_kernel, STEP)
        add("lstm backward", lstm_step_backward.lstm_backward_kernel, STEP)
        add("lstm unproject", lstm_step_backward.lstm_unproject_kernel, STEP)
        add("lstm backward, projected", lstm_step_backward.lstm_projected_backward_kernel, STEP)
        add("gru forward", gru_step.gru_forward_kernel, STEP)
        add("gru activate", gru_step.gru_activate_kernel, STEP)
        add("gru backward", gru_step.gru_backward_kernel, STEP)
        for activation, relu in (("tanh", False), ("relu", True)):
            constants = {**STEP, "FLAGS": SITES_OF_AN_RNN, "RELU": relu}
            add(f"rnn {activation} forward", rnn_step.rnn_forward_kernel, constants)
            add(f"rnn {activation} activate", rnn_step.rnn_activate_kernel, constants)
            add(f"rnn {activation} backward", rnn_step.rnn_backward_kernel, constants)
        if dtype == "fp64":
            continue  # the sequence schedule has no float64 on devices
        for precision in launch.PRECISIONS if dtype == "fp32" else ("ieee",):
            # AMD's matrix instructions know no tf32x3, and gfx942 is the last that knows tf32.
            some = CUDA if precision == "tf32x3" else targets
            kind = f" {precision}" if dtype == "fp32" else ""
            for cell, module in (("lstm", lstm_sequence), ("gru", gru_sequence), ("rnn", rnn_sequence)):
                constants = {**SEQUENCE, "PRECISION": precision}
                if cell == "rnn":
                    constants |= {"FLAGS": SITES_OF_AN_RNN, "RELU": False}
                for way in ("forward", "backward"):
                    kernel = getattr(module, f"{cell}_sequence_{way}_kernel")
                    add(f"{cell} sequence {way}{kind}", kernel, constants, options=OPTIONS, targets=some)
    return found


def source_of(case: Case) -> ASTSource:
    """What a launch would compile: the same types, and the alignment that it would specialise on."""
    wide = "fp64" if case.dtype == "fp64" else "fp32"
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for parameter in case.kernel.params:
        name, place = parameter.name, (parameter.num,)
        if parameter.is_constexpr or name in case.none:
            signature[name] = "constexpr"
            constants[place] = case.constants[name] if parameter.is_constexpr else None
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        else:
            integer = name in INTEGERS or name in case.integers
            signature[name] = "*i64" if integer else f"*{wide if name in WIDE else case.dtype}"
            if not parameter.do_not_specialize_on_alignment:
                attributes[place] = [["tt.divisibility", 16]]
    return ASTSource(case.kernel, signature, constants, attributes)


class Use(NamedTuple):
    """What a binary takes of a multiprocessor."""

    registers: int
    shared: int  # bytes
    spilled: int  # bytes of stack and local memory (NVIDIA), spilled vector registers and scratch (AMD)


def usage(compiled: Any, backend: str) -> Use:
    shared = compiled.metadata.shared
    if backend == "hip":
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            found = re.search(rf"\.{name}:\s+(\d+)", text)
            assert found, f"the assembly has no .{name}"
            return int(found[1])

        # Scalar registers spill into lanes of vector registers, which costs no memory.
        spilled = field("vgpr_spill_count") + field("private_segment_fixed_size")
        return Use(field("vgpr_count"), shared, spilled)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return Use(found["REG"], shared, found["STACK"] + found["LOCAL"])


def release_of(version: str) -> str:
    """Major and minor of a version: what a table is named by."""
    return ".".join(version.split(".")[:2])


def choose_table(tables: dict[str, Any], version: str) -> dict[str, Any]:
    """The table of a release of Triton.

    Raises:
        SystemExit: there is none.
    """
    if (release := release_of(version)) in tables:
        return tables[release]
    there = ", ".join(f"{name} ({table['brought_by']})" for name, table in tables.items())
    raise SystemExit(
        f"error: {BUDGETS.relative_to(ROOT)} has no table for Triton {version}; it has {there}. "
        "--update --brought-by makes one"
    )


def budget_of(use: Use) -> dict[str, int]:
    """Registers are rounded up, so that a later bug fix release may use a few more. A spill is as it is."""
    spilled = {"spilled": use.spilled} if use.spilled else {}
    return {"registers": -(-use.registers // 16) * 16, "shared": use.shared, **spilled}


def compare(use: Use, budget: dict[str, int] | None) -> list[str]:
    """What is wrong with a binary, in words."""
    if budget is None:
        return ["has no budget"]
    most = {"spilled": 0, **budget}
    return [f"{name} {value} > {most[name]}" for name, value in use._asdict().items() if value > most[name]]


def write_tables(tables: dict[str, Any]) -> None:
    """A line for each kernel, releases in order, so that a change shows as the lines that changed."""
    parts = []
    for release in sorted(tables, key=lambda name: tuple(map(int, name.split(".")))):
        table = dict(tables[release])
        kernels = ",\n".join(f"   {json.dumps(name)}: {json.dumps(use)}" for name, use in table.pop("kernels").items())
        head = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in table.items())
        parts.append(f' {json.dumps(release)}: {{\n{head}  "kernels": {{\n{kernels}\n  }}\n }}')
    BUDGETS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the Triton kernels for every target, without a GPU.")
    parser.add_argument("--update", action="store_true", help="write the release's table instead of comparing")
    parser.add_argument("--brought-by", metavar="TEXT", help="with --update, which torch brings this release")
    parser.add_argument(
        "--targets", help=f"with commas between them (default: those of the table, or {','.join(CUDA + HIP)})"
    )
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name or target contains TEXT")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="N of them, with each case and each target at least once"
    )
    parser.add_argument("--seed", metavar="TEXT", help="of the sample (default: the hash of the commit)")
    options = parser.parse_args()
    if options.update and (options.k or options.sample is not None):
        parser.error("--update writes a whole table: leave -k and --sample out")
    if options.sample is not None and options.sample < 1:
        parser.error("--sample should be at least 1")
    tables = json.loads(BUDGETS.read_text())
    old = tables.get(release_of(triton.__version__), {}) if options.update else choose_table(tables, triton.__version__)
    if options.update and not (options.brought_by or old):
        parser.error(f"a table for Triton {triton.__version__} is new: say with --brought-by which torch brings it")
    targets = options.targets.split(",") if options.targets else old.get("targets", [*CUDA, *HIP])
    if wrong := sorted(set(targets) - {*CUDA, *HIP}):
        parser.error(f"--targets {','.join(wrong)}: should be of {', '.join(CUDA + HIP)}")
    if missing := sorted(set(targets) - set(old.get("targets", targets))):
        print(f"the table was not made for {', '.join(missing)}", file=sys.stderr)
    budgets = old.get("kernels", {})
    of = f"the table is of {old['triton']}" if old else "there is no table yet"
    print(f"Triton {triton.__version__}; {of}; compiling for {', '.join(targets)}")
    work = [
        (case, target)
        for case in cases()
        for target in case.targets
        if target in targets and options.k in f"{case.name} {target}"
    ]
    if not work:
        parser.error(f"no kernel for any target has {options.k!r} in its name")
    if options.sample:
        seed, whole = options.seed or commit(), len(work)
        work = sample(work, options.sample, seed, lambda pair: (pair[0].name, pair[1]))
        print(f"a sample of {len(work)} of {whole}: --sample {options.sample} --seed {seed}; without it all of them")
    seen: dict[str, dict[str, Any]] = {}
    failures = []
    begin = time.monotonic()
    for index, (case, target) in enumerate(work, 1):
        backend, architecture = target.split(":")
        gpu = GPUTarget(
            backend, int(architecture) if backend == "cuda" else architecture, 32 if backend == "cuda" else 64
        )
        use = usage(triton.compile(source_of(case), target=gpu, options=case.options), backend)
        seen.setdefault(case.name, {})[target] = budget_of(use)
        problems = [] if options.update else compare(use, budgets.get(case.name, {}).get(target))
        failures += [f"{case.name} on {target}: {problem}" for problem in problems]
        seconds = time.monotonic() - begin
        print(
            f"[{index:3}/{len(work)} {seconds:5.0f} s] {target:<11} {case.name:<34} {use.registers:3} registers, "
            f"{use.shared:6} bytes shared  {'; '.join(problems)}",
            flush=True,
        )
    if options.update:
        tables[release_of(triton.__version__)] = {
            "triton": triton.__version__,
            "brought_by": options.brought_by or old["brought_by"],
            "targets": targets,
            "kernels": seen,
        }
        write_tables(tables)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
