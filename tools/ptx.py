"""Kernels of a text of PTX: their instructions, as a graph of basic blocks, and whose memory each access goes to.

Of the instruction set this knows what a compiler gives out for a kernel without calls: branches to labels, accesses,
and that the first operand of everything else is where the result goes. What it could misread it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

ENDS = ("ret", "exit", "trap")
SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "param", "const")


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers, as ld.global.v4.b32
    operands: str
    predicated: bool
    number: int  # in the order of the text

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def loads(self) -> bool:
        """Whether it reads global memory, or memory of a space that is not named."""
        return self._global and self.parts[0] in ("ld", "atom", "cp")

    @property
    def stores(self) -> bool:
        return self._global and self.parts[0] in ("st", "atom", "red")

    @property
    def _global(self) -> bool:
        spaces = [part for part in self.parts if part in SPACES]
        if self.parts[0] == "cp":  # both spaces are named: where to, where from
            return spaces[-1:] == ["global"]
        return not spaces or spaces == ["global"]

    @property
    def address(self) -> str:
        """The registers of the address in global memory."""
        return re.findall(r"\[([^\]]*)\]", self.operands)[-1 if self.parts[0] == "cp" else 0]


@dataclass
class Kernel:
    name: str
    parameters: list[str]  # names
    pointers: set[str]  # those parameters that are declared as pointers
    threads: int  # of a block, 0 where the text does not say
    blocks: list[list[Instruction]] = field(default_factory=list)
    follows: list[set[int]] = field(default_factory=list)  # of each block, the blocks that may be next

    def instructions(self) -> Iterator[Instruction]:
        for block in self.blocks:
            yield from block

    def bases(self) -> dict[int, frozenset[str]]:
        """Of each access of global memory, by its number, the pointers that its address may be made of."""
        of: dict[str, frozenset[str]] = {}
        changed = True
        while changed:
            changed = False
            for one in self.instructions():
                target, source = _first_operand(one.operands)
                if one.parts[0] == "ld" and "param" in one.parts:
                    found = frozenset(name for name in re.findall(r"\[\s*([\w$]+)", source) if name in self.pointers)
                elif one.loads or one.stores or one.parts[0] in ("ld", "st", "bra", "setp"):
                    continue  # what memory holds is no pointer here
                else:
                    found = frozenset[str]().union(*(of.get(name, frozenset()) for name in _registers(source)))
                for name in _registers(target):
                    if not found <= of.get(name, frozenset()):
                        of[name] = of.get(name, frozenset()) | found
                        changed = True
        return {
            one.number: frozenset[str]().union(*(of.get(name, frozenset()) for name in _registers(one.address)))
            for one in self.instructions()
            if one.loads or one.stores
        }


def _registers(text: str) -> list[str]:
    """But for predicates, which hold no address."""
    return re.findall(r"%(?!p\d)\w+", text)


def _first_operand(operands: str) -> tuple[str, str]:
    """Where a result goes, which may be several registers in braces, and the rest."""
    match = re.match(r"\s*(\{[^}]*\}|[^,]*),?(.*)", operands, re.S)
    assert match
    return match[1], match[2]


def kernels(text: str) -> list[Kernel]:
    """
    Raises:
        ValueError: a kernel has calls or jumps through a table.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    pattern = r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{(.*?)^\}"
    return [_kernel(*match.groups()) for match in re.finditer(pattern, text, re.S | re.M)]


def _kernel(name: str, declared: str, head: str, body: str) -> Kernel:
    parameters = [parameter.split()[-1] for parameter in declared.split(",") if parameter.strip()]
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head)
    count = 0
    if threads:
        count = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1)
    pointers = {parameter.split()[-1] for parameter in declared.split(",") if ".ptr" in parameter}
    kernel = Kernel(name, parameters, pointers, count, [[]])
    labels: dict[str, int] = {}
    for number, statement in enumerate(_statements(body)):
        if statement.endswith(":"):
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            labels[statement[:-1]] = len(kernel.blocks) - 1
            continue
        match = re.match(r"(@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.S)
        if not match:
            raise ValueError(f"{name}: cannot read {statement!r}")
        one = Instruction(match[2], match[3], bool(match[1]), number)
        if one.parts[0] in ("call", "brx"):
            raise ValueError(f"{name}: {statement!r} leads to what is not followed")
        kernel.blocks[-1].append(one)
        if one.parts[0] in ("bra", *ENDS):
            kernel.blocks.append([])
    for index, block in enumerate(kernel.blocks):
        last = block[-1] if block else None
        after = {labels[last.operands.strip()]} if last and last.parts[0] == "bra" else set()
        goes_on = last is None or last.predicated or last.parts[0] not in ("bra", *ENDS)
        kernel.follows.append(after | ({index + 1} if goes_on and index + 1 < len(kernel.blocks) else set()))
    return kernel


def _statements(body: str) -> Iterator[str]:
    """Labels, with their colon, and instructions, without their semicolon."""
    for line in body.splitlines():
        line = line.strip()
        if line.startswith(".") or line in ("{", "}", ""):
            continue  # a directive, or a scope of registers
        if label := re.match(r"(\$?[A-Za-z_][\w$]*:)(?!:)", line):
            yield label[1]
            line = line[label.end() :].strip()
        for part in line.split(";"):
            part = part.strip()
            # A scope on one line, as inline assembly has them: its braces stand outside any operand.
            part = part.removeprefix("{").strip() if part.count("{") > part.count("}") else part
            part = part.removesuffix("}").strip() if part.count("}") > part.count("{") else part
            if part and not part.startswith("."):
                yield part


# --------------------------------------------------------------------------------------------------------------------
# Loops
# --------------------------------------------------------------------------------------------------------------------


def components(nodes: Collection[int], follows: list[set[int]]) -> list[set[int]]:
    """The loops in a part of a graph, not those inside them: the sets of nodes that reach each other."""
    reach: dict[int, set[int]] = {}
    for node in nodes:
        seen, stack = set[int](), [node]
        while stack:
            new = follows[stack.pop()] & set(nodes) - seen
            seen |= new
            stack.extend(new)
        reach[node] = seen
    found: list[set[int]] = []
    for node in nodes:
        if node in reach[node] and not any(node in loop for loop in found):
            found.append({other for other in reach[node] if node in reach[other]})
    return found


class Loop(NamedTuple):
    """A loop with one way in."""

    blocks: set[int]
    head: int
    inner: list[set[int]]  # the loops right inside it

    def inside(self, block: int) -> int | None:
        """The number of the inner loop that a block belongs to."""
        return next((number for number, blocks in enumerate(self.inner) if block in blocks), None)


def loop_of(kernel: Kernel, blocks: set[int]) -> Loop:
    heads = {
        after
        for before in range(len(kernel.blocks))
        if before not in blocks
        for after in kernel.follows[before] & blocks
    }
    if len(heads) != 1:
        raise ValueError(f"{kernel.name}: a loop with {len(heads)} ways in")
    (head,) = heads
    once = [after - {head} for after in kernel.follows]
    return Loop(blocks, head, components(blocks, once))
