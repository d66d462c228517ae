"""Formulas for ``torch.utils.flop_counter``: what the operators count, which it cannot see into.

As in torch's formulas, a multiplication and its addition are two, and only matrix products count. A product of R rows
with a weight of n elements is 2 R n, so that a layer is a sum over its weights; R is T * B, or the rows of a packed
input. The counter meets each operator once: ``layer_forward`` and ``layer_backward`` with a graph, ``layer`` without.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .layer_call import NEEDS_X, Keep, LayerCall, needed, needs_of
from .library import NAMESPACE, argument_names

_COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]
_MATRICES = ("w_ih", "w_hh", "w_hr")


def _products(rows: int, direction: Any, weights: Sequence[str]) -> int:
    """One product of every row of the input with each of these weights."""
    found = [getattr(direction, name) for name in weights]
    return sum(2 * rows * math.prod(shape) for shape in found if shape is not None)


def _call(given: dict[str, Any]) -> tuple[LayerCall, int]:
    """The arguments of a layer, with shapes in the place of tensors, and the rows of its input."""
    return LayerCall(*(given[name] for name in LayerCall._fields)), math.prod(given["x"][:-1])


def _layer(given: dict[str, Any]) -> int:
    call, rows = _call(given)
    return sum(_products(rows, direction, _MATRICES) for direction in call.each())


def _layer_backward(given: dict[str, Any]) -> int:
    call, rows = _call(given)
    count = 0
    for direction in call.each():
        needs = needs_of(given["needs"], direction.number)
        through_time = _products(rows, direction, ("w_hh", "w_hr"))
        of_input = _products(rows, direction, ("w_ih",)) if needs & NEEDS_X else 0
        of_weights = _products(rows, direction, [name for name in _MATRICES if needed(needs, name)])
        again = _products(rows, direction, ("w_ih", "w_hh")) if call.keep == Keep.STATES else 0
        count += through_time + of_input + of_weights + again
    return count


def _nothing(given: dict[str, Any]) -> int:
    return 0


_FORMULAS: dict[Callable[[dict[str, Any]], int], tuple[str, ...]] = {
    _layer: ("layer", "layer_forward"),
    _layer_backward: ("layer_backward",),
    _nothing: ("words", "dropout"),
}
_ONE_FAMILY = (
    "draw",
    "held",
    "snapshot",
    "masked_weights",
    "persistent_plan",
    "masked_weights_backward",
)  # without products, nor a triton_ twin


def _register(op: Any, formula: Callable[[dict[str, Any]], int]) -> None:
    from torch.utils.flop_counter import register_flop_formula

    names = argument_names(op)

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return formula({**dict(zip(names, args, strict=False)), **kwargs})

    register_flop_formula(op)(count)


# --------------------------------------------------------------------------------------------------------------------
# cuDNN
# --------------------------------------------------------------------------------------------------------------------


def _matrices(weights: Sequence[Shape]) -> list[int]:
    return [math.prod(weight) for weight in weights if len(weight) == 2]


def _cudnn(given: dict[str, Any]) -> int:
    return 2 * math.prod(given["input"][:-1]) * sum(_matrices(given["weight"]))


def _cudnn_backward(given: dict[str, Any]) -> int:
    matrices, (of_input, _, _, of_weights) = _matrices(given["weight"]), given["output_mask"]
    first = matrices[0] * (2 if given["bidirectional"] else 1)  # W_ih of the first layer
    multiplied = sum(matrices) * (2 if of_weights else 1) - (0 if of_input else first)
    return 2 * math.prod(given["input"][:-1]) * multiplied


def _register_all() -> None:
    from torch.utils.flop_counter import flop_registry

    ops = getattr(torch.ops, NAMESPACE)
    for formula, operators in _FORMULAS.items():
        for name in operators:
            for prefix in ("", "triton_"):
                _register(getattr(ops, prefix + name), formula)
    for name in _ONE_FAMILY:
        _register(getattr(ops, name), _nothing)
    # cuDNN's operator, which a schedule of the `cuda` backend calls, has no formula in torch so far: nn.LSTM counts 0
    # on a GPU. Where torch brings its own, that one stays.
    of_cudnn = {torch.ops.aten._cudnn_rnn: _cudnn, torch.ops.aten._cudnn_rnn_backward: _cudnn_backward}
    for op, count in of_cudnn.items():
        if op not in flop_registry:
            _register(op, count)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers the formulas when somebody imports torch's counter.

    To import it here would import triton along with it, and a counter copies its registry when it is made, so that a
    first call is too late.
    """

    def __init__(self) -> None:
        self.looking = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _COUNTER or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: types.ModuleType) -> None:
            run(module)
            _register_all()
            sys.meta_path.remove(self)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Gives torch's counter the formula of every operator of this package: now, or as soon as it is imported."""
    if _COUNTER in sys.modules:
        _register_all()
    else:
        sys.meta_path.insert(0, _AfterImport())


__all__ = ["register"]
