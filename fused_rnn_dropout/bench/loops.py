"""What people write today: an RNN as a Python loop with its dropouts, and weight drop around torch's own layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shapes import cell_of

Step = Callable[..., tuple[Tensor, ...]]


def _zone(keep: float, old: Tensor, new: Tensor, training: bool) -> Tensor:
    if not keep:
        return new
    if training:
        return torch.where(torch.rand_like(new) < keep, old, new)
    return keep * old + (1 - keep) * new


def lstm_step(
    projected: Tensor,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    hidden: Tensor | None,
    rates: dict[str, float],
    training: bool,
) -> tuple[Tensor, Tensor]:
    """One step: ``projected`` (B, 4H) is W x + b, ``hidden`` the mask of h or None; returns h and c."""
    read = h if hidden is None else h * hidden
    i, f, g, o = (projected + read @ w_hh.t()).chunk(4, 1)
    g = F.dropout(torch.tanh(g), rates["update_dropout"], training)
    c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * g
    h_new = torch.sigmoid(o) * torch.tanh(c_new)
    return _zone(rates["zoneout_h"], h, h_new, training), _zone(rates["zoneout_c"], c, c_new, training)


def gru_step(
    projected: Tensor,
    h: Tensor,
    w_hh: Tensor,
    b_hh: Tensor,
    hidden: Tensor | None,
    rates: dict[str, float],
    training: bool,
) -> tuple[Tensor]:
    """One step: ``projected`` (B, 3H) is W x + b_ih; returns h alone."""
    read = h if hidden is None else h * hidden
    input_r, input_z, input_n = projected.chunk(3, 1)
    r, z, n = torch.addmm(b_hh, read, w_hh.t()).chunk(3, 1)
    reset, keep = torch.sigmoid(input_r + r), torch.sigmoid(input_z + z)
    candidate = F.dropout(torch.tanh(input_n + reset * n), rates["update_dropout"], training)
    return (_zone(rates["zoneout_h"], h, (1 - keep) * candidate + keep * h, training),)


def rnn_step(
    projected: Tensor, h: Tensor, w_hh: Tensor, hidden: Tensor | None, rates: dict[str, float], training: bool
) -> tuple[Tensor]:
    """One step: ``projected`` (B, H) is W x + b; returns h alone."""
    read = h if hidden is None else h * hidden
    candidate = F.dropout(torch.tanh(projected + read @ w_hh.t()), rates["update_dropout"], training)
    return (_zone(rates["zoneout_h"], h, candidate, training),)


STEPS: dict[str, Step] = {"LSTM": lstm_step, "GRU": gru_step, "RNN_TANH": rnn_step}


LOOP_CELLS = tuple(STEPS)
LOOP_SITES = (
    "input_dropout",
    "output_dropout",
    "hidden_dropout",
    "weight_dropout",
    "update_dropout",
    "zoneout_c",
    "zoneout_h",
)
"""What :class:`Loop` knows."""


class Loop(nn.Module):
    """One layer as a loop over time, its product with the inputs taken out of the loop.

    Args:
        cell: one of :data:`LOOP_CELLS`, or the class of one.
        inputs, units: widths.
        rates: by the names of :data:`LOOP_SITES`, as the library has them by default; those that are missing are 0.
        careful: whether the steps of that product are taken apart by one ``unbind``. Published loops index it at each
            step, and autograd makes a gradient as large as all steps for each of them: that time grows with T squared.
        compiled: whether each step goes through ``torch.compile``.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(
        self,
        cell: str,
        inputs: int,
        units: int,
        rates: dict[str, float],
        careful: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.row, self.units, self.careful = cell_of(cell), units, careful
        gates = self.row.gates
        self.rates = {name: rates.get(name, 0.0) for name in LOOP_SITES}
        bound = 1 / math.sqrt(units)
        for name, shape in (
            ("weight_ih_l0", (gates * units, inputs)),
            ("weight_hh_l0", (gates * units, units)),
            ("bias_ih_l0", (gates * units,)),
            ("bias_hh_l0", (gates * units,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        self.step = torch.compile(STEPS[self.row.name], dynamic=False) if compiled else STEPS[self.row.name]

    def _mask(self, name: str, like: Tensor) -> Tensor | None:
        """One mask for all steps: (B, width)."""
        rate = self.rates[name]
        if not self.training or not rate:
            return None
        return torch.empty_like(like).bernoulli_(1 - rate).div_(1 - rate)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (T, B, I) to out (T, B, H) and the last state."""
        mask = self._mask("input_dropout", x[0])
        if mask is not None:
            x = x * mask
        w_hh = F.dropout(self.weight_hh_l0, self.rates["weight_dropout"], self.training)
        state = (x.new_zeros(x.size(1), self.units),) * self.row.states
        hidden = self._mask("hidden_dropout", state[0])
        recurrent: tuple[Tensor, ...] = (w_hh,)
        bias = self.bias_ih_l0 + self.bias_hh_l0
        if self.row.apart:
            bias, recurrent = self.bias_ih_l0, (w_hh, self.bias_hh_l0)
        outputs = []
        projections = F.linear(x, self.weight_ih_l0, bias)
        steps = projections.unbind(0) if self.careful else (projections[t] for t in range(len(projections)))
        for projected in steps:
            state = self.step(projected, *state, *recurrent, hidden, self.rates, self.training)
            outputs.append(state[0])
        out = torch.stack(outputs)
        mask = self._mask("output_dropout", state[0])
        return (out if mask is None else out * mask), (state if self.row.has_c else state[0])


class WeightDrop(nn.Module):
    """Weight drop as it is wrapped around torch's own modules: the recurrent weight is replaced before each call."""

    def __init__(self, rnn: nn.RNNBase, rate: float) -> None:
        super().__init__()
        self.rnn: nn.Module = rnn
        self.rate = rate
        self.raw = nn.Parameter(rnn.get_parameter("weight_hh_l0").detach().clone())
        del rnn._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> Any:
        # A plain attribute: torch gathers the flat weights by name, and finds whatever is there. A view, since in eval
        # dropout returns the parameter itself, which would be registered.
        self.rnn.weight_hh_l0 = F.dropout(self.raw, self.rate, self.training).view_as(self.raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the weights are no longer one piece of memory
            return self.rnn(x)
