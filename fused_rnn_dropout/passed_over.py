"""Why a recurrent module cannot be swapped for this package's, in words for a warning."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import nn

from .cells import CELLS, MODULES
from .rnn_base import RegularizedRNN

_NAMES = frozenset({"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"})
_CALLS = tuple(name.lower() for name in CELLS)


def reason_to_leave(module: Any, known: Container[type]) -> str | None:
    """Why a recurrent layer or cell that is known, but for its exact type, cannot be swapped; None where it can.

    Args:
        known: the classes that can be.
    """
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its weights are parametrised"
    if type(module) not in known:
        way = "".join(_way(module, theirs) for theirs in (getattr(nn, name) for name in MODULES) if theirs in known)
        return f"it is a subclass, {type(module).__qualname__}, whose own behaviour a swap would drop{way}"
    names = getattr(module, "_flat_weights_names", None) or _names_of_cell(module)
    if any(name not in module._parameters for name in names):  # weight_norm, spectral_norm and prune work like this
        computed = ", ".join(name for name in names if name not in module._parameters)
        return f"a hook computes {computed}, which is no parameter of its own"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if module.__dict__.get("_compiled_call_impl") is not None:
        return "it was compiled with Module.compile()"
    return None


def _names_of_cell(cell: nn.RNNCellBase) -> list[str]:
    return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if cell.bias else [])]


def _way(module: nn.RNNBase, theirs: type[nn.RNNBase]) -> str:
    """How a subclass of torch.nn's gets this package's sites."""
    if not isinstance(module, theirs):
        return ""
    return (
        f". Where it calls super().forward, `class Mine({type(module).__name__}, frd.{theirs.__name__})` has both: "
        "build that one in its place"
    )


def _calls(module: nn.Module) -> str | None:
    """The fused layer that the graph of a traced module calls by itself, without a module."""
    if isinstance(module, torch.jit.ScriptModule):
        graph = getattr(module, "inlined_graph", None)  # a module without a forward has none
        found = [name for name in _CALLS if graph is not None and graph.findAllNodes(f"aten::{name}")]
    elif isinstance(module, torch.fx.GraphModule):
        names = {str(getattr(node.target, "__name__", node.target)).split(".")[0] for node in module.graph.nodes
                 if node.op == "call_function"}  # fmt: skip
        found = [name for name in _CALLS if name in names]
    else:
        return None
    return " and ".join(found) or None


def passed_over(module: nn.Module, known: tuple[type, ...]) -> str | None:
    """Why ``convert`` does not even consider a module that is recurrent; None where it is not.

    Args:
        known: the classes that can be swapped.
    """
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) in _NAMES:
            return "it is TorchScript: convert the model before it is scripted or traced"
        inside = any(getattr(child, "original_name", None) in _NAMES for child in module.modules())
        called = None if inside else _calls(module)
        return called and f"its TorchScript calls {called} itself: convert the model before it is scripted or traced"
    if isinstance(module, nn.RNNCellBase):
        has = not isinstance(module, nn.RNNCell)
        way = ". convert(model, cells=True) swaps it for one with the same sites" if has else ""
        return f"it computes one step, and this package's modules whole sequences{way}"
    if isinstance(module, nn.RNNBase) and not isinstance(module, (*known, RegularizedRNN)):
        return "this package has no such cell"
    if type(module).__module__.startswith("torch.ao.") and type(module).__name__ in _NAMES:
        return "it is quantised: convert the model before"
    called = _calls(module)
    return called and f"its graph calls {called} itself: convert the model before it is traced or exported"


__all__ = ["passed_over", "reason_to_leave"]
