"""Where the time of the library's own calls goes, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from fused_rnn_dropout import ops

from .contenders import BY_NAME, runner
from .measure import Effort
from .shapes import Shape
from .tables import table


def profile(cells: Sequence[str], shapes: Sequence[Shape], task: str, threads: int, rounds: int = 7) -> str:
    """A table of milliseconds by phase, medians over paired rounds, without sites and with all of them.

    ``cell`` with all sites less ``cell`` without is what the masks of the state cost, ``wait`` what threads lose at the
    end of a step. ``rest`` is what happens outside the kernels: Python, autograd, allocation.
    """
    Effort(threads).begin()
    rows = []
    for cell in cells:
        for shape in shapes:
            runs = {name: runner(BY_NAME[name].build(cell, shape), shape, task) for name in ("none", "all")}
            found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
            for index in range(rounds + 1):
                for name in list(runs) if index % 2 == 0 else reversed(list(runs)):
                    ops.cpu_profile(True)
                    start = time.perf_counter()
                    runs[name]()
                    total = time.perf_counter() - start
                    phases = ops.cpu_profile(False)
                    if index:  # the first call warms up
                        found[name].append({"total": total, **phases, "rest": total - sum(phases.values())})
            for name, calls in found.items():
                values = {key: 1e3 * median(call[key] for call in calls) for key in calls[0]}
                rows.append((cell, shape.name, name, *(f"{value:.2f}" for value in values.values())))
    return table(("", "shape", "sites", "total, ms", *ops.PHASES, "rest"), rows)
