"""Compiles every kernel of csrc/cuda to machine code for every target, and holds it against tests/budgets/cuda.json.

    python tools/compile_cuda.py [--update] [--target SM ...] [--sample N] [--jobs N] [SOURCE.cu ...]

A kernel may not use more registers or static shared memory than the table says, nor have fewer blocks on a
multiprocessor, nor fewer of the wide loads and stores that a vectorised one is written for. No kernel may spill, use
local memory, or have an atomic. Tensor-core products, asynchronous copies and matrix loads are asked of the wrappers in
csrc/cuda/ptx.h, through the kernels of tests/cuda/selftest.cu. A figure that is worse, a kernel without a budget and a
budget without a kernel are errors (exit status 1).

A compiler of another major version of CUDA than the table's, as tools/cuda12.py makes one, allots otherwise: there a
kernel may use 16 registers more (a persistent one all there are) and spill 32 bytes, and its wide loads and stores are
not counted.

--update writes the figures found into the table. It takes no spill and no atomic, and it drops no opcode that the table
asks for: that is done by hand.

Needs nvcc 12.8 or later (CUDA_HOME or the PATH), c++filt (binutils) and nvdisasm (the toolkit, or pip's
nvidia-cuda-nvdisasm, which is in the extra `dev`).
Occupancy is arithmetic on each architecture's limits, for the block that the launcher starts. None of this is timing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sampling import ROOT, commit, sample

TABLE = ROOT / "tests/budgets/cuda.json"
SELFTEST = ROOT / "tests/cuda/selftest.cu"
FLAGS = ("-O3", "-std=c++20", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda'}", "-Xptxas", "-v")

THREADS = 128  # of the blocks that block_of_rows() and block_in_line() in csrc/cuda/rows.h make
PERSISTENT = ("persistent_forward_kernel", "persistent_backward_kernel")
OTHER_THREADS = {"column_sums_kernel": 256, "prepare_kernel": 1, **dict.fromkeys(PERSISTENT, 256)}

MOST_REGISTERS = 255  # of a thread
MORE_REGISTERS, MOST_SPILLS = 16, 32  # by a compiler of another major version than the table's; bytes of spills

WIDE = ("LDG.E.64", "LDG.E.128", "STG.E.64", "STG.E.128")
CLAIMED = ("HMMA", "LDGSTS", "LDSM")
ATOMICS = ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")


@dataclass(frozen=True)
class Target:
    """What limits the blocks on one multiprocessor of an architecture. Each has 65,536 registers."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_unit: int  # that a block's share is rounded up to
    reserved: int  # bytes of each block's share that the system takes


TARGETS = {
    75: Target(warps=32, blocks=16, shared=64 << 10, shared_unit=256, reserved=0),
    80: Target(warps=64, blocks=32, shared=164 << 10, shared_unit=128, reserved=1024),
    86: Target(warps=48, blocks=16, shared=100 << 10, shared_unit=128, reserved=1024),
    89: Target(warps=48, blocks=24, shared=100 << 10, shared_unit=128, reserved=1024),
    90: Target(warps=64, blocks=32, shared=228 << 10, shared_unit=128, reserved=1024),
    100: Target(warps=64, blocks=32, shared=228 << 10, shared_unit=128, reserved=1024),
    120: Target(warps=48, blocks=24, shared=100 << 10, shared_unit=128, reserved=1024),
}


@dataclass
class Figures:
    """Of one kernel on one target."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0  # bytes stored and loaded
    opcodes: Counter[str] = field(default_factory=Counter)


def occupancy(target: Target, threads: int, registers: int, shared: int) -> tuple[int, str]:
    """Blocks on one multiprocessor, and the resource of which there is not enough for one more."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256  # registers are given out to warps, 256 at a time,
    room = 65536 // per_warp // 4 * 4  # out of four files, one for each quarter of the multiprocessor
    share = -(-(shared + target.reserved) // target.shared_unit) * target.shared_unit
    limits = {
        "warps": target.warps // warps,
        "blocks": target.blocks,
        "registers": room // warps,
        "shared memory": target.shared // share if share else target.blocks,
    }
    least = min(limits, key=limits.__getitem__)
    return limits[least], least


# --------------------------------------------------------------------------------------------------------------------
# Tools
# --------------------------------------------------------------------------------------------------------------------


def find_nvcc() -> Path:
    home = os.environ.get("CUDA_HOME")
    found = str(Path(home, "bin/nvcc")) if home else shutil.which("nvcc")
    if not found or not Path(found).exists():
        raise SystemExit("there is no nvcc in CUDA_HOME or on the PATH: install a CUDA toolkit, 12.8 or later")
    return Path(found)


def find_nvdisasm(nvcc: Path) -> Path:
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        of_pip = [Path(str(file.locate())) for file in files if file.name == "nvdisasm"]
    except importlib.metadata.PackageNotFoundError:
        of_pip = []
    on_path = shutil.which("nvdisasm")
    for path in (nvcc.with_name("nvdisasm"), *([Path(on_path)] if on_path else []), *of_pip):
        if path.exists():
            return path
    raise SystemExit("there is no nvdisasm, which lists a kernel's opcodes: pip install nvidia-cuda-nvdisasm")


def run(*command: str | Path) -> str:
    """Standard output and error of a command."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def short_names(mangled: list[str]) -> dict[str, str]:
    """Of kernels, as the sources call them: ``forward_step_kernel<Lstm, 4, half>``."""
    if not mangled:
        return {}
    lines = run("c++filt", "--no-params", *mangled).splitlines()
    names = {}
    for symbol, line in zip(mangled, lines, strict=True):
        name = line.removeprefix("void ").replace("(anonymous namespace)::", "").replace("frd::cuda::", "")
        name = re.sub(r"frd::(\w+)<Math<\w+> ?>", r"\1", name)  # a cell's equations, whose numbers are those of D
        names[symbol] = name.replace("__nv_bfloat16", "bfloat16").replace("__half", "half")
    return names


# --------------------------------------------------------------------------------------------------------------------
# One source for one target
# --------------------------------------------------------------------------------------------------------------------


def resources(log: str) -> dict[str, Figures]:
    """What ptxas -v says of each kernel, by its mangled name."""
    found: dict[str, Figures] = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        kernel = found[part[: part.index("'")]] = Figures()

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        kernel.registers = number(r"Used (\d+) registers")
        kernel.shared = number(r"(\d+) bytes smem")
        kernel.stack = number(r"(\d+) bytes stack frame")
        kernel.spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        if not kernel.registers:
            raise SystemExit(f"ptxas says nothing of a kernel's registers:\n{part}")
    return found


def opcodes(listing: str) -> dict[str, Counter[str]]:
    """How often each opcode occurs in each kernel, by its mangled name. Of global memory with its width."""
    found: dict[str, Counter[str]] = {}
    count: Counter[str] = Counter()
    for line in listing.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([\w$.]+)", line):
            count = found.setdefault(section[1], Counter())
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            operation, *parts = instruction[1].split(".")
            count[operation] += 1
            for width in {"64", "128"}.intersection(parts) if operation in ("LDG", "STG") else ():
                count[f"{operation}.E.{width}"] += 1
    return found


def compile_one(nvcc: Path, nvdisasm: Path, source: Path, target: int, folder: Path) -> dict[str, Figures]:
    cubin = folder / f"{source.stem}.{target}.cubin"
    found = resources(run(nvcc, *FLAGS, f"-arch=sm_{target}", "-cubin", source, "-o", cubin))
    listed = opcodes(run(nvdisasm, "-c", cubin))
    if found.keys() != listed.keys():
        raise SystemExit(f"{cubin.name}: ptxas and nvdisasm name other kernels: {sorted(found.keys() ^ listed.keys())}")
    for symbol, kernel in found.items():
        kernel.opcodes = listed[symbol]
    return {name: found[symbol] for symbol, name in short_names(list(found)).items()}


def compile_all(sources: list[Path], targets: list[int], jobs: int) -> dict[str, dict[int, Figures]]:
    """Figures of every kernel on every target."""
    nvcc = find_nvcc()
    nvdisasm = find_nvdisasm(nvcc)
    found: dict[str, dict[int, Figures]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        work = {
            pool.submit(compile_one, nvcc, nvdisasm, source, target, Path(name)): (source, target)
            for source in sources
            for target in targets
            if source != SELFTEST or target >= 80  # what it tests came with sm_80
        }
        try:
            for number, future in enumerate(as_completed(work), 1):
                source, target = work[future]
                for kernel, figures in future.result().items():
                    found.setdefault(kernel, {})[target] = figures
                seconds = time.monotonic() - start
                print(f"[{number}/{len(work)}] {source.name} for sm_{target} ({seconds:.0f} s)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


# --------------------------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------------------------


def template_name(kernel: str) -> str:
    return kernel.split("<")[0]


def threads_of(kernel: str) -> int:
    return OTHER_THREADS.get(template_name(kernel), THREADS)


def vectorised(kernel: str) -> bool:
    """Whether an instantiation is the one for rows that can be read and written several numbers at a time."""
    if template_name(kernel) in PERSISTENT:  # their numbers are tiles; tools/check_polls.py looks at what they exchange
        return False
    arguments = kernel[len(template_name(kernel)) :].strip("<>").split(", ")
    return any(argument == "true" or (argument.isdigit() and int(argument) > 1) for argument in arguments) and (
        "false" not in arguments
    )


def budget_of(kernel: str, figures: dict[int, Figures]) -> dict[str, Any]:
    """A row of the table: of each figure a number, or one for each target where they differ."""
    asked = WIDE if vectorised(kernel) else CLAIMED
    fits = {
        target: occupancy(TARGETS[target], threads_of(kernel), each.registers, each.shared)
        for target, each in figures.items()
    }

    def by_target(values: dict[int, Any]) -> Any:
        return values if len(set(values.values())) > 1 else next(iter(values.values()))

    counts = {opcode: {target: each.opcodes[opcode] for target, each in figures.items()} for opcode in asked}
    return {
        "threads": threads_of(kernel),
        "registers": by_target({target: each.registers for target, each in figures.items()}),
        "shared": by_target({target: each.shared for target, each in figures.items()}),
        "blocks": by_target({target: blocks for target, (blocks, _) in fits.items()}),
        "limit": by_target({target: limit for target, (_, limit) in fits.items()}),
        "opcodes": {opcode: by_target(count) for opcode, count in counts.items() if any(count.values())},
    }


def of_target(budget: Any, target: int) -> Any:
    return budget.get(str(target), budget.get(target)) if isinstance(budget, dict) else budget


def forbidden(found: dict[str, dict[int, Figures]], of_selftest: set[str], most_spills: int = 0) -> list[str]:
    """What no budget can allow. The tests' own kernels may, and ``most_spills`` a compiler that is not the table's."""
    wrong = []
    for kernel, by_target in sorted(found.items()):
        for target, figures in sorted(by_target.items()):
            where = f"{kernel} on sm_{target}"
            local = figures.opcodes["LDL"] + figures.opcodes["STL"]
            few = 0 < figures.spills <= most_spills
            if kernel not in of_selftest and not few and (figures.stack or figures.spills or local):
                wrong.append(f"{where}: {figures.spills} bytes of spills, a stack of {figures.stack} bytes and "
                             f"{local} accesses to local memory, budget 0")  # fmt: skip
            # The handshake of a strict ring adds to counters, not to results.
            counts = template_name(kernel) in PERSISTENT
            atomics = 0 if counts else sum(figures.opcodes[opcode] for opcode in ATOMICS)
            if kernel not in of_selftest and atomics:
                wrong.append(f"{where}: {atomics} atomics, budget 0: sums must not depend on the order of threads")
            for direction in ("LDG", "STG") if vectorised(kernel) else ():
                if not any(figures.opcodes[f"{direction}.E.{width}"] for width in (64, 128)):
                    wrong.append(f"{where}: vectorised, but has no {direction}.E.64 or {direction}.E.128")
    return wrong


def over_budget(
    kernel: str, target: int, figures: Figures, budget: dict[str, Any], more_registers: int = 0
) -> list[str]:
    """``more_registers``: of a compiler that is not the table's; its blocks and opcodes are not compared."""
    blocks, limit = occupancy(TARGETS[target], budget["threads"], figures.registers, figures.shared)
    wrong = []

    def check(name: str, found: int, allowed: int, at_least: bool, remark: str = "") -> None:
        if found < allowed if at_least else found > allowed:
            wrong.append(f"{kernel} on sm_{target}: {name} {found}, budget {allowed}{remark}")

    registers = of_target(budget["registers"], target) + more_registers
    if more_registers and template_name(kernel) in PERSISTENT:
        registers = MOST_REGISTERS  # one block has the multiprocessor to itself: they cost nothing until it spills
    check("registers", figures.registers, registers, False)
    check("bytes of shared memory", figures.shared, of_target(budget["shared"], target), False)
    if more_registers:
        return wrong
    check("blocks per multiprocessor", blocks, of_target(budget["blocks"], target), True, f", limited by {limit}")
    for opcode, least in budget["opcodes"].items():
        check(opcode, figures.opcodes[opcode], of_target(least, target), True)
    return wrong


def major_of(compiler: str) -> str:
    """The major version of CUDA in the last line that an nvcc says of itself."""
    found = re.search(r"cuda_(\d+)\.|V(\d+)\.", compiler)
    if found is None:
        raise SystemExit(f"no version of CUDA in {compiler!r}")
    return found[1] or found[2]


def write_table(table: dict[str, Any]) -> None:
    rows = [f"    {json.dumps(kernel)}: {json.dumps(budget)}" for kernel, budget in sorted(table["kernels"].items())]
    head = f'{{\n  "compiler": {json.dumps(table["compiler"])},\n  "targets": {json.dumps(table["targets"])},\n'
    TABLE.write_text(head + '  "kernels": {\n' + ",\n".join(rows) + "\n  }\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sources", nargs="*", type=Path, metavar="SOURCE.cu", help="compile these alone")
    add("--target", action="append", type=int, choices=TARGETS, help="compile for this architecture alone (repeatable)")
    add("--sample", type=int, metavar="N", help="compile for N of the architectures, that the seed chooses")
    add("--seed", metavar="TEXT", help="of the sample (default: the hash of the commit)")
    add("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))), help="sources compiled at once")
    add("--update", action="store_true", help="write the figures into the table")
    options = parser.parse_args()
    if options.update and (options.sources or options.target or options.sample is not None):
        parser.error("--update writes the whole table: give neither sources nor targets, and no --sample")
    if options.sample is not None and (options.target or options.sample < 1):
        parser.error("--sample should be at least 1, and takes the place of --target")
    sources = [path.resolve() for path in options.sources] or [*sorted(ROOT.glob("csrc/cuda/*.cu")), SELFTEST]
    targets = options.target or list(TARGETS)
    if options.sample:
        seed = options.seed or commit()
        targets = sample(targets, options.sample, seed)
        names = ", ".join(f"sm_{target}" for target in targets)
        print(f"a sample, {names}: --sample {options.sample} --seed {seed}; without --sample for every architecture")

    version = run(find_nvcc(), "--version").strip().splitlines()[-1]
    found = compile_all(sources, targets, options.jobs)
    if not TABLE.exists() and not options.update:
        raise SystemExit(f"{TABLE} is missing: --update makes it")
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"kernels": {}}
    budgets = table["kernels"]
    of_selftest = {kernel for kernel in found if kernel.startswith("selftest::")}
    other = not options.update and major_of(version) != major_of(table["compiler"])
    wrong = forbidden(found, of_selftest, MOST_SPILLS if other else 0)
    if options.update:
        rows = {kernel: budget_of(kernel, dict(sorted(figures.items()))) for kernel, figures in found.items()}
        rows = {kernel: row for kernel, row in rows.items() if kernel not in of_selftest or row["opcodes"]}
        wrong += [
            f"{kernel}: {opcode} is gone; take it out of the table by hand if that is meant"
            for kernel in sorted(rows.keys() & budgets.keys())
            for opcode in sorted(budgets[kernel]["opcodes"].keys() - rows[kernel]["opcodes"].keys())
        ]
        if not wrong:
            write_table({"compiler": version, "targets": targets, "kernels": rows})
            print(f"{TABLE.relative_to(ROOT)}: {len(rows)} kernels")
    else:
        if version != table["compiler"]:
            print(f"note: this compiler is {version}, the table is of {table['compiler']}")
        for kernel, by_target in sorted(found.items()):
            if kernel not in budgets:
                if kernel not in of_selftest:
                    wrong.append(f"{kernel} has no budget: tools/compile_cuda.py --update gives it one")
                continue
            for target, figures in sorted(by_target.items()):
                wrong += over_budget(kernel, target, figures, budgets[kernel], MORE_REGISTERS if other else 0)
        if not options.sources:
            wrong += [
                f"{kernel} has a budget, but no source has it" for kernel in sorted(budgets.keys() - found.keys())
            ]
    for sentence in wrong:
        print(f"WRONG  {sentence}")
    verdict = f"{len(wrong)} figures out of budget" if wrong else "all within budget"
    print(f"{len(found)} kernels, {sum(map(len, found.values()))} with their targets: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
