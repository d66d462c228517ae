"""Writes what tests/budgets/cuda.json says of a step's kernels, and of the persistent ones, into docs/gpu.md.

python tools/registers.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

from sampling import ROOT

sys.path.insert(0, str(ROOT))
from fused_rnn_dropout.bench.report import between
from fused_rnn_dropout.bench.tables import table

PAGE = ROOT / "docs/gpu.md"
BUDGETS = ROOT / "tests/budgets/cuda.json"
BEGIN, END = "<!-- registers:begin -->", "<!-- registers:end -->"
TARGETS = ("80", "90")
THREADS = 2048  # that a multiprocessor of these targets holds
STEP = re.compile(r"(forward|backward)_step_kernel<(Lstm|Gru), (\d), (true|false), (float|bfloat16)>")
PERSISTENT = re.compile(
    r"persistent_(forward|backward)_kernel<(Lstm|Gru), (float|bfloat16), (?:(\w+), )?PersistentTiles<(.*)> ?>"
)


def rows(budgets: dict) -> Iterator[list[str]]:
    for name, budget in budgets.items():
        if found := STEP.fullmatch(name):
            way, cell, units, together, values = found.groups()
            kernel, share = f"`{way}_step`", f"{units} units" + (", apart" if together == "false" else "")
        elif found := PERSISTENT.fullmatch(name):
            way, cell, values, words, tiles = found.groups()
            kernel, share = f"`persistent_{way}`", f"tiles {tiles}" + (f", {words} words" if words else "")
        else:
            continue
        what = [kernel, cell.upper(), values, share]
        for target in TARGETS:
            registers, blocks = (
                each[target] if isinstance(each, dict) else each for each in (budget["registers"], budget["blocks"])
            )
            what += [str(registers), f"{blocks} ({100 * blocks * budget['threads'] / THREADS:.0f} %)"]
        yield what


def page_of(budgets: dict) -> str:
    """The table."""
    head = ["kernel", "cell", "values", "of a thread"]
    for target in TARGETS:
        head += [f"sm_{target}: registers", "blocks"]
    return table(head, rows(budgets))


if __name__ == "__main__":
    between(PAGE, BEGIN, END, page_of(json.loads(BUDGETS.read_text())["kernels"]))
