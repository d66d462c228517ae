"""What is asked of cuDNN, all of it through torch: whether it takes a call, where it wants the weights, and to run.

The functions of the last section are the only way to it, so that the tests can put a stand-in in their place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.backends import cudnn

from .cells import CELLS

MOST_STEPS = 65_535
"""Of a sequence; cuDNN answers a longer one with CUDNN_STATUS_NOT_SUPPORTED."""

_BFLOAT16_VERSION, _BFLOAT16_CAPABILITY = (9, 13), (8, 0)
_DETERMINISTIC_WORKSPACES = (":16:8", ":4096:2", ":4096:8")  # what torch's pages on RNNs and on cuBLAS name

Weights = Sequence[Sequence[Sequence[Tensor | None]]]
"""[layer][direction] in torch's order, None where there are none."""


# --------------------------------------------------------------------------------------------------------------------
# Layouts
# --------------------------------------------------------------------------------------------------------------------


class Configuration(NamedTuple):
    """All that cuDNN's layout of weights depends on.

    Attributes:
        shapes: of all weights, in torch's order.
        each: how many belong to one layer and direction.
        cell: a name of :data:`cells.CELLS`.
    """

    shapes: tuple[tuple[int, ...], ...]
    each: int
    cell: str
    bidirectional: bool
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(cell: str, weights: Weights, dtype: torch.dtype, device: torch.device) -> Configuration:
        """That of neighbouring layers which one call runs."""
        shapes = tuple(tuple(w.shape) for layer in weights for direction in layer for w in direction if w is not None)
        each = len(shapes) // len(weights) // len(weights[0])
        return Configuration(shapes, each, cell, len(weights[0]) == 2, dtype, device)


class Layout(NamedTuple):
    """Where each weight lies in a flat buffer of ``size`` elements; there may be gaps between them."""

    offsets: tuple[int, ...]
    size: int


_layouts: dict[Configuration, Layout] = {}  # small, and never dropped: a capture relies on what was asked before it


def layout(of: Configuration) -> Layout:
    """As cuDNN wants it, which it is asked once per configuration. It allocates and runs kernels to answer."""
    found = _layouts.get(of)
    if found is None:
        found = _layouts[of] = _asked(of)
    return found


def _asked(of: Configuration) -> Layout:
    with current(of.device), torch.no_grad():
        weights = [torch.empty(shape, dtype=of.dtype, device=of.device) for shape in of.shapes]
        layers = len(of.shapes) // of.each // (2 if of.bidirectional else 1)
        hidden = of.shapes[0][0] // CELLS[of.cell].gates
        projected = of.shapes[1][1] if of.shapes[1][1] != hidden else 0
        flat = flatten_weight(weights, of.each, of.cell, hidden, projected, layers, of.bidirectional)
        # It has made the weights views of its buffer.
        return Layout(tuple(int(w.storage_offset()) for w in weights), flat.numel())


# --------------------------------------------------------------------------------------------------------------------
# Whether it takes a call
# --------------------------------------------------------------------------------------------------------------------


def obstacle(input: Tensor, dtype: torch.dtype, steps: int, parts: Sequence[tuple[str, Weights]]) -> str | None:
    """Why cuDNN cannot run layers on ``input`` with results of ``dtype``; None where it can.

    Asks all that torch and cuDNN will ask when they run: torch would take other kernels without a word, or raise.

    Args:
        input: (T, B, I) or packed (N, I), of any dtype: it will be converted.
        steps: T.
        parts: the cell and the weights of each call, of which there are several where a site acts between layers.
    """
    if not cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    if input.numel() == 0:
        return "cuDNN takes no input without elements"
    if not acceptable(input):
        return f"this torch has no cuDNN for tensors on {input.device.type}"
    if dtype == torch.bfloat16:
        version, device = compiled_version(), capability(input.device)
        if version[:2] < _BFLOAT16_VERSION or device < _BFLOAT16_CAPABILITY:
            return (
                f"cuDNN takes bfloat16 from version {_spelled(_BFLOAT16_VERSION)} and compute capability "
                f"{_spelled(_BFLOAT16_CAPABILITY)} on, here are {_spelled(version[:2])} and {_spelled(device)}"
            )
    elif dtype not in (torch.float64, torch.float32, torch.float16):
        return f"cuDNN does not take {str(dtype)[6:]}"
    if steps > MOST_STEPS:
        return f"cuDNN takes at most {MOST_STEPS:,} steps, here are {steps:,}"
    for _, weights in parts:
        w_hr = weights[0][0][4]
        if w_hr is not None and w_hr.size(0) == w_hr.size(1):
            return "torch takes a projection to as many units as the memory has for none"
    must = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if must and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _DETERMINISTIC_WORKSPACES:
        return "cuDNN adds in any order where the environment has no CUBLAS_WORKSPACE_CONFIG=:16:8 or :4096:2"
    unknown = any(Configuration.of(cell, weights, dtype, input.device) not in _layouts for cell, weights in parts)
    if unknown and capturing(input.device):
        # Asking would put its kernels into the graph, which would run them in each replay.
        return "a graph is being captured, and cuDNN was not asked for its layout of these weights before"
    return None


def _spelled(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


# --------------------------------------------------------------------------------------------------------------------
# The way to it
# --------------------------------------------------------------------------------------------------------------------


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one: torch asks for the capability of that."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def acceptable(input: Tensor) -> bool:
    """Whether torch has a cuDNN for such a tensor. From torch 2.10 to 2.14 it looks at no dtype."""
    return torch.cudnn_is_acceptable(input)


def compiled_version() -> tuple[int, int, int]:
    """Of the cuDNN that torch was compiled against: what its own rule for bfloat16 goes by.

    Not public, and the same from torch 2.10 to 2.14; the public ``version()`` is of the library that was found.
    """
    return torch.backends.cudnn._cudnn.getCompileVersion()


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def capturing(device: torch.device) -> bool:
    """Whether the current stream of ``device`` records a graph."""
    if not torch.cuda.is_initialized():  # nothing is captured then, and a torch without CUDA raises when it is asked
        return False
    with current(device):
        return torch.cuda.is_current_stream_capturing()


def flatten_weight(
    weights: list[Tensor], each: int, cell: str, hidden: int, projected: int, layers: int, bidirectional: bool
) -> Tensor:
    """Turns weights into views of one flat buffer, which it returns."""
    mode = cudnn.rnn.get_cudnn_mode(cell)
    return torch._cudnn_rnn_flatten_weight(
        weights, each, weights[0].size(1), mode, hidden, projected, layers, False, bidirectional
    )


def run(
    cell: str, x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], weights: list[Tensor],
    has_bias: bool, layers: int, train: bool, bidirectional: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Torch's layers, all arguments in one dtype.

    Returns:
        out, h_n and, for an LSTM, c_n.
    """
    function: Any = getattr(torch._VF, cell.lower())
    hx = tuple(states) if CELLS[cell].has_c else states[0]
    with current(x.device):
        if batch_sizes is None:
            return function(x, hx, weights, has_bias, layers, 0.0, train, bidirectional, False)
        return function(x, batch_sizes, hx, weights, has_bias, layers, 0.0, train, bidirectional)


__all__ = ["MOST_STEPS", "Configuration", "Layout", "layout", "obstacle"]
