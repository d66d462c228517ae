"""What the modules share: sites as attributes, their thresholds, what nn.Module asks for, and the forward pass."""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional, held
from .arguments import Rng, check_backend
from .cells import CELLS
from .layouts import check_dense, check_packed, is_dense
from .options import Spec, rate_of, with_rate
from .sites import BETWEEN, SITE, SITE_NAMES, SITES, Plan, check_combination, make_spec, sites_of, threshold
from .thresholds import Thresholds

DERIVED = ("_plan", "_thresholds", "_placed", "__module__")
"""What a module makes for itself: no copy, pickle or module of another class takes it along."""


def _site_property(name: str) -> property:
    def read(self: Regularized) -> float:
        if not SITE[name].fits(self.mode):
            raise AttributeError(f"{CELLS[self.mode].called} has no {name}")
        return rate_of(self._sites[name]) if name in self._sites else 0.0

    def assign(self: Regularized, value: Any) -> None:
        if "_sites" in self.__dict__:
            self._assign(name, value)
        # else: RNNBase's constructor stores `dropout` before it has checked it; ours configures every site at its end.

    return property(read, assign, doc=f"The rate of {name}: {SITE[name].meaning}. Takes a rate or an options object.")


class Regularized(Thresholds):
    """What layers and single-step cells share: sites as attributes, and their thresholds."""

    mode: str
    num_layers: int
    proj_size: int
    dropout: float
    _flat_weights_names: list[str]
    mc: bool
    backend: str | None
    recompute: bool
    _own_switches: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})  # of a class, shown where not the default
    _sites: dict[str, Spec]  # the only truth about rates; replaced, never changed, as replicas share it
    _plan: Plan

    # ---------------------------------------------------------------------------------------------------------------
    # Configuration
    # ---------------------------------------------------------------------------------------------------------------

    def _configure(
        self,
        sites: Mapping[str, Any],
        *,
        mc: bool,
        backend: str | None,
        recompute: bool,
        reset_after: bool = True,
        stacklevel: int = 1,
    ) -> None:
        """Ends a constructor: every site, the switches, and the tensor of thresholds."""
        check_backend(backend)
        for name, value in (("mc", mc), ("recompute", recompute), ("reset_after", reset_after)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
        self.mc, self.backend, self.recompute = mc, backend, recompute
        self.__dict__["_reset_after"] = reset_after
        self._be_one_node()
        self._sites = {}
        self._forget_thresholds()
        self.__dict__.pop("dropout", None)
        specs = {}
        for name, value in sites.items():
            spec = make_spec(name, value)
            # A plain 0.0 means that the site is not there; an options object is there whatever its rate.
            if isinstance(value, SITE[name].spec) or rate_of(spec) > 0:
                specs[name] = spec
        self._commit(specs, stacklevel=stacklevel + 1)
        self._place_thresholds()

    def _commit(self, specs: dict[str, Spec], stacklevel: int = 1) -> None:
        """Checks ``specs`` and makes them the configuration; changes nothing where the check fails."""
        specs = {name: specs[name] for name in SITE_NAMES if name in specs}
        check_combination(
            self.mode, specs, num_layers=self.num_layers, proj_size=self.proj_size, stacklevel=stacklevel + 1
        )
        self._set_sites(specs)
        self._make_plan()

    def _make_plan(self) -> None:
        # With one layer there is nothing between layers, so that such a site must not make a call draw.
        inert = BETWEEN if self.num_layers == 1 else ()
        acting = {name: spec for name, spec in self._sites.items() if name not in inert}
        plan = Plan.make(self.mode, acting, reset_after=self.__dict__["_reset_after"])
        if plan != self.__dict__.get("_plan"):
            # Worked out now, so that compiled code finds plain values; it guards on the plan, which holds no rate.
            _ = plan.names, plan.groups, plan.eval_flags, plan.train_flags, plan.outer_flags, plan.reference_only
            self._plan = plan

    def _assign(self, name: str, value: Any) -> None:
        specs = dict(self._sites)
        if isinstance(value, SITE[name].spec):
            specs[name] = make_spec(name, value)
        else:
            spec = make_spec(name, value)
            if rate_of(spec) == 0:
                specs.pop(name, None)
            else:
                specs[name] = with_rate(specs[name], rate_of(spec)) if name in specs else spec
        # Above _assign lie the property and the __setattr__ of nn.Module and of nn.RNNBase.
        self._commit(specs, stacklevel=5)
        if name == "dropout":
            self._warn_of_one_layer(stacklevel=5)

    def _warn_of_one_layer(self, stacklevel: int) -> None:
        """What nn.RNNBase's constructor says, for a ``dropout`` that comes later."""
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={self.dropout} and num_layers=1",
                stacklevel=stacklevel + 1,
            )

    def set_rate(self, name: str, rate: float) -> None:
        """Changes the rate of a site and nothing else, in place: what a schedule calls. Nothing is recompiled.

        The site stays configured at 0, unlike with ``rnn.weight_dropout = 0.0``; one that was not configured is, with
        default options.

        Args:
            name: a site, such as ``"weight_dropout"``.
            rate: probability in [0, 1].

        Raises:
            ValueError: an unknown site, one that this cell does not have, or a rate outside [0, 1].
        """
        if name not in SITE or not SITE[name].fits(self.mode):
            allowed = ", ".join(sites_of(self.mode))
            raise ValueError(f"{name!r} is not a site of {CELLS[self.mode].called}; allowed sites are {allowed}")
        if isinstance(rate, SITE[name].spec):
            raise TypeError(f"rate of {name} should be a number, got {type(rate).__name__}: assign it to rnn.{name}")
        spec = make_spec(name, rate)
        if name not in self._sites:
            self._commit({**self._sites, name: spec}, stacklevel=2)
            return
        self._set_sites({**self._sites, name: with_rate(self._sites[name], rate_of(spec))})

    @property
    def sites(self) -> Mapping[str, Spec]:
        """The options object of every configured site, by name (a read-only copy)."""
        return types.MappingProxyType(dict(self._sites))

    @property
    def masks_on(self) -> bool:
        """Whether a forward pass now draws masks: in training, and in eval with ``mc``."""
        return self.training or self.mc

    @property
    def draws(self) -> bool:
        """Whether a call with masks on has anything to draw."""
        return bool(self._plan.names)

    def device_of_masks(self) -> torch.device:
        """Where a hold draws the pair of this module."""
        return getattr(self, self._flat_weights_names[0]).device

    def _rates(self) -> list[int]:
        return [threshold(rate_of(self._sites[name])) if name in self._sites else 0 for name in SITE_NAMES]

    def _set_sites(self, specs: dict[str, Spec]) -> None:
        before, self._sites = self._rates(), specs
        self._write_rates(before)

    # ---------------------------------------------------------------------------------------------------------------
    # What nn.Module does with a module
    # ---------------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._place_thresholds()  # assign=True takes parameters off the meta device

    def __getstate__(self) -> dict[str, Any]:
        inherited: Any = getattr(super(), "__getstate__", None)  # nn.Module has none before Python 3.11
        state = self.__dict__ if inherited is None else inherited()
        return {name: value for name, value in state.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {name: value for name, value in state.items() if name not in DERIVED}
        if "_thresholds" in state["_buffers"]:  # a module that 0.1 pickled: its rates were a buffer too
            state["_buffers"] = {name: value for name, value in state["_buffers"].items() if name != "_thresholds"}
            state["_non_persistent_buffers_set"] = state["_non_persistent_buffers_set"] - {"_thresholds"}
        super().__setstate__(state)
        self._be_one_node()
        self._make_plan()
        self._forget_thresholds()
        self._place_thresholds()

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        shown = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        for name, spec in self._sites.items():
            plain = make_spec(name, rate_of(spec)) == spec and rate_of(spec) > 0
            shown[name] = rate_of(spec) if plain or name == "dropout" else spec
        switches = {"mc": False, "backend": None, "recompute": False, **self._own_switches}
        shown |= {name: getattr(self, name) for name, default in switches.items() if getattr(self, name) != default}
        return ", ".join(parts + [f"{name}={value!r}" for name, value in shown.items()])

    def _be_one_node(self) -> None:
        """Makes torch.fx take this module as one node, for which it looks at the ``__module__`` of an instance.

        The class keeps its own, which is what pickle and ``repr`` read. It is torch.nn and not torch.nn.modules: what
        says that, torch.compile takes for one of torch's own, which its guards may be told to trust.
        """
        self.__dict__["__module__"] = nn.__name__

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script calls first, on every module inside the one that it is given."""
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__} of fused_rnn_dropout: use torch.jit.trace or "
            "torch.export.export, which keep its kernels, or script torch.nn's layers in its place, after "
            "fused_rnn_dropout.revert(model)"
        )


class RegularizedRNN(Regularized, nn.RNNBase):
    """What :class:`LSTM` and :class:`GRU` share: the forward pass over sequences."""

    def _weights_have_changed(self) -> bool:
        """What torch.nn's method of this name says, and every call asks; it looks each name up by two attributes."""
        if torch.compiler.is_compiling():
            return super()._weights_have_changed()
        own = self.__dict__
        parameters = own["_parameters"]
        for ref, name in zip(self._flat_weight_refs, self._flat_weights_names, strict=True):
            # In the order in which Python finds an attribute; what is a property, of parametrize, is in neither.
            weight = own.get(name)
            if weight is None:
                weight = parameters.get(name)
            if weight is None:
                weight = getattr(self, name, None)
            if weight is not None and ref is not None and ref() is not weight:
                return True
        return False

    def _call(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        rng: Rng | None,
        example_ids: Tensor | None,
        step_offset: int | None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        if isinstance(input, torch.fx.Proxy):
            raise TypeError(
                f"torch.fx cannot trace into a {type(self).__name__}: trace a module that holds it, where it is one "
                "node as torch.nn's are, with torch.fx's own Tracer or one whose is_leaf_module says so"
            )
        self._update_flat_weights()
        states = self._states(hx)
        for index, state in enumerate(states or ()):
            if not is_dense(state):
                check_dense("hx" if len(states or ()) == 1 else f"hx[{index}]", state)
        if isinstance(input, PackedSequence):
            check_packed(input)
            return self._call_packed(input, states, rng, example_ids, step_offset)
        if not isinstance(input, Tensor):
            raise TypeError(
                f"input of {CELLS[self.mode].called} should be a Tensor or a PackedSequence, got {type(input).__name__}"
            )
        if not is_dense(input):
            check_dense(f"input of {CELLS[self.mode].called}", input)
        dims = input.dim()
        if dims not in (2, 3):
            raise self._wrong_dims(input)
        batched = dims == 3
        if states is not None:
            self._check_state_dims(states, batched)
        if not batched:
            x = input.unsqueeze(1)
            states = None if states is None else tuple(state.unsqueeze(1) for state in states)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        self.check_input(x, None)
        out, *last = self._run(x, states, None, None, rng, example_ids, step_offset)
        if not batched:
            return out.squeeze(1), tuple(state.squeeze(1) for state in last)
        return (out.transpose(0, 1) if self.batch_first else out), tuple(last)

    def _call_packed(
        self,
        input: PackedSequence,
        states: tuple[Tensor, ...] | None,
        rng: Rng | None,
        example_ids: Tensor | None,
        step_offset: int | None,
    ) -> tuple[PackedSequence, tuple[Tensor, ...]]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        self.check_input(data, batch_sizes)
        out, *last = self._run(data, states, batch_sizes, sorted_indices, rng, example_ids, step_offset)
        return PackedSequence(out, batch_sizes, sorted_indices, unsorted_indices), tuple(last)

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        batch_sizes: Tensor | None,
        sorted_indices: Tensor | None,
        rng: Rng | None,
        example_ids: Tensor | None,
        step_offset: int | None,
    ) -> tuple[Tensor, ...]:
        weights: Any = self._flat_weights
        turn = held.begin(self, rng, step_offset, x.size(0) if batch_sizes is None else batch_sizes.size(0))
        results = functional.run(
            self.mode,
            x,
            states,
            weights,
            self._plan,
            self._thresholds_on(x.device),
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            masks_on=self.masks_on,
            batch_sizes=batch_sizes,
            sorted_indices=sorted_indices,
            rng=turn.rng,
            example_ids=example_ids,
            step_offset=turn.step_offset,
            backend=self.backend,
            recompute=self.recompute,
        )
        turn.end(results)
        return results

    def _wrong_dims(self, input: Tensor) -> ValueError:
        return ValueError(f"{CELLS[self.mode].module}: Expected input to be 2D or 3D, got {input.dim()}D instead")

    def _states(self, hx: Any) -> tuple[Tensor, ...] | None:
        if hx is None:
            return None
        cell = CELLS[self.mode]
        if not cell.has_c:
            if not isinstance(hx, Tensor):
                raise TypeError(f"hx of {cell.called} should be one tensor h_0, got {type(hx).__name__}")
            return (hx,)
        if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(state, Tensor) for state in hx):
            what = f"{type(hx).__name__} of length {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
            raise TypeError(f"hx of {cell.called} should be a tuple of two tensors (h_0, c_0), got {what}")
        return hx[0], hx[1]

    def _check_state_dims(self, states: tuple[Tensor, ...], batched: bool) -> None:
        dims = 3 if batched else 2
        for state in states:
            if state.dim() != dims:
                break
        else:
            return
        kind = "batched 3-D" if batched else "unbatched 2-D"
        h, *c = states
        if c:
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {dims}-D but got ({h.dim()}-D, {c[0].dim()}-D) tensors"
            )
        raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {h.dim()}-D tensor")


for _site in SITES:
    setattr(Regularized, _site.name, _site_property(_site.name))


__all__ = ["Regularized", "RegularizedRNN"]
