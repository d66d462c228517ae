"""Which schedule runs a layer and why, and every launch configuration with its reason. Imports no triton.

There is no autotuning: a configuration is read off this file, so that a run is the same on every machine and a first
call costs its compilation alone. None of these numbers has been timed on a device; whoever does changes them here.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

SCHEDULES = ("alternating", "sequence")
PRECISIONS = ("ieee", "tf32", "tf32x3")


class Blocks(NamedTuple):
    """Elements of a program of the elementwise kernels, all of 4 warps."""

    dropout: int = 128  # calls of four units each: 16 bytes of fp32 for a thread, its widest access
    weights: int = 128  # the same
    step: int = 256  # two units for a thread; enough programs for a small batch: 32 for 20 rows of 400 units


BLOCKS = Blocks()


class Tiles(NamedTuple):
    """The launch of a whole-sequence kernel."""

    rows: int = 16  # the fewest that a matrix instruction takes: a program's rows set the number of programs
    units: int = 32  # a step of 16 x 32 units with every site fits the registers; with 64 the fp32 kernels spill
    k: int = 32  # a block of weights: two or four matrix instructions deep
    warps: int = 4
    stages: int = 2  # the next block of weights is fetched while this one is multiplied


SEQUENCE_BYTES = 512 * 1024
"""The largest W_hh for which a whole-sequence kernel is chosen. Each program reads it from L2 once a step; at the 40 to
60 bytes a cycle that one multiprocessor gets from there, this much takes about as long as the two launches that a step
of the alternating schedule costs.
"""


class Choice(NamedTuple):
    """A schedule and why it is taken."""

    schedule: str
    why: str


def _setting(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise ValueError(f"the environment variable {name} should be one of {', '.join(allowed)}, got {value!r}")
    return value


def choose(cell: str, units: int, projected: bool, dtype: torch.dtype, device_type: str) -> Choice:
    """The schedule of a layer. The environment variable ``FRD_TRITON_SCHEDULE`` asks for one.

    Args:
        cell: ``"lstm"`` or ``"gru"``.
        units: width H of the memory.
        projected: whether there is a projection.
        dtype: of the results.
        device_type: of the input.

    Raises:
        ValueError: the environment variable names no schedule, or one that cannot run this layer.
    """
    asked = _setting("FRD_TRITON_SCHEDULE", SCHEDULES)
    size = (4 if cell == "lstm" else 3) * units * units * dtype.itemsize
    cannot = None
    if projected:
        cannot = "a projection needs a product of its own within each step"
    elif dtype == torch.float64 and device_type == "cuda":
        cannot = "float64 sums of a block take more registers than a thread has"
    if asked == "sequence" and cannot:
        raise ValueError(f"FRD_TRITON_SCHEDULE asks for the sequence schedule: {cannot}")
    if asked:
        return Choice(asked, "FRD_TRITON_SCHEDULE asks for it")
    if cannot:
        return Choice("alternating", cannot)
    if size > SEQUENCE_BYTES:
        why = f"W_hh has {size // 1024} KiB, more than the {SEQUENCE_BYTES // 1024} that are worth reading at each step"
        return Choice("alternating", why)
    return Choice("sequence", f"W_hh has no more than {SEQUENCE_BYTES // 1024} KiB")


TILES = Tiles()


def precision(dtype: torch.dtype) -> str:
    """What the whole-sequence kernels round float32 operands of a product to: torch's setting for products on CUDA
    devices, ``torch.backends.cuda.matmul.fp32_precision``, unless the environment variable ``FRD_TRITON_PRECISION``
    says ``ieee``, ``tf32`` or ``tf32x3``, which torch does not know.

    On ROCm Triton has no ``tf32x3``, and ``tf32`` for gfx942 alone. There torch's setting means ``ieee`` elsewhere, as
    it does to torch's own products.

    Raises:
        ValueError: ``FRD_TRITON_PRECISION`` is something else, or names what Triton has not for the current device.
    """
    if dtype != torch.float32:
        return "ieee"
    asked = _setting("FRD_TRITON_PRECISION", PRECISIONS)
    if asked is not None:
        if asked == "tf32x3" and torch.version.hip is not None:
            raise ValueError("FRD_TRITON_PRECISION asks for tf32x3, which Triton does not have on ROCm")
        if asked == "tf32" and not _has_tf32():
            raise ValueError("FRD_TRITON_PRECISION asks for tf32, which Triton has on ROCm for gfx942 alone")
        return asked
    of_torch = torch.backends.cuda.matmul.fp32_precision
    if of_torch == "none":  # nobody set it: the setting for all backends holds
        of_torch = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if of_torch == "tf32" and _has_tf32() else "ieee"


def _has_tf32() -> bool:
    """Whether Triton compiles a product in TF32 for the current device."""
    if torch.version.hip is None:
        return True
    return torch.cuda.get_device_properties(torch.cuda.current_device()).gcnArchName.startswith("gfx942")


def rows_of_chunk(width: int, itemsize: int) -> int:
    """Rows of W x that are computed at once: pre-activations are wider than the gates that are kept of them, and would
    otherwise take twice their memory. Their products are large enough to fill a device long before this size.
    """
    return max(1, 2**26 // (width * itemsize))
