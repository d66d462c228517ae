"""The schedules: how a backend runs a recurrence over time, best first, and the walk that chooses one.

A *schedule* is a row. It says why it cannot run some layers (``obstacle``) and why it would not pay (``worth``); the
first of a backend's rows that says neither is taken, and the last row of each takes everything. What an environment
variable asks for, or else what a table of the device's times names, goes before that. :func:`choose` walks
the rows once for each call; backward runs what its forward ran. ``docs/design.md`` says how a schedule is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import cudnn_library, onnx, persistent, schedule_table
from .cells import CELLS
from .cudnn import layers_at_once
from .cudnn_library import Weights
from .library import setting
from .sites import SITE, Plan, acting_in_eval

CUDNN = "cuDNN with masked weights"
PERSISTENT = "persistent"
ALTERNATING = "alternating"
SEQUENCE = "sequence"


class Layers(NamedTuple):
    """The layers of one call, as a schedule is asked about them.

    Attributes:
        masks_on: train or MC mode.
        recompute: whether less is kept for backward.
        input: (T, B, I), or packed (N, I).
        steps: T.
        packed: whether the input is packed.
        dtype: of the results.
        weights: of all layers and directions.
        batch: B.
    """

    plan: Plan
    masks_on: bool
    recompute: bool
    input: Tensor
    steps: int
    packed: bool
    dtype: torch.dtype
    weights: Weights
    batch: int


Question = Callable[[Layers], str | None]


def _nothing(layers: Layers) -> None:
    """The answer of a schedule that runs everything, and always pays; or that has no more to tell."""


class Schedule(NamedTuple):
    """One row.

    Attributes:
        number: what the operators of its backend take; 0 is the schedule that runs every layer.
        says: what it does, for ``explain``.
        obstacle: why it cannot run some layers; None where it can.
        worth: why it would not pay to run them so; None where it does.
        why: what speaks for it where nothing speaks against it.
        outer_sites: whether its layers mask what they read and write; elsewhere an operator does it around them.
        writes_between: whether the mask between two layers is on what the lower one writes, where its step's kernel has
            the number at hand; what a layer reads goes into products that are torch's, and would take a pass.
        only_asked: why it is taken only where the backend's environment variable asks for it or a table of the
            device's times names it; empty where it is taken by itself too.
        asked_as: what that variable and such tables call it; its name where empty.
        tells: what else ``explain`` says of layers that it runs.
    """

    name: str
    number: int
    says: str
    obstacle: Question = _nothing
    worth: Question = _nothing
    why: str = ""
    outer_sites: bool = False
    writes_between: bool = False
    only_asked: str = ""
    asked_as: str = ""
    tells: Question = _nothing


class Choice(NamedTuple):
    """The schedule of a call, why it is taken, and what became of each schedule that was looked at, by name."""

    schedule: Schedule
    why: str
    walk: Mapping[str, str]


# --------------------------------------------------------------------------------------------------------------------
# cuDNN with masked weights
# --------------------------------------------------------------------------------------------------------------------


def _acting_inside(plan: Plan, masks_on: bool) -> tuple[str, ...]:
    """The configured sites that change what a step computes now, the weights' apart."""
    names = plan.names if masks_on else acting_in_eval(plan)
    return tuple(name for name in names if SITE[name].inside_step)


def _fake(input: Tensor) -> bool:
    """Whether a tracer runs this without numbers: cuDNN could not be asked for its layout then."""
    active = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return active is not None or isinstance(input, FakeTensor)


def _cudnn_obstacle(layers: Layers) -> str | None:
    plan, weights = layers.plan, layers.weights
    inside = _acting_inside(plan, layers.masks_on)
    if inside:
        return f"{', '.join(inside)} act{'s' if len(inside) == 1 else ''} inside a step"
    if layers.recompute:
        return "recompute=True, and cuDNN keeps what it likes"
    if torch.compiler.is_compiling() or _fake(layers.input):
        return "a tracer would unroll torch's own layers"
    if onnx.exporting():
        return "ONNX has no node for masked weights"
    together = layers_at_once(plan, layers.masks_on, len(weights))
    parts = [(plan.cell, weights[first : first + together]) for first in range(0, len(weights), together)]
    return cudnn_library.obstacle(layers.input, layers.dtype, layers.steps, parts)


# --------------------------------------------------------------------------------------------------------------------
# Persistent
# --------------------------------------------------------------------------------------------------------------------


def _gradients_asked(layers: Layers) -> bool:
    """Whether a backward may follow."""
    return persistent.gradients_asked([layers.input, *(w for of in layers.weights for one in of for w in one)])


def _persistent_plans(layers: Layers) -> dict[str, persistent.Plan | str]:
    """The plan, or why there is none, of the passes that may come."""
    plan, of_layer = layers.plan, layers.weights[0]
    passes = {"forward": False} | ({"backward": True} if _gradients_asked(layers) else {})
    flags = plan.layer_flags(0, len(layers.weights)) if layers.masks_on else plan.eval_flags
    w_hh = of_layer[0][1]
    assert w_hh is not None
    given = (layers.input, plan.cell, layers.batch, w_hh, layers.dtype, len(of_layer), flags)
    return {name: persistent.plan_of(*given, backward) for name, backward in passes.items()}


def _persistent_obstacle(layers: Layers) -> str | None:
    if torch.compiler.is_compiling() or _fake(layers.input):
        return "a tracer runs, which asks no device for its limits"
    for name, found in _persistent_plans(layers).items():
        if isinstance(found, str):
            return f"{name}, {found}"
    return None


def _persistent_tells(layers: Layers) -> str:
    found = _persistent_plans(layers).items()
    return "; ".join(f"{name}: {persistent.in_words(of, layers.dtype)}" for name, of in found if isinstance(of, dict))


# --------------------------------------------------------------------------------------------------------------------
# Triton's sequence
# --------------------------------------------------------------------------------------------------------------------

SEQUENCE_BYTES = 512 * 1024
"""The largest W_hh for which Triton's sequence schedule pays. Each program reads it from L2 once a step; at the 40 to
60 bytes a cycle that one multiprocessor gets from there, this much takes about as long as the two launches that a step
of the alternating schedule costs. Not timed on a device.
"""


def sequence_obstacle(projected: bool, packed: bool, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why Triton's sequence schedule cannot run a layer with results of ``dtype`` now; None where it can."""
    if projected:
        return "a projection needs a product of its own within each step"
    if dtype == torch.float64 and device.type == "cuda":
        return "float64 sums of a block take more registers than a thread has"
    if packed and device.type == "cuda" and not torch.compiler.is_compiling() and cudnn_library.capturing(device):
        # Each replay would read it from memory that is long given back.
        return "a graph is being captured, and a packed batch's table of rows comes from the host"
    return None


def _sequence_obstacle(layers: Layers) -> str | None:
    return sequence_obstacle(layers.weights[0][0][4] is not None, layers.packed, layers.dtype, layers.input.device)


def _sequence_worth(layers: Layers) -> str | None:
    w_hh = layers.weights[0][0][1]
    assert w_hh is not None
    size = w_hh.numel() * layers.dtype.itemsize
    if size > SEQUENCE_BYTES:
        return (
            f"W_hh has {size // 1024} KiB, more than the {SEQUENCE_BYTES // 1024} that are worth reading at each step"
        )
    if layers.packed and layers.input.device.type == "cuda" and torch.compiler.is_compiling():
        return "compiled code may be captured in a graph, which takes no table of a packed batch's rows from the host"
    return None


# --------------------------------------------------------------------------------------------------------------------
# The rows
# --------------------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, tuple[Schedule, ...]] = {
    "cpu": (Schedule("fused CPU", 0, "one pass over time per layer and direction, masks inside it", outer_sites=True),),
    "cuda": (
        Schedule(
            CUDNN,
            1,
            "torch's own layers on weights that are masked once",
            _cudnn_obstacle,
            why="no site acts inside a step",
            asked_as="cudnn",
        ),
        Schedule(
            PERSISTENT,
            2,
            "one cooperative launch for all steps of a layer, W_hh on the chip, masks made while waiting",
            _persistent_obstacle,
            outer_sites=True,
            writes_between=True,
            only_asked="it runs only where FRD_CUDA_SCHEDULE asks for it or a table of the device's times names it",
            tells=_persistent_tells,
        ),
        Schedule(
            ALTERNATING,
            0,
            "one matrix product and one kernel a step, masks inside it",
            outer_sites=True,
            writes_between=True,
        ),
    ),
    "triton": (
        Schedule(
            SEQUENCE,
            1,
            "one Triton kernel for all steps of a layer and direction",
            _sequence_obstacle,
            _sequence_worth,
            why=f"W_hh has no more than {SEQUENCE_BYTES // 1024} KiB",
            outer_sites=True,
            writes_between=True,
        ),
        Schedule(
            ALTERNATING,
            0,
            "per step torch's matrix products and one Triton kernel for all else",
            outer_sites=True,
            writes_between=True,
        ),
    ),
    "reference": (Schedule("step by step", 0, "plain PyTorch, masks as tensors"),),
    onnx.BACKEND: (Schedule("nodes", 0, "one node of ONNX per layer and direction"),),
}
"""The schedules of each backend, best first."""

VARIABLES = {"cuda": "FRD_CUDA_SCHEDULE", "triton": "FRD_TRITON_SCHEDULE"}
"""The environment variable that asks for a schedule, of the backends that have one."""


def _asked_as(row: Schedule) -> str:
    return row.asked_as or row.name


NAMES = {backend: tuple(_asked_as(row) for row in SCHEDULES[backend]) for backend in VARIABLES}
"""What those variables, and tables of a device's times, call the schedules."""


# --------------------------------------------------------------------------------------------------------------------
# The walk
# --------------------------------------------------------------------------------------------------------------------


def _named(backend: str, name: str) -> Schedule:
    (row,) = [row for row in SCHEDULES[backend] if _asked_as(row) == name]
    return row


def _from_table(backend: str, layers: Layers) -> schedule_table.Answer:
    """The schedule that a table of the device's times names, where it can run these layers."""
    path = schedule_table.given() if backend in VARIABLES else None
    if path is None:
        return schedule_table.Answer(None, "")
    if torch.compiler.is_compiling() or _fake(layers.input):
        return schedule_table.Answer(None, f"a tracer runs, which does not read {schedule_table.VARIABLE}")
    if layers.packed:
        return schedule_table.Answer(None, f"{schedule_table.VARIABLE} is about padded batches")
    directions, dtype = layers.weights[0], str(layers.dtype)[6:]
    w_hh = directions[0][1]
    assert w_hh is not None
    inside, cell = bool(_acting_inside(layers.plan, layers.masks_on)), layers.plan.cell
    device = schedule_table.device_name(layers.input.device)
    found = schedule_table.ask(
        path, NAMES, tuple(CELLS),
        schedule_table.Kind(device, backend, cell, dtype, len(directions), inside, _gradients_asked(layers)),
        schedule_table.Size(w_hh.size(0) // CELLS[cell].gates, layers.batch, layers.steps),
    )  # fmt: skip
    obstacle = _named(backend, found.schedule).obstacle(layers) if found.schedule else None
    return (
        found if obstacle is None else schedule_table.Answer(None, f"{found.schedule} was the fastest, but {obstacle}")
    )


def _against(
    row: Schedule, layers: Layers, variable: str | None, asked: str | None, table: schedule_table.Answer
) -> str | None:
    """What speaks against a schedule; None where nothing does."""
    if asked is None and table.schedule is None:
        return row.only_asked or row.obstacle(layers) or row.worth(layers)
    if asked is None:
        return None if table.schedule == _asked_as(row) else f"the table names {table.schedule}"
    if asked != _asked_as(row):
        return f"{variable} asks for {asked}"
    obstacle = row.obstacle(layers)
    if obstacle is not None:
        raise ValueError(f"{variable} asks for the {row.name} schedule: {obstacle}")
    return None


def choose(backend: str, layers: Layers) -> Choice:
    """The schedule of a call.

    Raises:
        ValueError: the backend's environment variable names none of its schedules, or one that cannot run these layers;
            or the file that ``FRD_SCHEDULE_TABLE`` names cannot be read, or is no table.
    """
    variable = VARIABLES.get(backend)
    asked = setting(variable, sorted(NAMES[backend])) if variable else None
    table = _from_table(backend, layers) if asked is None else schedule_table.Answer(None, "")
    walk: dict[str, str] = {}
    why = ""
    for row in SCHEDULES[backend]:
        against = _against(row, layers, variable, asked, table)
        if against is None:
            break
        why, walk[row.name] = why if why and row.only_asked else against, f"not taken, {against}"
    walk[row.name] = "taken"
    if asked is not None:
        return Choice(row, f"{variable} asks for it", walk)
    by_itself = [] if table.schedule else [row.why or why]
    return Choice(row, "; ".join(filter(None, [*by_itself, table.why])), walk)


__all__ = ["ALTERNATING", "CUDNN", "PERSISTENT", "SCHEDULES", "SEQUENCE", "Choice", "Layers", "Schedule", "choose"]
