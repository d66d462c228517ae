"""What a call costs beside its arithmetic: one step beside torch.nn's, and the layers of code that it goes through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import functional, ops
from fused_rnn_dropout.rnn_base import RegularizedRNN

from . import onnx_runtime
from .contenders import RATES, layer
from .measure import Effort, Interval, median_of, ratio_of
from .report import measured_on, spread, with_misses
from .shapes import Shape, cell_of
from .tables import table

BEGIN, END = "<!-- call:begin -->", "<!-- call:end -->"
SITES = ("weight_dropout", "zoneout_h")
"""Those of the layers that are called: one that is off in eval, and one that acts there."""

UNITS, BATCHES = (32, 128, 256, 512), (1, 4, 16)
TASKS = ("eval", "train")
"""Under no_grad; forward and backward with masks on."""

BAR, ONNX_BAR = 1.05, 1.6
"""Of torch.nn's time; and of ONNX Runtime's, for one row of 512 units in eval."""
_BURST = 10
"""Calls that are timed together: one alone is as short as the clock's own call is."""


class Step(NamedTuple):
    """One step of a cell.

    ``ours``, ``theirs``: seconds of a call, and of torch.nn's; ``over``: the ratio of the two; ``over_onnx``: that to
    ONNX Runtime's, None where that was not measured.
    """

    cell: str
    task: str
    shape: Shape
    rounds: int
    ours: Interval
    theirs: Interval
    over: Interval
    over_onnx: Interval | None

    def missed(self) -> Iterator[str]:
        """What lies above its bar, in words."""
        named = f"{self.cell} {self.task}, H {self.shape.units}, B {self.shape.batch}"
        if round(self.over.value, 2) > BAR:  # as it is printed
            yield f"{named}: {spread(self.over)}"
        if self.over_onnx and (self.shape.units, self.shape.batch) == (512, 1) and self.over_onnx.value > ONNX_BAR:
            yield f"{named}, over ONNX Runtime: {spread(self.over_onnx)}"


def one_step(units: int, batch: int) -> Shape:
    return Shape(f"step-{units}-{batch}", 1, batch, units, units, "other", "one step")


def _ours(cell: str, shape: Shape) -> nn.Module:
    return layer(frd, cell, shape, **{name: RATES[name] for name in SITES})


def _inputs(cell: str, shape: Shape) -> tuple[Any, Any]:
    state = torch.zeros(1, shape.batch, shape.units)
    return torch.randn(1, shape.batch, shape.inputs), (state, state) if cell_of(cell).has_c else state


def _burst(rnn: nn.Module, task: str, x: Any, hx: Any) -> Callable[[], None]:
    def call() -> None:
        y, _ = rnn(x, hx)
        if task == "train":
            y.sum().backward()

    rnn.train(task == "train")
    return _many(call, task == "train")


def _many(call: Callable[[], Any], grad: bool = False) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(grad):
            for _ in range(_BURST):
                call()

    return run


def measure(cell: str, task: str, shape: Shape, effort: Effort) -> Step:
    """Times one step of ours beside one of torch.nn's, in every round; in eval ONNX Runtime's too, where that is."""
    x, hx = _inputs(cell, shape)
    runs = {"ours": _ours(cell, shape), "theirs": layer(nn, cell, shape)}
    timed = {name: _burst(rnn, task, x, hx) for name, rnn in runs.items()}
    if task == "eval" and not onnx_runtime.missing():
        timed["onnx"] = _many(onnx_runtime.call_of(layer(frd, cell, shape), x, hx))
    found = effort.paired(timed)
    each = {name: [seconds / _BURST for seconds in taken] for name, taken in found.items()}
    over = ratio_of(each["ours"], each["theirs"])
    over_onnx = ratio_of(each["ours"], each["onnx"]) if "onnx" in each else None
    ours, theirs = median_of(each["ours"]), median_of(each["theirs"])
    return Step(cell, task, shape, len(each["ours"]), ours, theirs, over, over_onnx)


# --------------------------------------------------------------------------------------------------------------------
# Layer by layer of code
# --------------------------------------------------------------------------------------------------------------------


def _caught(owner: Any, name: str, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``owner.name`` is called with while ``run`` runs."""
    original, caught = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        caught.append((args, kwargs))
        return original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        run()
    finally:
        setattr(owner, name, original)
    (found,) = caught
    return found


ROOMS = {
    "module": "`nn.Module`, `modules.py`, `rnn_base.py`: are the weights the same, shapes of what is given",
    "held": "`rnn_base.py`, `held.py`, `thresholds.py`: what is held, which rates",
    "checks": "`prepare.py`: sizes, dtypes, backend, schedule; compared with those of the last call",
    "randomness": "`functional.py`, `arguments.py`: counters, the random pair",
    "states": "`functional.py`: states as the operator takes them, and back",
    "autograd": "`ops.py`: whether there is a gradient, and the node that carries it",
    "binding": "torch's boxing, `csrc/bind/`: arguments to C++, their checks, memory",
    "kernel": "`csrc/cpu/`: arithmetic and masks",
}
"""The layers of code of a call, from the outside to the inside."""


def rooms(cell: str, task: str, threads: int = 1, rounds: int = 200) -> dict[str, float]:
    """Microseconds of a forward of 32 units, B 1, by the layer of code that spends them, the total, and torch.nn's.

    Each part is called by itself with what it is given in a call, many times in a row; what it spends is its time less
    that of the parts inside it. ``train`` is the forward alone, with masks and a graph.
    """
    x, hx = _inputs(cell, shape := one_step(32, 1))
    rnn, theirs = (made.train(task == "train") for made in (_ours(cell, shape), layer(nn, cell, shape)))
    kernel = ops.family("cpu")
    with torch.set_grad_enabled(task == "train"):
        parts: dict[str, Callable[[], Any]] = {"module": lambda: rnn(x, hx), "torch.nn": lambda: theirs(x, hx)}
        for name, owner, function in (
            ("held", RegularizedRNN, "_run"),
            ("randomness", functional, "run"),
            ("checks", functional, "prepare"),
            ("states", functional, "_stack"),
            ("autograd", functional, "_fused_layer"),
        ):
            args, kwargs = _caught(owner, function, parts["module"])
            parts[name] = _again(getattr(owner, function), args, kwargs)
        call = _arguments_of_layer(kernel, parts["module"])
        forward = torch.ops.fused_rnn_dropout.layer_forward if task == "train" else torch.ops.fused_rnn_dropout.layer
        parts["binding"] = _again(_below_autograd(forward.default), call, {})
        taken = _fastest(parts, Effort(threads, rounds))
        taken["kernel"] = _inside_kernels(parts["binding"], rounds)
    spent = {
        "module": taken["module"] - taken["held"],
        "held": taken["held"] - taken["randomness"],
        "checks": taken["checks"],
        "randomness": taken["randomness"] - taken["checks"] - taken["states"],
        "states": taken["states"] - taken["autograd"],
        "autograd": taken["autograd"] - taken["binding"],
        "binding": taken["binding"] - taken["kernel"],
        "kernel": taken["kernel"],
    }
    return {**spent, "total": taken["module"], "torch.nn": taken["torch.nn"]}


def _again(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def _below_autograd(operator: Any) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def _arguments_of_layer(kernel: ops.Family, run: Callable[[], Any]) -> tuple[Any, ...]:
    """What the operator of the layer is given."""
    caught: list[tuple[Any, ...]] = []

    def call(*args: Any) -> Any:
        caught.append(args)
        return kernel.autograd_of_layer(*args)

    original = ops.family
    ops.family = lambda backend: kernel._replace(autograd_of_layer=call)
    try:
        run()
    finally:
        ops.family = original
    return caught[0]


def _fastest(parts: dict[str, Callable[[], Any]], effort: Effort) -> dict[str, float]:
    """Microseconds of a call of each part: the fastest burst of many, in turn."""

    def burst(part: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(_BURST):
                part()

        return run

    taken = effort.paired({name: burst(part) for name, part in parts.items()})
    return {name: 1e6 * min(seconds) / _BURST for name, seconds in taken.items()}


def _inside_kernels(part: Callable[[], Any], rounds: int) -> float:
    """Microseconds that a call spends in the CPU's kernels, as they count them."""
    least = float("inf")
    for _ in range(rounds):
        ops.cpu_profile(True)
        part()
        least = min(least, sum(ops.cpu_profile(False).values()))
    return 1e6 * least


# --------------------------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------------------------


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.3g}" if seconds < 1e-3 else f"{1e6 * seconds:.0f}"


def text_of(
    profiles: dict[tuple[str, str], dict[str, float]], steps: Sequence[Step], threads: int, command: str
) -> str:
    """Both tables, what they were measured on, and what lies above its bar, in markdown."""
    names = [f"{cell} {'forward, train' if task == 'train' else task}" for cell, task in profiles]
    whole = {"total": "the whole call", "torch.nn": "torch.nn's, without any site"}
    apart = [(said, *(f"{taken[room]:.1f}" for taken in profiles.values())) for room, said in (ROOMS | whole).items()]
    lines = [
        (
            step.cell,
            step.task,
            str(step.shape.units),
            str(step.shape.batch),
            _microseconds(step.ours.value),
            _microseconds(step.theirs.value),
            spread(step.over),
            spread(step.over_onnx) if step.over_onnx else "",
        )
        for step in steps
    ]
    missed = [text for step in steps for text in step.missed()]
    return "\n\n".join([
        f"{measured_on(threads, command)}. With {' and '.join(SITES)}.",
        "Microseconds of one call of 32 units, B 1, T 1, by layer of code, each by itself and at its fastest:",
        table(("", *names), apart),
        "One step beside torch.nn's, which has no site: medians, and their ratio with a 95 % interval. *eval* is under "
        "no_grad, *train* forward and backward. ONNX Runtime runs the layer without sites, its weights packed once.",
        table(("", "task", "H", "B", "ours, µs", "torch.nn, µs", "ours / torch.nn", "ours / ONNX Runtime"), lines),
        with_misses(f"Bars: {BAR:.2f}; over ONNX Runtime, for one row of 512 units, {ONNX_BAR:.1f}", missed),
        f"Made by `{command}`.",
    ])  # fmt: skip


def call(cells: Sequence[str], units: Sequence[int], batches: Sequence[int], effort: Effort, command: str) -> str:
    """Measures all of it; what :func:`text_of` says."""
    effort.begin()
    profiles = {
        (cell, task): rooms(cell, task, effort.threads, effort.rounds or 200) for task in TASKS for cell in cells
    }
    steps = []
    for task in TASKS:
        for cell in cells:
            for width in units:
                for batch in batches:
                    steps.append(step := measure(cell, task, one_step(width, batch), effort))
                    print(f"{cell} {task}, H {width}, B {batch}: {spread(step.over)}", file=sys.stderr, flush=True)
    return text_of(profiles, steps, effort.threads, command)
