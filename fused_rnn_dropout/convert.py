"""Swapping ``torch.nn``'s recurrent layers inside a model for this package's, and back, around the same parameters."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from .cell_modules import SITES_OF_CELLS, GRUCell, LSTMCell, RegularizedCell
from .cells import A_MODULE, CELLS, ONE_OF_TORCHS
from .modules import CLASSES, GRU
from .passed_over import passed_over, reason_to_leave
from .references import LIMIT, Walk
from .rnn_base import DERIVED, Regularized, RegularizedRNN
from .sites import SITE, SITE_NAMES, SITES, acting_in_eval, make_spec

_OURS: dict[type, type[RegularizedRNN]] = {row.theirs: row.ours for row in CLASSES}
_OURS_AND_TORCHS: dict[type, type[RegularizedRNN]] = {row.theirs: row.both for row in CLASSES}
_TORCHS: dict[type, type[nn.RNNBase]] = {ours: row.theirs for row in CLASSES for ours in (row.ours, row.both)}
_CELLS: dict[type, type[RegularizedCell]] = {nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell}
_CELLS_OF_TORCH: dict[type, type[nn.RNNCellBase]] = {ours: theirs for theirs, ours in _CELLS.items()}
_OWN_STATE = ("_sites", "_plan", "_reset_after", "mc", "backend", "recompute", "_lasting")
_COPIED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_flat_weights", "_flat_weights_names",
           "_all_weights", "_flat_weight_refs")  # fmt: skip

_RNN = TypeVar("_RNN", bound=nn.Module)


def _slots(model: nn.Module) -> list[tuple[str, nn.Module | None, str, nn.Module]]:
    """Every place where a module hangs, once per place: path, parent (None for the root), name there, module."""
    result: list[tuple[str, nn.Module | None, str, nn.Module]] = [("", None, "", model)]
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                result.append((f"{path}.{name}" if path else name, parent, name, child))
    return result


def _transplant(old: nn.Module, cls: type[_RNN], drop: tuple[str, ...] = ()) -> _RNN:
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
    name: str,
    model: nn.Module,
    wanted: Callable[[nn.Module], bool],
    mine: Mapping[type, type],
    build: Callable[[str, Any], nn.Module],
    remark: Callable[[], str | None],
) -> tuple[nn.Module, int]:
    """Builds and plans everything before the first change, so that an error leaves the model as it was.

    Args:
        name: of the public function, for warnings.
        wanted: whether a module is one that the user means.
        mine: the exact types that can be swapped.
        build: makes the replacement of a module at a path.
        remark: a warning to give when all replacements are built.

    Returns:
        The root, and how many modules were swapped or named in a warning.
    """
    slots, made, found = _slots(model), {}, 0
    registered = {id(module): path for path, _, _, module in reversed(slots)}
    for path, _, _, module in slots:
        if id(module) in made or registered[id(module)] != path:
            continue
        known = not isinstance(module, Regularized)
        reason = passed_over(module, tuple(mine)) if name == "convert" and known else None
        if wanted(module):
            reason = reason_to_leave(module, mine)
            if reason is None:
                made[id(module)] = build(path, module)
        if reason is not None:
            _warn(f"left {path or 'the module'} ({type(module).__name__}) as it is: {reason}")
        found += reason is not None or id(module) in made

    # An RNN that is kept in a list while its parameters are registered is the model's; one whose parameters are not
    # may be somebody else's, such as a teacher that is kept out of the way on purpose.
    parameters = {id(parameter) for parameter in model.parameters()}
    strangers: dict[int, tuple[str, nn.Module]] = {}

    def replacement(path: str, module: nn.Module) -> nn.Module | None:
        known = made.get(id(module))
        if known is not None or id(module) in registered or type(module) not in mine or not wanted(module):
            return known
        own = [id(parameter) for parameter in module.parameters()]
        if id(module) not in strangers:
            strangers[id(module)] = path, module
            if own and parameters.issuperset(own) and reason_to_leave(module, mine) is None:
                made[id(module)] = build(path, module)
        return made.get(id(module))

    walk = Walk(replacement)
    walk.run(model)
    said = remark()
    if said:
        _warn(said)
    above = [module for module in walk.opened if id(module) not in registered and _holds(module, model)]
    for path, module in strangers.values():
        if id(module) in made:
            found += 1
        elif not any(_holds(module_above, module) for module_above in above):
            _warn(f"left {path} ({type(module).__name__}) as it is: the model refers to it, but neither it nor its "
                  f"parameters are registered in the model. Register it, or {name} it by itself")  # fmt: skip
            found += 1
    if walk.stuck:
        _warn(f"{name} could not exchange the module that is held by {'; '.join(walk.stuck)}: what runs from there is "
              "the old one")  # fmt: skip
    if walk.ended_at is not None:
        _warn(f"{name} looked for other references to the modules that it swaps in the first {LIMIT:,} places that the "
              f"model leads to, up to {walk.ended_at}; one beyond would still hold the old module")  # fmt: skip
    walk.edit()
    for _, parent, child, module in slots:
        if parent is not None and id(module) in made:
            parent._modules[child] = made[id(module)]
    return made.get(id(model), model), found


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return any(child is inner for child in module.modules())


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # of whoever calls convert or revert


def convert(
    model: nn.Module,
    *,
    mc: bool = False,
    backend: str | None = None,
    recompute: bool = False,
    nn_subclass: bool = False,
    cells: bool = False,
    **sites: Any,
) -> nn.Module:
    """Swaps every ``nn.LSTM`` and ``nn.GRU`` inside ``model`` for this package's, in place.

    The new modules hold the same Parameter objects, so that an optimizer built before stays valid, and keep hooks, the
    training flag, ``requires_grad``, attributes set by the user, and ``dropout``; one module in several places stays
    one. Other references that the model has to a swapped module are changed along with it: in containers, attributes,
    closures, partials, bound methods, weak references, hooks. Those that cannot be changed, and whatever lies beyond
    the first million places that the model leads to, are named in a warning. So is a recurrent layer that is reached
    like this only and whose parameters are not registered in the model; it is left as it is.

    Left alone, with a warning: subclasses, weights that are parametrised or computed by a hook (``weight_norm``,
    pruning), modules with a replaced or compiled forward, cells (but see ``cells``), ``nn.RNN``, and what is traced,
    scripted or quantised.
    Modules that are already of this package are left as they are, sites included.

    Args:
        model: any module; may itself be such a layer.
        mc: as in :class:`LSTM`.
        backend: as in :class:`LSTM`.
        recompute: as in :class:`LSTM`.
        nn_subclass: make :class:`NNLSTM` and :class:`NNGRU`, which pass ``isinstance(module, nn.LSTM)``, at the price
            of a graph break under ``torch.compile``.
        cells: swap ``nn.LSTMCell`` and ``nn.GRUCell`` too. In training their masks of a sequence need
            :func:`hold_masks` around the loop over steps, or ``rng=`` in it.
        sites: rates or options objects by site, as in :class:`LSTM`: ``weight_dropout=0.5``.

    Returns:
        ``model``, or the new module where ``model`` is itself an ``nn.LSTM`` or ``nn.GRU``.

    Raises:
        TypeError: an unknown site, another site's options object, or a switch that is no bool.
        ValueError: a rate outside [0, 1], a site that layers of the model do not have (it names them), or sites that
            cannot be combined. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got {type(model).__name__}")
    for switch, value in (("nn_subclass", nn_subclass), ("cells", cells)):
        if not isinstance(value, bool):
            raise TypeError(f"{switch} should be of type bool, got: {type(value).__name__}")
    ours: dict[type, type[Regularized]] = {**(_OURS_AND_TORCHS if nn_subclass else _OURS), **(_CELLS if cells else {})}
    for name, value in sites.items():
        if name not in SITE:
            raise TypeError(f"convert got an unexpected site {name!r}; allowed are {', '.join(SITE_NAMES)}")
        make_spec(name, value)
    for name in sites:
        lacking = {path or "the module itself": str(module.mode) for path, _, _, module in _slots(model)
                   if type(module) in _OURS and not SITE[name].fits(str(module.mode))}  # fmt: skip
        if lacking:
            called = " or ".join(dict.fromkeys(CELLS[cell].called for cell in lacking.values()))
            allowed = ", ".join(site.name for site in SITES if all(site.fits(cell) for cell in lacking.values()))
            raise ValueError(f"{name} is not a site of {called}, and the model has {', '.join(lacking)}; "
                             f"allowed sites are {allowed}")  # fmt: skip

    if cells:
        _check_sites_of_cells(model, sites)

    def build(path: str, old: Any) -> nn.Module:
        new = _transplant(old, ours[type(old)])
        own = dict(sites) if isinstance(new, RegularizedCell) else {"dropout": old.dropout, **sites}
        try:
            new._configure(own, mc=mc, backend=backend, recompute=recompute, stacklevel=4)
        except ValueError as error:
            raise ValueError(f"{path or 'the module'}: {error}") from error
        if "dropout" in own and "dropout" in sites:
            new._warn_of_one_layer(stacklevel=4)
        return new

    def wanted(module: nn.Module) -> bool:
        return isinstance(module, tuple(ours)) and not isinstance(module, Regularized)

    root, found = _swap("convert", model, wanted, ours, build, lambda: None)
    if not found and not any(isinstance(module, Regularized) for module in model.modules()):
        warnings.warn(f"convert found no {ONE_OF_TORCHS} in the model", stacklevel=2)
    return root


def _check_sites_of_cells(model: nn.Module, sites: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where a site is given that the model's cells do not have."""
    for name in sites:
        without = [path or "the module itself" for path, _, _, module in _slots(model) if type(module) in _CELLS
                   and name not in SITES_OF_CELLS]  # fmt: skip
        if without:
            raise ValueError(f"{name} is not a site of a cell, and the model has {', '.join(without)}; allowed sites "
                             f"are {', '.join(SITES_OF_CELLS)}")  # fmt: skip


def revert(model: nn.Module, *, allow_change: bool = False) -> nn.Module:
    """Swaps every layer of this package inside ``model`` for ``torch.nn``'s, in place: :func:`convert` undone.

    The same Parameter objects, hooks, flags and ``state_dict``, and the same care for other references as
    :func:`convert` takes. Of the sites torch.nn has ``dropout`` alone. Where another one acts in eval, which zoneout,
    ``scale="paper"`` and ``mc=True`` do at a rate above 0, eval computes something else from then on: a warning names
    module and site. A rate counts as it is now; one that was set later would have changed eval.

    Args:
        model: any module; may itself be a layer of this package.
        allow_change: no warning where eval changes.

    Returns:
        ``model``, or the new module where ``model`` is itself a layer of this package.

    Raises:
        TypeError: ``model`` is no module, or ``allow_change`` no bool.
        ValueError: a GRU with ``reset_after=False``, which torch.nn has not; the model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got {type(model).__name__}")
    if not isinstance(allow_change, bool):
        raise TypeError(f"allow_change should be of type bool, got: {type(allow_change).__name__}")
    changes: list[str] = []
    theirs: dict[type, type[nn.Module]] = {**_TORCHS, **_CELLS_OF_TORCH}

    def build(path: str, old: Regularized) -> nn.Module:
        if isinstance(old, GRU) and not old.reset_after:
            raise ValueError(f"{path or 'the module'} has reset_after=False, which nn.GRU cannot compute")
        acting = old._plan.names if old.mc else acting_in_eval(old._plan)
        lost = [f"{name}={getattr(old, name):g}" for name in acting if getattr(old, name) > 0]
        if lost:
            changes.append(f"{path or 'the module'} ({', '.join([*lost, 'mc=True'] if old.mc else lost)})")
        new = _transplant(old, theirs[type(old)], drop=_OWN_STATE)
        for name in DERIVED:
            new.__dict__.pop(name, None)
        if isinstance(new, nn.RNNBase):
            new.dropout = old.dropout
        return new

    def remark() -> str | None:
        if not changes or allow_change:
            return None
        return (
            f"revert changes what eval computes, where torch.nn has no such sites: {'; '.join(changes)}. "
            "revert(model, allow_change=True) is silent about it"
        )

    root, found = _swap("revert", model, lambda module: isinstance(module, Regularized), theirs, build, remark)
    if not found:
        warnings.warn(f"revert found no {A_MODULE} in the model", stacklevel=2)
    return root


__all__ = ["convert", "revert"]
