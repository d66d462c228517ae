"""Looks at the machine code of csrc/cuda/exchange.h: every poll is a strong load in a loop, 128 bits wide where meant.

    python tools/check_polls.py [--kernels] [--target SM ...] [SOURCE.cu]

A compiler may make one load of a loop of weak loads, and has (docs/persistent.md); then a kernel takes what it finds
first, or hangs. tests/cuda/exchange_probe.cu has each form alone in a kernel, in which polls are the only loops. Exit
status 1 where a form has not what ``FORMS`` asks. --kernels looks at the kernels of the persistent schedule instead:
their polls are inside the loop over steps, and they have products on tensor cores. Needs nvcc and nvdisasm, as
tools/compile_cuda.py does, and runs nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import compile_cuda

PROBE = compile_cuda.ROOT / "tests/cuda/exchange_probe.cu"
KERNELS = compile_cuda.ROOT / "tests/cuda/exchange.cu"
"""All of the exchange in kernels of the tests, which must compile for a GPU too."""
TARGETS = [target for target in compile_cuda.TARGETS if target >= 80]


class Form(NamedTuple):
    """What the machine code of one form must have, at least, and whether it may have fences."""

    polls: int
    """Strong loads of 128 bits in a loop."""
    waits: int
    """Strong loads of 32 bits, of a counter or a flag, in a loop."""
    depth: int
    """How many loops such a load is in: a flag's poll is inside the loop over flags."""
    weak: int
    """Weak loads of 128 bits. No form has others."""
    fences: bool


FORMS = {
    "Ring<8, true>": Form(polls=2, waits=1, depth=1, weak=0, fences=True),
    "Ring<2, false>": Form(polls=2, waits=0, depth=1, weak=0, fences=False),
    "Flags": Form(polls=0, waits=1, depth=2, weak=2, fences=True),
}


class Instruction(NamedTuple):
    opcode: str
    depth: int
    """The number of loops that it is in."""


def kernels(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """The instructions of each kernel, by its mangled name. A loop is what a branch backwards goes over."""
    for part in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.M)[1:]:
        labels: dict[str, int] = {}
        found: list[tuple[str, str]] = []
        for line in part.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label[1]] = len(found)
            elif one := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
                found.append((one[1], one[2]))
        # Not that of a branch to itself, which stands behind a kernel's end.
        loops = [(labels[target[1]], i) for i, (opcode, rest) in enumerate(found)
                 if opcode.startswith("BRA") and (target := re.search(r"`\((\.L_x_\d+)\)", rest))
                 and labels[target[1]] < i]  # fmt: skip
        depths = [sum(begin <= i <= end for begin, end in loops) for i in range(len(found))]
        yield (
            re.split(r"[,\s]", part, maxsplit=1)[0],
            [Instruction(opcode, depth) for (opcode, _), depth in zip(found, depths, strict=True)],
        )


def faults(instructions: list[Instruction], form: Form) -> list[str]:
    """What a kernel lacks of its form, or has too much."""
    loads = [one for one in instructions if one.opcode.startswith(("LDG.", "LD."))]
    strong = [one for one in loads if ".STRONG.GPU" in one.opcode]
    wide = [one for one in loads if ".128" in one.opcode.replace("STRONG", "")]
    counts = {
        "strong loads of 128 bits in a loop": (sum(one in wide and one.depth >= 1 for one in strong), form.polls),
        "strong loads of 32 bits in a loop": (
            sum(one not in wide and one.depth >= form.depth for one in strong), form.waits),
    }  # fmt: skip
    wrong = [f"{found} {what}, not {least}" for what, (found, least) in counts.items() if found < least]
    weak = [one for one in loads if one not in strong]
    if len(weak) != form.weak or any(one not in wide for one in weak):
        wrong.append(f"{len(weak)} weak loads, {' '.join(one.opcode for one in weak)}, not {form.weak} of 128 bits")
    if any(one.opcode.startswith("LD") and ".STRONG.SYS" in one.opcode for one in instructions):
        wrong.append("a load of the whole system's scope")
    fences = sum(one.opcode.startswith("MEMBAR") for one in instructions)
    if bool(fences) != form.fences:
        wrong.append(f"{fences} fences")
    return wrong


PERSISTENT = [compile_cuda.ROOT / f"csrc/cuda/persistent_{name}_bf16.cu" for name in ("forward", "backward")]


def kernel_faults(instructions: list[Instruction]) -> list[str]:
    """What a kernel of the persistent schedule lacks: polls are in a loop of their own, inside that over steps."""
    strong = [one for one in instructions if one.opcode.startswith(("LDG.", "LD.")) and ".STRONG.GPU" in one.opcode]
    stores = [one for one in instructions if one.opcode.startswith(("STG.", "ST.")) and ".STRONG.GPU" in one.opcode]
    polls = [one for one in strong if ".128" in one.opcode]
    wrong = [] if polls else ["no strong loads of 128 bits"]
    wrong += [f"{len(shallow)} strong loads in no loop of their own"
              for shallow in [[one for one in strong if one.depth < 2]] if shallow]  # fmt: skip
    if not stores or any(one.depth < 1 for one in stores):
        wrong.append("no strong stores in the loop over steps")
    if not any(one.opcode.startswith("HMMA") for one in instructions):
        wrong.append("no products on tensor cores")
    if any(one.opcode.startswith(("LDL", "STL")) for one in instructions):
        wrong.append("local memory")
    return wrong


def check_kernels(target: int, folder: Path) -> dict[str, list[str]]:
    """The faults of each kernel of the persistent schedule on a target."""
    nvcc = compile_cuda.find_nvcc()
    found = {}
    for source in PERSISTENT:
        cubin = folder / f"{source.stem}.{target}.cubin"
        compile_cuda.run(nvcc, *compile_cuda.FLAGS, f"-arch=sm_{target}", "-cubin", source, "-o", cubin)
        listed = dict(kernels(compile_cuda.run(compile_cuda.find_nvdisasm(nvcc), "-c", cubin)))
        names = compile_cuda.short_names(list(listed))
        found |= {names[symbol]: kernel_faults(instructions) for symbol, instructions in listed.items()}
    return found


def check(source: Path, target: int, folder: Path) -> dict[str, list[str]]:
    """The faults of each probe on a target."""
    nvcc = compile_cuda.find_nvcc()
    cubin = folder / f"{target}.cubin"
    compile_cuda.run(nvcc, *compile_cuda.FLAGS, f"-arch=sm_{target}", "-cubin", KERNELS, "-o", cubin)
    compile_cuda.run(nvcc, *compile_cuda.FLAGS, f"-arch=sm_{target}", "-cubin", source, "-o", cubin)
    listed = dict(kernels(compile_cuda.run(compile_cuda.find_nvdisasm(nvcc), "-c", cubin)))
    names = compile_cuda.short_names(list(listed))
    found = {}
    for symbol, instructions in listed.items():
        (form,) = [form for name, form in FORMS.items() if f"<{name}" in names[symbol]]
        found[names[symbol]] = faults(instructions, form)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=PROBE, metavar="SOURCE.cu")
    parser.add_argument("--target", action="append", type=int, choices=TARGETS, help="this architecture (repeatable)")
    parser.add_argument("--kernels", action="store_true", help="the kernels of the persistent schedule")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for target in options.target or TARGETS:
            if options.kernels:
                found = check_kernels(target, Path(folder))
            else:
                found = check(options.source.resolve(), target, Path(folder))
            for name, wrong in sorted(found.items()):
                failed |= bool(wrong)
                print(f"sm_{target} {name}: {'; '.join(wrong) or 'as it should be'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
