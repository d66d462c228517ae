"""Counts the multiplications of Philox that a warp issues in a step kernel, from its machine code.

    python tools/count_philox.py [cuda | triton ...] [--target SM ...] [--sites N] [--root CHECKOUT]

A Philox call has ten rounds of two multiplications by its own constants, which no other code has, so that their number
tells what masks cost. --sites says how many state sites draw at each step. --root counts CUDA's kernels in another
checkout, such as one of an earlier commit, so that two can be compared.

Where lanes exchange what they have drawn, which their shuffles show, a warp takes as many sites at once as fill its
lanes with calls; elsewhere one after the other. Triton's kernels are compiled for the sites that draw.

Counted for thresholds that no call can tie with, as those of p = 0.5 and 0.25. Others need a second call in about one
of 8,000, whose multiplications are listed apart. Needs what tools/compile_cuda.py needs, and for Triton's kernels
Triton. None of this is timing.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compile_cuda import FLAGS, TARGETS, find_nvcc, find_nvdisasm, run, short_names
from sampling import ROOT

CONSTANTS = (0xD2511F53, 0xCD9E8D57)
BACKENDS = ("cuda", "triton")
IN_A_CALL = 20
FIELDS = 8  # neighbouring units that a call serves
SOURCES = ("forward_step.cu", "backward_step.cu")

SECTION = re.compile(r"\s*\.section\s+\.text\.([\w$.]+)")
LABEL = re.compile(r"(\.L_x_\d+):")
BRANCH = re.compile(r"\bBRA\b.*\(?(\.L_x_\d+)\)?")
SHUFFLE = re.compile(r"\bSHFL\b")
MULTIPLICATION = re.compile(r"\bU?IMAD\.(?:WIDE|HI)\.U32\b[^;]*?,\s*(-?0x[0-9a-f]+)\s*,")


@dataclass(frozen=True)
class Count:
    """Multiplications that a warp issues: of a batch row, of each turn of its sites, and of a tie."""

    row: int
    turn: int
    tie: int
    shared: bool  # whether lanes exchange what they have drawn

    def issued(self, sites: int, units: int) -> int:
        """Of a batch row. ``units``: of a thread."""
        turns = math.ceil(sites * units / FIELDS) if self.shared else sites
        return self.row + turns * self.turn


def kernels(listing: str) -> dict[str, list[str]]:
    """Lines of each kernel in what nvdisasm -c prints, by its mangled name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if section := SECTION.match(line):
            lines = found.setdefault(section[1], [])
        lines.append(line)
    return found


def loops(lines: list[str]) -> list[tuple[int, int]]:
    """First and last line of each loop: from a label to the last branch back to it."""
    labels = {match[1]: at for at, line in enumerate(lines) if (match := LABEL.match(line.strip()))}
    ends: dict[int, int] = {}
    for at, line in enumerate(lines):
        if (match := BRANCH.search(line)) and labels[match[1]] < at:
            ends[labels[match[1]]] = at
    return sorted(ends.items())


def philox_of(lines: list[str]) -> list[int]:
    """The lines with a multiplication of Philox."""
    return [
        at
        for at, line in enumerate(lines)
        if (match := MULTIPLICATION.search(line)) and int(match[1], 16) & 0xFFFFFFFF in CONSTANTS
    ]


def count(lines: list[str]) -> Count:
    """Of one kernel of CUDA, whose loops around Philox are, from without, those over rows, over turns, over rounds.

    A kernel that unrolls its rounds lacks the last of them, one that draws all its sites at once the second too.
    """
    found = philox_of(lines)
    shared = any(SHUFFLE.search(line) for line in lines)
    around = {loop: sum(loop[0] <= at <= loop[1] for at in found) for loop in loops(lines)}
    row = turn = tie = 0
    first: tuple[int, int] | None = None  # loop over rounds: another one is that of a tie
    for at in found:
        nest = sorted((loop for loop in around if loop[0] <= at <= loop[1]), key=lambda loop: loop[1] - loop[0])
        times, of_tie = 1, False
        if nest and around[nest[0]] <= IN_A_CALL // 2:
            rounds = nest.pop(0)
            times, first = IN_A_CALL // around[rounds], first or rounds
            of_tie = shared and rounds != first
        if of_tie:
            tie += times
        elif len(nest) > 1:
            turn += times
        else:
            row += times
    return Count(row, min(turn, IN_A_CALL), tie + max(turn - IN_A_CALL, 0), shared)


def units_of(kernel: str) -> int:
    """Of a thread: the number among a step kernel's template arguments."""
    return int(next(argument for argument in re.split(r"[<>, ]+", kernel) if argument.isdigit()))


def count_unrolled(lines: list[str]) -> Count:
    """Of one kernel of Triton, which has all its rounds in a row: what a branch may leave out is the tie's."""
    labels = {match[1]: at for at, line in enumerate(lines) if (match := LABEL.match(line.strip()))}
    jumps = [(at, labels[match[1]]) for at, line in enumerate(lines) if (match := BRANCH.search(line))]
    depths = [sum(begin < at < end for begin, end in jumps) for at in philox_of(lines)]
    row = depths.count(min(depths, default=0))
    return Count(row, 0, len(depths) - row, False)


@dataclass(frozen=True)
class Counted:
    """Of one kernel on one target."""

    kernel: str
    units: int  # of a thread
    issued: int
    tie: int


def of_cuda(target: int, sites: int, root: Path) -> Iterator[Counted]:
    nvcc = find_nvcc()
    flags = (*(flag for flag in FLAGS if not flag.startswith("-I")), f"-I{root.resolve() / 'csrc'}")
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernel.cubin")
            run(nvcc, *flags, f"-arch=sm_{target}", "-cubin", root / "csrc/cuda" / source, "-o", cubin)
            listed = kernels(run(find_nvdisasm(nvcc), "-c", cubin))
        names = short_names(list(listed))
        for symbol, lines in sorted(listed.items(), key=lambda item: names[item[0]]):
            found, units = count(lines), units_of(names[symbol])
            yield Counted(names[symbol], units, found.issued(sites, units), found.tie)


def of_triton(target: int, sites: int) -> Iterator[Counted]:
    import compile_triton
    import triton

    from fused_rnn_dropout.sites import FLAG

    drawing = {"lstm": ("UPDATE", "ZONEOUT_C", "ZONEOUT_H", "CELL"), "gru": ("UPDATE", "CELL", "ZONEOUT_H")}
    names = [f"{cell} {kind}" for cell in drawing for kind in ("forward", "backward", "sequence")]
    for case in compile_triton.cases():
        cell = case.name.split()[0]
        words = case.name.removesuffix(" ieee").split()
        if not any(case.name.startswith(name) for name in names) or words[-1] != case.dtype or "projected" in case.name:
            continue
        if sites > len(drawing[cell]):
            continue
        flags = sum(FLAG[name] for name in (*drawing[cell][:sites], "MASKS_ON"))
        constants = {**case.constants, "FLAGS": flags}
        compiled = triton.compile(
            compile_triton.source_of(case._replace(constants=constants)),
            target=compile_triton.GPUTarget("cuda", target, 32),
            options=case.options,
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            found = count_unrolled(run(find_nvdisasm(find_nvcc()), "-c", cubin.name).splitlines())
        elements = constants.get("BLOCK") or constants["ROWS"] * constants["UNITS"]
        yield Counted(case.name, elements // (32 * compiled.metadata.num_warps), found.row, found.tie)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help="cuda or triton (default: both)")
    parser.add_argument("--target", action="append", type=int, choices=TARGETS, help="default: 90 (repeatable)")
    parser.add_argument("--sites", type=int, default=3, metavar="N", help="state sites that draw (default: 3)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="CHECKOUT", help="whose kernels to count in")
    options = parser.parse_args()
    if unknown := sorted(set(options.backends) - {*BACKENDS}):
        parser.error(f"no such backend: {', '.join(unknown)}; there are {', '.join(BACKENDS)}")
    print(f"{options.sites} state sites; multiplications of Philox that a warp issues")
    for target in options.target or [90]:
        for backend in options.backends or BACKENDS:
            cuda = backend == "cuda"
            for of in of_cuda(target, options.sites, options.root) if cuda else of_triton(target, options.sites):
                print(
                    f"sm_{target} {backend} {of.kernel}: {of.issued} for {of.units} units, "
                    f"{of.issued / of.units:g} a unit, and {of.tie} at a tie",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
