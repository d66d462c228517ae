"""Whether a barrier stands on every way from a step of a kernel into the next one, from the kernel's PTX.

The loop over steps is the outermost loop in which memory behind one pointer is both read and written. From each access
of such memory every path is followed; where it comes to one of the next step, and one of the two writes, it must have
passed a barrier of all threads.

Only barriers of the loop over steps itself count, and not those of the loops inside it: a compiler places these for
its own use of shared memory, and takes them away again with its next release. Which elements an access reads or writes
is not known here: within a step, where blocks of units follow one another, none is asked to wait for another.
"""

from __future__ import annotations

from typing import NamedTuple

import ptx

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
