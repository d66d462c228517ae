"""Swapping ``torch.nn``'s LSTM and GRU inside a model for this package's, and back, around the same parameters."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from .modules import GRU, LSTM
from .rnn_base import DERIVED, RegularizedRNN
from .sites import SITE, SITE_NAMES, SITES, make_spec

_OURS: dict[type, type[RegularizedRNN]] = {nn.LSTM: LSTM, nn.GRU: GRU}
_TORCHS: dict[type, type[nn.RNNBase]] = {LSTM: nn.LSTM, GRU: nn.GRU}
_OWN_STATE = ("_sites", "_plan", "_reset_after", "mc", "backend", "recompute")
_COPIED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_flat_weights", "_flat_weights_names",
           "_all_weights", "_flat_weight_refs")  # fmt: skip

_RNN = TypeVar("_RNN", bound=nn.RNNBase)


def _slots(model: nn.Module) -> list[tuple[str, nn.Module | None, str, nn.Module]]:
    """Every place where a module hangs, once per place: path, parent (None for the root), name there, module."""
    result: list[tuple[str, nn.Module | None, str, nn.Module]] = [("", None, "", model)]
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                result.append((f"{path}.{name}" if path else name, parent, name, child))
    return result


def _reason_to_leave(module: nn.RNNBase) -> str | None:
    """Why a module that is an LSTM or GRU cannot be swapped; None where it can."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its weights are parametrised"
    if type(module) not in _OURS and type(module) not in _TORCHS:
        return f"it is a subclass, {type(module).__qualname__}, whose own behaviour a swap would drop"
    names = module._flat_weights_names
    if any(name not in module._parameters for name in names):  # weight_norm, spectral_norm and prune work like this
        computed = ", ".join(name for name in names if name not in module._parameters)
        return f"a hook computes {computed}, which is no parameter of its own"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if module.__dict__.get("_compiled_call_impl") is not None:
        return "it was compiled with Module.compile()"
    return None


def _transplant(old: nn.RNNBase, cls: type[_RNN], drop: tuple[str, ...] = ()) -> _RNN:
    """A module of another class with everything that is set on ``old``: parameters, hooks, flags, attributes."""
    new = cls.__new__(cls)
    new.__dict__.update({name: value for name, value in old.__dict__.items() if name not in drop})
    # The containers are the new module's own, but for those of hooks: a handle removes its hook from that very dict.
    for name in _COPIED:
        if name in new.__dict__:
            value = new.__dict__[name]
            new.__dict__[name] = value.copy() if isinstance(value, (dict, OrderedDict, set)) else list(value)
    return new


def _swap(
    model: nn.Module,
    of_type: tuple[type[nn.RNNBase], ...],
    mine: Mapping[type, type],
    build: Callable[[str, Any], nn.Module],
) -> tuple[nn.Module, int]:
    """Builds every replacement before it puts the first one in place, so that an error leaves the model as it was."""
    slots = _slots(model)
    made: dict[int, nn.Module] = {}
    seen: set[int] = set()
    for path, _, _, module in slots:
        if id(module) in seen or not isinstance(module, of_type):
            continue
        seen.add(id(module))
        reason = _reason_to_leave(module)
        if reason is not None:
            warnings.warn(f"left {path or 'the module'} ({type(module).__name__}) as it is: {reason}", stacklevel=3)
        elif type(module) in mine:
            made[id(module)] = build(path, module)
    root = model
    for _, parent, name, module in slots:
        if id(module) in made:
            if parent is None:
                root = made[id(module)]
            else:
                parent._modules[name] = made[id(module)]
    return root, len(seen)


def convert(
    model: nn.Module, *, mc: bool = False, backend: str | None = None, recompute: bool = False, **sites: Any
) -> nn.Module:
    """Swaps every ``nn.LSTM`` and ``nn.GRU`` inside ``model`` for this package's, in place.

    The new modules hold the same Parameter objects, so that an optimizer built before stays valid, and keep hooks, the
    training flag, ``requires_grad``, attributes set by the user, and ``dropout``; one module in several places stays
    one. Left alone, with a warning: subclasses, weights that are parametrised or computed by a hook (``weight_norm``,
    pruning), and modules with a replaced or compiled forward. Modules that are already of this package are left as they
    are, sites included; so is ``nn.RNN``.

    Args:
        model: any module; may itself be an LSTM or GRU.
        mc: as in :class:`LSTM`.
        backend: as in :class:`LSTM`.
        recompute: as in :class:`LSTM`.
        sites: rates or options objects by site, as in :class:`LSTM`: ``weight_dropout=0.5``.

    Returns:
        ``model``, or the new module where ``model`` is itself an ``nn.LSTM`` or ``nn.GRU``.

    Raises:
        TypeError: an unknown site, or another site's options object.
        ValueError: a rate outside [0, 1], an LSTM-only site on a model with GRUs (it names them), or sites that cannot
            be combined. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got {type(model).__name__}")
    for name, value in sites.items():
        if name not in SITE:
            raise TypeError(f"convert got an unexpected site {name!r}; allowed are {', '.join(SITE_NAMES)}")
        make_spec(name, value)
    for name in sites:
        if "GRU" not in SITE[name].cells:
            grus = [path or "the module itself" for path, _, _, module in _slots(model) if type(module) is nn.GRU]
            if grus:
                allowed = ", ".join(site.name for site in SITES if "GRU" in site.cells)
                raise ValueError(f"{name} is not a site of a GRU, and the model has {', '.join(grus)}; "
                                 f"allowed sites are {allowed}")  # fmt: skip

    def build(path: str, old: nn.RNNBase) -> nn.Module:
        new = _transplant(old, _OURS[type(old)])
        own = {"dropout": old.dropout, **sites}
        try:
            new._configure(own, mc=mc, backend=backend, recompute=recompute, stacklevel=4)
        except ValueError as error:
            raise ValueError(f"{path or 'the module'}: {error}") from error
        if "dropout" in sites:
            new._warn_of_one_layer(stacklevel=4)
        return new

    root, found = _swap(model, (nn.LSTM, nn.GRU), _OURS, build)
    if not found and not any(isinstance(module, RegularizedRNN) for module in model.modules()):
        warnings.warn("convert found no nn.LSTM or nn.GRU in the model", stacklevel=2)
    return root


def revert(model: nn.Module) -> nn.Module:
    """Swaps every LSTM and GRU of this package inside ``model`` for ``torch.nn``'s, in place: :func:`convert` undone.

    The same Parameter objects, hooks, flags and ``state_dict``. Of the sites torch.nn has ``dropout`` alone.

    Returns:
        ``model``, or the new module where ``model`` is itself an LSTM or GRU of this package.

    Raises:
        ValueError: a GRU with ``reset_after=False``, which torch.nn has not; the model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got {type(model).__name__}")

    def build(path: str, old: nn.RNNBase) -> nn.Module:
        if isinstance(old, GRU) and not old.reset_after:
            raise ValueError(f"{path or 'the module'} has reset_after=False, which nn.GRU cannot compute")
        new = _transplant(old, _TORCHS[type(old)], drop=_OWN_STATE)
        for name in DERIVED:
            new.__dict__.pop(name, None)
        new.dropout = old.dropout
        return new

    root, found = _swap(model, (RegularizedRNN,), _TORCHS, build)
    if not found:
        warnings.warn("revert found no fused_rnn_dropout.LSTM or GRU in the model", stacklevel=2)
    return root


__all__ = ["convert", "revert"]
