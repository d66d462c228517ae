"""Counts how many turns of shared memory the products of Triton's sequence kernels take, and how many they need.

    python tools/count_banks.py [-k TEXT] [--target cuda:90] [--units N] [--root CHECKOUT]

Shared memory has 32 banks of 4 bytes: in one turn a warp reads or writes one word of each, and two words of one bank
take two turns. For each kernel the accesses in its innermost loop, over blocks of U, are taken from the PTX, their
addresses are computed for each lane of each warp, and their turns are counted, beside the fewest that as many bytes
can take. It also says how many bytes a thread's access of global memory in that loop moves. An address that is no
function of the thread's number and of constants is an error. --root counts in another checkout.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ptx
from sampling import ROOT

BANKS, WORD, LANES = 32, 4, 32
MASK = {"b16": 16, "u16": 16, "s16": 16, "b32": 32, "u32": 32, "s32": 32, "b64": 64, "u64": 64, "s64": 64}

OPERATIONS: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,  # values are held as unsigned
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "not": lambda a: ~a,
    "selp": lambda a, b, p: a if p else b,
    "bfe": lambda a, start, count: a >> start & (1 << count) - 1,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "lo": lambda a, b: a < b,
}  # fmt: skip


class Addresses:
    """The addresses of a kernel's accesses, for a thread.

    What is set more than once, as a counter of a loop, has the first of its values: the rest of them move all lanes
    together.
    """

    def __init__(self, kernel: ptx.Kernel) -> None:
        self.set_by: dict[str, ptx.Instruction] = {}
        for one in kernel.instructions():
            target = one.operands.split(",")[0].strip()
            if one.parts[0] in (*OPERATIONS, "setp") and not one.predicated:
                self.set_by.setdefault(target, one)

    def value(self, operand: str, thread: int, known: dict[str, int]) -> int:
        """
        Raises:
            ValueError: it depends on something else than the thread.
        """
        operand = operand.strip()
        if operand == "%tid.x":
            return thread
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", operand):
            return int(operand, 0)
        if not operand.startswith("%"):
            return 0  # a name of shared memory, whose beginning is aligned
        if operand not in known:
            known[operand] = self._compute(operand, thread, known)
        return known[operand]

    def _compute(self, register: str, thread: int, known: dict[str, int]) -> int:
        one = self.set_by.get(register)
        if one is None:
            raise ValueError(f"{register} is not computed from the thread's number")
        values = [self.value(operand, thread, known) for operand in one.operands.split(",")[1:]]
        if one.parts[0] == "setp":
            return int(COMPARISONS[one.parts[1]](*values))
        result = OPERATIONS[one.parts[0]](*values)
        return result & (1 << MASK.get(one.parts[-1], 1)) - 1

    def of(self, one: ptx.Instruction, thread: int) -> int:
        register, _, offset = re.findall(r"\[([^\]]*)\]", one.operands)[0].partition("+")
        return self.value(register, thread, {}) + int(offset.strip() or "0", 0)


def bytes_of(one: ptx.Instruction) -> int:
    """Of a thread's access."""
    if one.parts[0] == "cp":
        return int(one.operands.split(",")[2].strip(), 0)
    count = next((int(part[1]) for part in one.parts if re.fullmatch(r"v[248]", part)), 1)
    return count * int(re.findall(r"\d+", one.parts[-1])[0]) // 8


def turns(addresses: list[int], size: int) -> int:
    """Of a warp's access of ``size`` bytes a lane: wide ones go in parts, of 8 lanes of 16 bytes or 16 of 8."""
    lanes = LANES * WORD // max(size, WORD)
    found = 0
    for first in range(0, len(addresses), lanes):
        words = {at // WORD + word for at in addresses[first : first + lanes] for word in range(-(-size // WORD))}
        found += max(Counter(word % BANKS for word in words).values())
    return found


def fewest(addresses: list[int], size: int) -> int:
    """Turns for as many different bytes."""
    words = {at // WORD + word for at in addresses for word in range(-(-size // WORD))}
    return -(-len(words) // BANKS)


class Found(NamedTuple):
    """Of a kernel's innermost loop, all warps together."""

    taken: int
    needed: int
    wide: Counter[int]  # accesses of global memory by the bytes of a thread

    @property
    def ratio(self) -> float:
        return self.taken / self.needed


def innermost(kernel: ptx.Kernel, depth: int) -> list[ptx.Instruction]:
    """What is in at least ``depth`` loops."""
    loops = ptx.components(range(len(kernel.blocks)), kernel.follows)
    for _ in range(depth - 1):
        loops = [inner for blocks in loops for inner in ptx.loop_of(kernel, blocks).inner]
    return [one for blocks in loops for block in sorted(blocks) for one in kernel.blocks[block]]


def look_at(kernel: ptx.Kernel, depth: int = 3) -> Found:
    """Steps, blocks of units, blocks of a product: the third loop is that of the products."""
    addresses = Addresses(kernel)
    taken = needed = 0
    wide: Counter[int] = Counter()
    for one in innermost(kernel, depth):
        shared = [part for part in one.parts if part.startswith("shared")]
        if one.loads or one.stores:
            wide[bytes_of(one)] += 1
        if not shared:
            continue
        size = 16 if "matrix" in one.parts[0] else bytes_of(one)
        for warp in range(0, kernel.threads, LANES):
            lanes = range(warp, warp + LANES)
            if "matrix" in one.parts[0]:  # each 8 lanes bring the rows of a matrix
                lanes = range(
                    warp, warp + 8 * next(int(part[1]) for part in one.parts if re.fullmatch(r"x[124]", part))
                )
            at = [addresses.of(one, thread) for thread in lanes]
            taken += turns(at, size)
            needed += fewest(at, size)
    if not needed:
        raise ValueError(f"{kernel.name}: nothing goes through shared memory in loop number {depth}")
    return Found(taken, needed, wide)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="TEXT", default="", help="only kernels whose names contain TEXT")
    parser.add_argument("--target", default="cuda:90", help="default: %(default)s")
    parser.add_argument("--units", type=int, default=200, help="width of the layer (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="CHECKOUT")
    options = parser.parse_args()
    sys.path.insert(0, str(options.root.resolve()))

    import compile_triton
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", int(options.target.split(":")[1]), LANES)
    print(f"{options.units} units, {options.target}; of the loop over blocks of U, all warps of a program")
    print(f"{'kernel':<36} turns  needed  ratio   bytes of a thread's access of global memory: how many")
    for case in compile_triton.cases():
        if " sequence " not in case.name or options.k not in case.name or options.target not in case.targets:
            continue
        case = case._replace(constants={**case.constants, "H": options.units})
        compiled = triton.compile(compile_triton.source_of(case), target=target, options=case.options)
        found = look_at(*ptx.kernels(compiled.asm["ptx"]))
        wide = ", ".join(f"{size}: {count}" for size, count in sorted(found.wide.items()))
        print(f"{case.name:<36} {found.taken:5} {found.needed:7}  {found.ratio:5.2f}   {wide}", flush=True)


if __name__ == "__main__":
    main()
