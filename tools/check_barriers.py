"""Looks at the PTX of Triton's sequence kernels: a barrier stands on every way from a step into the next one.

    python tools/check_barriers.py                          # every kernel, target and number of warps
    python tools/check_barriers.py -k lstm --warps 4        # some; there are --target and --units too
    python tools/check_barriers.py --sample 12              # a sample, another with each commit

A step hands its state to the next one through global memory, and other threads read it than wrote it
(fused_rnn_dropout/triton/sequence.py). A run without a GPU does not see a barrier that is missing: the interpreter has
one thread. So the ways are walked here. The loop over steps is the outermost loop in which memory behind one pointer is
both read and written. From each access of such memory every path is followed; where it comes to one of the next step,
and one of the two writes, it must have passed a barrier of all threads.

Only barriers of the loop over steps itself count, and not those of the loops inside it: a compiler places these for
its own use of shared memory, and takes them away again with its next release. Which elements an access reads or writes
is not known here: within a step, where blocks of units follow one another, none is asked to wait for another.

Exit status 1 where a barrier is missing. It compiles for NVIDIA's targets, whose PTX it reads, and needs no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Collection
from typing import NamedTuple

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
WARP = 32


def is_barrier(one: ptx.Instruction, threads: int) -> bool:
    """Whether all threads of a block wait here for each other, and see what each has written before."""
    if one.predicated:
        return False
    if one.opcode == "bar.warp.sync":  # which a compiler takes where a block is one warp
        return threads == WARP and one.operands.strip() in ("-1", "0xffffffff", "0xFFFFFFFF", "4294967295")
    of_all = one.opcode in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.cta.sync", "barrier.cta.sync",
                            "barrier.cta.sync.aligned")  # fmt: skip
    return of_all and "," not in one.operands  # a second operand is a number of threads, maybe not of all


class Finding(NamedTuple):
    """What a kernel carries from step to step, by the names of its pointers, and what is wrong."""

    carried: set[str]
    wrong: list[str]


def look_at(kernel: ptx.Kernel) -> Finding:
    """
    Raises:
        ValueError: an access is of memory behind no known pointer, or no loop, or more than one, is that over steps.
    """
    of = kernel.bases()
    at = {one.number: block for block, ones in enumerate(kernel.blocks) for one in ones}
    accesses = [one for one in kernel.instructions() if one.number in of]
    for one in accesses:
        if not of[one.number]:
            raise ValueError(f"{kernel.name}: {one.opcode} {one.operands}: nobody knows whose memory that is")
    read = {pointer for one in accesses if one.loads for pointer in of[one.number]}
    written = {pointer for one in accesses if one.stores for pointer in of[one.number]}
    steps = []
    for blocks in ptx.components(range(len(kernel.blocks)), kernel.follows):
        inside = [one for one in accesses if at[one.number] in blocks]
        if {p for one in inside if one.loads for p in of[one.number]} & {
            p for one in inside if one.stores for p in of[one.number]
        }:
            steps.append(blocks)
    if len(steps) != 1:
        raise ValueError(f"{kernel.name}: {len(steps)} loops read and write the same memory, not one")
    loop, carried = ptx.loop_of(kernel, steps[0]), read & written
    wrong = []
    for one in accesses:
        if not of[one.number] & carried:
            continue
        if at[one.number] not in loop.blocks:
            wrong.append(f"{one.opcode} {one.operands}: an access of what is carried outside the loop over steps")
        if "nc" in one.parts:
            wrong.append(f"{one.opcode} {one.operands}: what a step has written does not reach such a load")
    wrong += [
        f"{one.opcode}: an asynchronous copy, which no barrier orders"
        for one in kernel.instructions()
        if "bulk" in one.parts or "tensor" in one.parts
    ]
    wrong += without_barrier(kernel, loop, of, at, [one for one in accesses if of[one.number] & carried])
    return Finding(carried, wrong)


def without_barrier(
    kernel: ptx.Kernel,
    loop: ptx.Loop,
    of: dict[int, frozenset[str]],
    at: dict[int, int],
    accesses: list[ptx.Instruction],
) -> list[str]:
    """Pairs of accesses of the same memory in two steps that no barrier orders, a sentence for each."""

    def stops(block: int) -> int | None:
        """Where in a block of the loop itself the first barrier stands."""
        if loop.inside(block) is not None:
            return None
        ones = kernel.blocks[block]
        return next((place for place, one in enumerate(ones) if is_barrier(one, kernel.threads)), None)

    barrier = {block: stops(block) for block in loop.blocks}
    wrong = []
    for first in accesses:
        home = at[first.number]
        if home not in loop.blocks:
            continue
        place = kernel.blocks[home].index(first)
        if loop.inside(home) is None and any(is_barrier(one, kernel.threads) for one in kernel.blocks[home][place:]):
            continue
        # (block, whether it may be of the next step): a way into another inner loop leaves the step too, as a compiler
        # may have put two steps into one turn of the loop.
        stack = [(after, after == loop.head) for after in kernel.follows[home] & loop.blocks]
        seen = set[tuple[int, bool]]()
        while stack:
            block, later = stack.pop()
            later = later or (loop.inside(block) is not None and loop.inside(block) != loop.inside(home)
                              and loop.inside(home) is not None)  # fmt: skip
            if (block, later) in seen:
                continue
            seen.add((block, later))
            for second in kernel.blocks[block][: barrier[block]] if later else ():
                both = of.get(second.number, frozenset()) & of[first.number]
                if both and (first.stores or second.stores):
                    wrong.append(
                        f"no barrier from {first.opcode} to {second.opcode} of the next step: {', '.join(sorted(both))}"
                    )
            if barrier[block] is None:
                stack += [(after, later or after == loop.head) for after in kernel.follows[block] & loop.blocks]
    return list(dict.fromkeys(wrong))


# --------------------------------------------------------------------------------------------------------------------
# Triton's kernels
# --------------------------------------------------------------------------------------------------------------------


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


def check(work: Work) -> Finding:
    """Of a kernel of ours: pointers by the names of its arguments."""
    case = work.case._replace(constants={**work.case.constants, "H": work.units})
    source = compile_triton.source_of(case)
    target = GPUTarget("cuda", int(work.target.split(":")[1]), WARP)
    compiled = triton.compile(source, target=target, options={**case.options, "num_warps": work.warps})
    try:
        (kernel,) = ptx.kernels(compiled.asm["ptx"])
        found = look_at(kernel)
    except ValueError as error:
        return Finding(set(), [str(error)])
    if kernel.threads != WARP * work.warps:
        return Finding(set(), [f"{kernel.threads} threads, not {work.warps} warps"])
    # Constants are no parameters of the machine code; behind the others Triton has some of its own.
    given = [name for name, kind in source.signature.items() if kind != "constexpr"]
    names = dict(zip(kernel.parameters, given, strict=False))
    carried = {names.get(pointer, pointer) for pointer in found.carried}
    wrong = list(found.wrong)
    for pointer, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        wrong = [sentence.replace(pointer, name) for sentence in wrong]
    if missing := OPERANDS[work.kind.split()[1]] - carried:
        wrong.append(f"carries no {', '.join(sorted(missing))} through memory, so that this check saw nothing")
    return Finding(carried, wrong)


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
