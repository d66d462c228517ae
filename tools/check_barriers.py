"""Looks at the PTX of Triton's sequence kernels: a barrier stands on every way from a step into the next one.

    python tools/check_barriers.py                          # every kernel, target and number of warps
    python tools/check_barriers.py -k lstm --warps 4        # some; there are --target and --units too
    python tools/check_barriers.py --sample 12              # a sample, another with each commit

A step hands its state to the next one through global memory, and other threads read it than wrote it
(fused_rnn_dropout/triton/sequence.py). A run without a GPU does not see a barrier that is missing: the interpreter has
one thread. So the ways are walked in the compiled code, as barriers.py says.

Exit status 1 where a barrier is missing. It compiles for NVIDIA's targets, whose PTX it reads, and needs no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Collection
from typing import NamedTuple

import barriers
import compile_triton
import ptx
import triton
from sampling import commit, sample
from triton.backends.compiler import GPUTarget

WARPS = (1, 2, 4, 8)
UNITS = (200, compile_triton.SMALL.units)
"""Widths of a layer: of several blocks of units, and of one, of which a compiler may make no loop."""
OPERANDS = {"forward": {"read", "h"}, "backward": {"dgates", "dh"}}
"""What each way carries through memory from step to step, by the names of its arguments: the least that is found."""


class Work(NamedTuple):
    case: compile_triton.Case
    target: str
    warps: int
    units: int

    @property
    def kind(self) -> str:
        """Cell and way."""
        cell, _, way = self.case.name.split()[:3]
        return f"{cell} {way}"

    def __str__(self) -> str:
        return f"{self.target} {self.case.name}, {self.units} units, {self.warps} warps"


def all_work(targets: Collection[str], warps: Collection[int], units: Collection[int]) -> list[Work]:
    cases = [case for case in compile_triton.cases() if " sequence " in case.name]
    return [
        Work(case, target, *sizes)
        for case in cases
        for target in case.targets
        if target in targets
        for sizes in itertools.product(warps, units)
    ]


def check(work: Work) -> barriers.Finding:
    """Of a kernel of ours: pointers by the names of its arguments."""
    case = work.case._replace(constants={**work.case.constants, "H": work.units})
    source = compile_triton.source_of(case)
    target = GPUTarget("cuda", int(work.target.split(":")[1]), barriers.WARP)
    compiled = triton.compile(source, target=target, options={**case.options, "num_warps": work.warps})
    try:
        (kernel,) = ptx.kernels(compiled.asm["ptx"])
        found = barriers.look_at(kernel)
    except ValueError as error:
        return barriers.Finding(set(), [str(error)])
    if kernel.threads != barriers.WARP * work.warps:
        return barriers.Finding(set(), [f"{kernel.threads} threads, not {work.warps} warps"])
    # Constants are no parameters of the machine code; behind the others Triton has some of its own.
    given = [name for name, kind in source.signature.items() if kind != "constexpr"]
    names = dict(zip(kernel.parameters, given, strict=False))
    carried = {names.get(pointer, pointer) for pointer in found.carried}
    wrong = list(found.wrong)
    for pointer, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        wrong = [sentence.replace(pointer, name) for sentence in wrong]
    if missing := OPERANDS[work.kind.split()[1]] - carried:
        wrong.append(f"carries no {', '.join(sorted(missing))} through memory, so that this check saw nothing")
    return barriers.Finding(carried, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=compile_triton.CUDA, help="default: all (repeatable)")
    parser.add_argument("--warps", action="append", type=int, choices=WARPS, help="default: all (repeatable)")
    parser.add_argument("--units", action="append", type=int, choices=UNITS, help="default: both (repeatable)")
    parser.add_argument("-k", metavar="TEXT", default="", help="only kernels whose names contain TEXT")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="N of them, with each cell and way, target and warps at least once"
    )
    parser.add_argument("--seed", metavar="TEXT", help="of the sample (default: the hash of the commit)")
    options = parser.parse_args()
    if options.sample is not None and options.sample < 1:
        parser.error("--sample should be at least 1")
    every = all_work(options.target or compile_triton.CUDA, options.warps or WARPS, options.units or UNITS)
    work = [one for one in every if options.k in one.case.name]
    if not work:
        parser.error(f"no kernel has {options.k!r} in its name")
    if options.sample:
        seed, whole = options.seed or commit(), len(work)
        work = sample(work, options.sample, seed, lambda one: (one.kind, one.target, one.warps, one.units))
        print(f"a sample of {len(work)} of {whole}: --sample {options.sample} --seed {seed}; without it all of them")
    missing, begin = 0, time.monotonic()
    for number, one in enumerate(work, 1):
        found = check(one)
        missing += bool(found.wrong)
        said = "; ".join(found.wrong) or f"a barrier between steps, for {', '.join(sorted(found.carried))}"
        print(f"[{number}/{len(work)} {time.monotonic() - begin:.0f} s] {one}: {said}", flush=True)
    print(f"{len(work)} kernels: {f'WRONG in {missing}' if missing else 'a barrier on every way into the next step'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
