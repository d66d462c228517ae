"""Drop-in ``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step of a layer, with every site that a step has.

A step is a sequence of length one, so that these modules run what the layers run, on the same counters.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from . import held
from .arguments import Rng
from .cells import CELLS
from .layouts import check_dense
from .options import CellDropout, HiddenDropout, LockedDropout, Spec, UpdateDropout, WeightDropout, Zoneout
from .rnn_base import Regularized, RegularizedRNN
from .sites import SITES, Plan, sites_of

SITES_OF_CELLS = tuple(site.name for site in SITES if not site.between and site.group != "output")
"""The sites of a step: a cell has no place between layers, and the h that it returns is the one that recurs."""


def _lasting(plan: Plan) -> tuple[str, ...]:
    """The configured sites whose mask lasts longer than a step."""
    return tuple(
        name
        for name in plan.names
        if isinstance(getattr(plan, name), WeightDropout) or getattr(getattr(plan, name), "per", None) == "sequence"
    )


class RegularizedCell(Regularized, nn.RNNCellBase):
    """What the cells share: everything but how states are given and returned."""

    # What a layer of one step has, and nn.RNNCellBase has not.
    num_layers, proj_size, bidirectional, batch_first, reset_after = 1, 0, False, False, True
    _lasting: tuple[str, ...]

    _run: Any = RegularizedRNN._run  # a layer's, which reads the attributes above

    @property
    def _called(self) -> str:
        """Its class with an article, for messages."""
        return f"{CELLS[self.mode].called}Cell"

    def _build(
        self,
        shape: tuple[int, int, bool],
        factory: Mapping[str, Any],
        sites: Mapping[str, Any],
        **switches: Any,
    ) -> None:
        """The constructor of a subclass: ``shape`` is input_size, hidden_size and bias."""
        for name in ("input_size", "hidden_size"):
            value = shape[0 if name == "input_size" else 1]
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        nn.RNNCellBase.__init__(self, *shape, num_chunks=CELLS[self.mode].gates, **factory)
        self._configure(sites, stacklevel=3, **switches)

    @property
    def _flat_weights_names(self) -> list[str]:  # type: ignore[override]
        return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else [])]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def _commit(self, specs: dict[str, Spec], stacklevel: int = 1) -> None:
        allowed = [name for name in sites_of(self.mode) if name in SITES_OF_CELLS]
        for name, spec in specs.items():
            if name not in SITES_OF_CELLS:
                raise ValueError(
                    f"{name} is not a site of {self._called}, whose h is returned and recurs alike; allowed sites are "
                    f"{', '.join(allowed)}"
                )
            if isinstance(spec, Zoneout) and (spec.gate_shared or spec.output != "zoned"):
                option = "gate_shared=True" if spec.gate_shared else "output='unzoned'"
                raise ValueError(
                    f"{name} of {self._called} has no {option}: it needs more of the step before than the state"
                )
        super()._commit(specs, stacklevel=stacklevel + 1)

    def _make_plan(self) -> None:
        super()._make_plan()
        self._lasting = _lasting(self._plan)

    def as_sequence(self, input: Any) -> Tensor:
        """``input`` (B, I) or (I,) of one step as (1, B, I).

        Raises:
            TypeError: no tensor, or one that is not dense.
            ValueError: another number of dimensions, in ``nn.LSTMCell``'s words.
        """
        called = f"input of {self._called}"
        if not isinstance(input, Tensor):
            raise TypeError(f"{called} should be a Tensor, got {type(input).__name__}")
        check_dense(called, input)
        if input.dim() not in (1, 2):
            called = f"{CELLS[self.mode].module}Cell"
            raise ValueError(f"{called}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.size(-1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(-1)} expected {self.input_size}")
        return input.unsqueeze(0) if input.dim() == 2 else input[None, None]

    def _step(
        self,
        input: Tensor,
        states: tuple[Tensor, ...] | None,
        rng: Rng | None,
        example_ids: Tensor | None,
        step_offset: int | None,
    ) -> list[Tensor]:
        """The states after a step, shaped as ``input``."""
        x = self.as_sequence(input)
        batched = input.dim() == 2
        if states is not None:
            self._check_states(states, x, batched)
            states = tuple(state.reshape(1, x.size(1), self.hidden_size) for state in states)
        if self._lasting and self.masks_on and rng is None and not held.is_held(self):
            lasts, its = ("last", "their") if len(self._lasting) > 1 else ("lasts", "its")
            raise RuntimeError(
                f"{' and '.join(self._lasting)} of {self._called} {lasts} for a sequence, and this call is one step "
                f"of it: call it inside `with hold_masks(model):`, which keeps {its} mask, or pass the sequence's rng= "
                "and the step as step_offset="
            )
        _, *last = self._run(x, states, None, None, rng, example_ids, step_offset)
        return [state.squeeze(0) if batched else state[0, 0] for state in last]

    def _one_state(
        self, input: Tensor, hx: Any, rng: Rng | None, example_ids: Tensor | None, step_offset: int | None
    ) -> Tensor:
        """The h after a step, of a cell that has no c."""
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(f"hx of {self._called} should be one tensor h_0, got {type(hx).__name__}")
        (h,) = self._step(input, None if hx is None else (hx,), rng, example_ids, step_offset)
        return h

    def _check_states(self, states: tuple[Tensor, ...], x: Tensor, batched: bool) -> None:
        for index, state in enumerate(states):
            called = "hx" if len(states) == 1 else f"hx[{index}]"
            if not isinstance(state, Tensor):
                raise TypeError(f"{called} of {self._called} should be a Tensor, got {type(state).__name__}")
            check_dense(called, state)
            if state.dim() not in (1, 2):
                name = "hidden" if len(states) == 1 else f"hx[{index}]"
                called = f"{CELLS[self.mode].module}Cell"
                raise ValueError(f"{called}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        for index, state in enumerate(states):
            if (state.dim() == 2) != batched:
                kind, dims = ("batched", 2) if batched else ("unbatched", 1)
                called = "hx" if len(states) == 1 else f"hx[{index}]"
                raise RuntimeError(
                    f"For {kind} {dims}-D input, {called} should also be {dims}-D but got {state.dim()}-D tensor"
                )
            rows = state.size(0) if batched else 1
            if rows != x.size(1):
                raise RuntimeError(f"Input batch size {x.size(1)} doesn't match hidden{index} batch size {rows}")
            if state.size(-1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {state.size(-1)}, expected {self.hidden_size}"
                )


class LSTMCell(RegularizedCell):
    """A drop-in for ``torch.nn.LSTMCell`` with every RNN dropout inside the step, and the same ``state_dict``.

    Masks are those of :class:`LSTM`: a loop over T steps with one pair of random numbers computes what an LSTM of one
    layer with these weights computes over the sequence. So a mask that lasts for a sequence, of the weights too, must
    be told which sequence a step belongs to. Either surround the loop with ``hold_masks(model)``, or pass the same
    ``rng=`` to each step and its number as ``step_offset=``. In training, and in MC mode, a call that does neither
    raises. With sites drawn per step alone (zoneout, ``update_dropout``) each call draws for itself.

    Args:
        input_size: I.
        hidden_size: H.
        bias: as in ``nn.LSTMCell``.
        device: as in ``nn.LSTMCell``.
        dtype: as in ``nn.LSTMCell``.
        input_dropout: this and all that follow: as in :class:`LSTM`. ``dropout``, ``inter_layer_dropout`` and
            ``output_dropout`` are sites of layers; drop the h that is returned where it is read, not where it recurs.

    Raises:
        ValueError: as :class:`LSTM`, and ``Zoneout(output="unzoned")`` and ``Zoneout(gate_shared=True)``, which need
            more of the step before than h and c.
        TypeError: as :class:`LSTM`.
    """

    mode = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        cell_dropout: float | CellDropout = 0.0,
        zoneout_c: float | Zoneout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        sites = {
            "input_dropout": input_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "cell_dropout": cell_dropout,
            "zoneout_c": zoneout_c,
            "zoneout_h": zoneout_h,
        }
        shape, factory = (input_size, hidden_size, bias), {"device": device, "dtype": dtype}
        self._build(shape, factory, sites, mc=mc, backend=backend, recompute=recompute)

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes one step.

        Args:
            input: (B, I), or (I,) for one example.
            hx: h and c, each (B, H) or (H,); zeros if None.
            rng: int64[2], or a dict of such by group of sites: the same for all steps of a sequence.
            example_ids: int64 (B,), as in :meth:`LSTM.forward`.
            step_offset: number of this step; 0 if None, or inside :func:`hold_masks` the next one. The trap: with
                ``rng`` alone every step has the per-step masks of step 0.

        Returns:
            h and c after the step, shaped as ``hx``.

        Raises:
            RuntimeError: a mask that lasts for a sequence, and neither ``rng`` nor :func:`hold_masks`; and, as
                ValueError and TypeError, a bad argument in ``nn.LSTMCell``'s words where it has some.
        """
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            what = f"{type(hx).__name__} of length {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
            raise TypeError(f"hx of an LSTMCell should be a tuple of two tensors (h_0, c_0), got {what}")
        h, c = self._step(input, None if hx is None else tuple(hx), rng, example_ids, step_offset)
        return h, c


class GRUCell(RegularizedCell):
    """A drop-in for ``torch.nn.GRUCell`` with every RNN dropout inside the step.

    As :class:`LSTMCell`, without ``zoneout_c``; sites are those of :class:`GRU`.
    """

    mode = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        cell_dropout: float | CellDropout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        sites = {
            "input_dropout": input_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "cell_dropout": cell_dropout,
            "zoneout_h": zoneout_h,
        }
        shape, factory = (input_size, hidden_size, bias), {"device": device, "dtype": dtype}
        self._build(shape, factory, sites, mc=mc, backend=backend, recompute=recompute)

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Tensor:
        """Computes one step: as :meth:`LSTMCell.forward`, with h alone as ``hx`` and as the result."""
        return self._one_state(input, hx, rng, example_ids, step_offset)


class RNNCell(RegularizedCell):
    """A drop-in for ``torch.nn.RNNCell`` with every RNN dropout inside the step.

    As :class:`LSTMCell`, without ``zoneout_c`` and ``cell_dropout``; sites are those of :class:`RNN`.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
    """

    _own_switches = types.MappingProxyType({"nonlinearity": "tanh"})
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        sites = {
            "input_dropout": input_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "zoneout_h": zoneout_h,
        }
        self.nonlinearity = nonlinearity  # before the constructor, which asks for the mode
        shape, factory = (input_size, hidden_size, bias), {"device": device, "dtype": dtype}
        self._build(shape, factory, sites, mc=mc, backend=backend, recompute=recompute)

    @property
    def mode(self) -> str:  # type: ignore[override]
        """torch.nn's name of the cell. Read anew: ``nn.RNNCell`` too reads ``nonlinearity`` at each call.

        Raises:
            ValueError: ``nonlinearity`` is neither ``"tanh"`` nor ``"relu"``.
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        return f"RNN_{self.nonlinearity.upper()}"

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Tensor:
        """Computes one step: as :meth:`LSTMCell.forward`, with h alone as ``hx`` and as the result."""
        return self._one_state(input, hx, rng, example_ids, step_offset)


__all__ = ["SITES_OF_CELLS", "GRUCell", "LSTMCell", "RNNCell", "RegularizedCell"]
