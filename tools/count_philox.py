"""Counts the multiplications of Philox that a warp issues in a step kernel, from its machine code.

    python tools/count_philox.py [--target SM ...] [--sites N] [--root CHECKOUT]

A Philox call has ten rounds of two multiplications by its own constants, which no other code has, so that their number
tells what masks cost. --sites says how many state sites draw at each step. --root counts in another checkout, such as
one of an earlier commit, so that two can be compared.

Where lanes exchange what they have drawn, which their shuffles show, a warp takes as many sites at once as fill its
lanes with calls; elsewhere one after the other.

Counted for thresholds that no call can tie with, as those of p = 0.5 and 0.25. Others need a second call in about one
of 8,000, whose multiplications are listed apart. Needs what tools/compile_cuda.py needs. None of this is timing.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compile_cuda import FLAGS, TARGETS, find_nvcc, find_nvdisasm, run, short_names
from sampling import ROOT

CONSTANTS = (0xD2511F53, 0xCD9E8D57)
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


def count(lines: list[str]) -> Count:
    """Of one kernel, whose loops around Philox are, from without, that over rows, that over turns, that over rounds.

    A kernel that unrolls its rounds lacks the last of them, one that draws all its sites at once the second too.
    """
    found = [
        at
        for at, line in enumerate(lines)
        if (match := MULTIPLICATION.search(line)) and int(match[1], 16) & 0xFFFFFFFF in CONSTANTS
    ]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", type=int, choices=TARGETS, help="default: 90 (repeatable)")
    parser.add_argument("--sites", type=int, default=3, metavar="N", help="state sites that draw (default: 3)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="CHECKOUT", help="whose kernels to count in")
    options = parser.parse_args()
    nvcc = find_nvcc()
    nvdisasm = find_nvdisasm(nvcc)
    flags = (*(flag for flag in FLAGS if not flag.startswith("-I")), f"-I{options.root.resolve() / 'csrc'}")
    print(f"{options.sites} state sites; multiplications of Philox that a warp issues")
    for target in options.target or [90]:
        for source in SOURCES:
            with tempfile.TemporaryDirectory() as folder:
                cubin = Path(folder, "kernel.cubin")
                path = options.root / "csrc/cuda" / source
                run(nvcc, *flags, f"-arch=sm_{target}", "-cubin", path, "-o", cubin)
                listed = kernels(run(nvdisasm, "-c", cubin))
            names = short_names(list(listed))
            for symbol, lines in sorted(listed.items(), key=lambda item: names[item[0]]):
                of_warp, units = count(lines), units_of(names[symbol])
                issued = of_warp.issued(options.sites, units)
                print(
                    f"sm_{target} {names[symbol]}: {issued} for {units} units, {issued / units:g} a unit, "
                    f"and {of_warp.tie} at a tie"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
