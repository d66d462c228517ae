"""The one way in which kernels are launched, and every launch configuration with its reason. Imports no triton.

There is no autotuning: a configuration is read off this file, so that a run is the same on every machine and a first
call costs its compilation alone. None of these numbers has been timed on a device; whoever does changes them here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..library import setting

PRECISIONS = ("ieee", "tf32", "tf32x3")


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """``programs`` programs of ``kernel``; nothing where there are none, as a grid must not be empty.

    Products and additions may fuse, as in every compiled kernel: said here, since Triton's own default changes from
    one release to the next.
    """
    if programs:
        kernel[(programs,)](*args, enable_fp_fusion=True, **constants)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, dense, from a multiple of 16 bytes on: a copy where it is neither.

    Kernels are compiled for such addresses, since only then do they move several numbers at a time; an address of
    another kind would have each of them compiled once more.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def eights(width: int) -> int:
    """Elements of a row of ``width`` as blocks have them: eight neighbours share a call of Philox, so that each row
    begins with a whole one.
    """
    return (width + 7) // 8 * 8


def step_programs(rows: int, width: int) -> int:
    """Programs of a kernel that gives each a block of ``BLOCKS.step`` elements of such rows."""
    return -(-rows * eights(width) // BLOCKS.step)


# --------------------------------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Elements of a program of the elementwise kernels, all of 4 warps."""

    dropout: int = 128  # calls of eight elements each: 16 bytes of bf16 for a thread, its widest access
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
    asked = setting("FRD_TRITON_PRECISION", PRECISIONS)
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
