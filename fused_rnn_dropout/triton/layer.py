"""A layer of any cell in one direction: checks, then its passes in order. Products are torch's, all else is a kernel.

A row of gradients at the gates holds a block of H for each gate. Where a cell takes its last gate apart, as a GRU its
n, W x and U h have the gradients of the other gates in common and their own of that one: a row is then the last gate's
at W x, the others', the last gate's at U h. All blocks but the last go back through W, whose rows are put into that
order, and all but the first through U.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cells import Cell
from ..layer_call import NEEDS_X, Keep, Kept, needed
from ..sites import output_differs
from . import gru_sequence, gru_step, lstm_sequence, lstm_step, lstm_step_backward, rnn_sequence, rnn_step
from .checks import check, check_device, check_floating, check_saved, check_shapes
from .entry import enter_state, leave_state, operands
from .launch import TILES, aligned, precision, rows_of_chunk
from .passes import Backward, Forward, Pass
from .products import new_product, product, row_sum
from .rows import Batch
from .sequence import layout_of
from .sites import Sites
from .weights import WeightMasks


class Kernels(NamedTuple):
    """The launchers of a cell: of one step, of gates that are computed again, of all steps at once."""

    forward_step: Callable[..., None]
    backward_step: Callable[..., None]
    activate: Callable[..., None]
    forward_steps: Callable[..., None]
    backward_steps: Callable[..., None]


def _rnn(relu: bool) -> Kernels:
    launchers = (
        rnn_step.forward_step,
        rnn_step.backward_step,
        rnn_step.activate,
        rnn_sequence.forward_steps,
        rnn_sequence.backward_steps,
    )
    return Kernels(*(functools.partial(launcher, relu=relu) for launcher in launchers))


KERNELS = {
    "LSTM": Kernels(
        lstm_step.forward_step,
        lstm_step_backward.backward_step,
        lstm_step.activate,
        lstm_sequence.forward_steps,
        lstm_sequence.backward_steps,
    ),
    "GRU": Kernels(
        gru_step.forward_step,
        gru_step.backward_step,
        gru_step.activate,
        gru_sequence.forward_steps,
        gru_sequence.backward_steps,
    ),
    "RNN_TANH": _rnn(relu=False),
    "RNN_RELU": _rnn(relu=True),
}


class Layer(NamedTuple):
    """The tensors of one direction; None where a cell has no such tensor."""

    x: Tensor
    h0: Tensor
    c0: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    @property
    def units(self) -> int:
        """The width H of the memory."""
        return (self.h0 if self.c0 is None else self.c0).shape[1]

    def check(self, cell: Cell) -> None:
        dims = self.x.dim() >= 2 and self.h0.dim() == 2 and (self.c0 is None or self.c0.dim() == 2)
        check(dims, f"x must have 2 or 3 dimensions, h0 {'and c0 ' if cell.has_c else ''}2")
        check_floating(**self._asdict())
        check_device(self.x.device, **self._asdict())
        inputs, units, projected = self.x.shape[-1], self.units, self.h0.shape[1]
        fits = projected <= units if self.w_hr is not None else projected == units
        check(fits, "h0 must have as many units as c0, or with a projection no more")
        rows = cell.gates * units
        check_shapes(
            {
                "h0": (self.h0, (self.h0.shape[0] if self.c0 is None else self.c0.shape[0], projected)),
                "w_ih": (self.w_ih, (rows, inputs)),
                "w_hh": (self.w_hh, (rows, projected)),
                "b_ih": (self.b_ih, (rows,)),
                "b_hh": (self.b_hh, (rows,)),
                "w_hr": (self.w_hr, (projected, units)),
            }
        )


class Surroundings(NamedTuple):
    """What is around the tensors of one direction."""

    batch: Batch
    sites: Sites
    weights: WeightMasks
    at_once: bool  # whether the sequence schedule runs it


# --------------------------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------------------------


def forward(cell: Cell, layer: Layer, around: Surroundings, keep: int) -> tuple[Tensor, list[Tensor], Kept]:
    """The output of one direction, its last states, and what is kept."""
    batch, sites, weights, at_once = around
    p, kernels = Pass(layer.x, layer.b_ih, layer.b_hh, cell.apart * layer.units, batch, weights), KERNELS[cell.name]
    units, width, rows = layer.units, layer.h0.shape[1], batch.rows
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)
    w_hr = None if layer.w_hr is None else weights.masked("weight_hr", layer.w_hr)
    beside = p.sums if cell.has_c else p.values  # room for what is kept beside the gates

    f = Forward(
        bias=p.bias,
        bias_apart=p.bias_apart,
        c=p.sums(batch.batch, units) if cell.has_c else None,
        h=p.sums(batch.batch, width),
        read=p.values(2, batch.batch, width),
        out=p.values(*batch.shape(width)),
        states=p.values(rows, width) if keep and output_differs(cell, weights.flags) else None,
        outputs=None if w_hr is None else p.values(batch.batch, units),
        gates=p.values(rows, cell.gates * units) if keep == Keep.ALL else None,
        beside=beside(rows, units) if cell.keeps_beside(keep) else None,
    )
    read = f.read[0]
    if f.c is not None:
        assert layer.c0 is not None
        enter_state(layer.c0, f.c, None, sites, memory=True)
    enter_state(layer.h0, f.h, read, sites, memory=cell.scaled, scaled=cell.scaled)
    layout = layout_of(batch, p.x.device) if at_once else None
    if at_once:
        w_hh = w_hh.t().contiguous()  # as those kernels read it: sequence.py
        f.read[1].copy_(read)  # rows that begin later, in a reversed packed batch, may find either half
    rec = p.sums(0 if at_once else batch.batch, cell.gates * units)
    projected = None if w_hr is None else p.sums(batch.batch, width)

    for begin, end, row, chunk_rows in batch.chunks(rows_of_chunk(cell.gates * units, p.compute.itemsize)):
        pre = new_product(p.x[row : row + chunk_rows], w_ih.t(), p.compute)
        if at_once:
            kernels.forward_steps(f, pre, w_hh, layout, sites, batch, begin, end, row, TILES, precision(p.dtype))
            continue
        for s in range(begin, end):
            t = batch.time(s)
            active = batch.active(t)
            product(read[:active], w_hh.t(), rec[:active])
            kernels.forward_step(f, pre, rec, sites, batch, t, row)
            if w_hr is not None:
                assert f.outputs is not None and projected is not None
                product(f.outputs[:active], w_hr.t(), projected[:active])
                lstm_step.project_step(f, projected, sites, batch, t)

    last = [sites.read(f.h) if cell.scaled else f.h] + ([] if f.c is None else [f.c])
    kept = Kept(
        gates=p.values(0) if f.gates is None else f.gates,
        beside=beside(0) if f.beside is None else f.beside,
        states=p.values(0) if f.states is None else f.states,
    )
    return f.out, [state.to(p.dtype) for state in last], kept


# --------------------------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------------------------


def _gates_again(cell: Cell, p: Pass, operand: Tensor, w_ih: Tensor, w_hh: Tensor) -> list[Tensor]:
    """The gates, and what is apart in the last one, of a forward that kept neither."""
    rows, width = operand.shape[0], w_hh.shape[0]
    again = [p.values(rows, width)] + ([p.values(rows, width // cell.gates)] if cell.apart else [])
    for _, _, row, chunk_rows in p.batch.chunks(rows_of_chunk(width, p.compute.itemsize)):
        of_chunk = slice(row, row + chunk_rows)
        pre = new_product(p.x[of_chunk], w_ih.t(), p.compute)
        rec = new_product(operand[of_chunk], w_hh.t(), p.compute)
        KERNELS[cell.name].activate(p, pre, rec, *(values[of_chunk] for values in again))
    return again


def _check_backward(
    cell: Cell, p: Pass, layer: Layer, apart: bool, grads: dict[str, Tensor | None], y: Tensor | None, kept: Kept,
    keep: int,
) -> Tensor:  # fmt: skip
    """Returns the h that backward reads, (N, P); ``apart``: whether it is kept apart from y."""
    units, width, rows = layer.units, layer.h0.shape[1], p.batch.rows
    check(apart or y is not None, "y is needed where its h are not kept apart")
    check_floating(**grads)
    check_device(layer.x.device, **grads, **kept._asdict(), y=y)
    if cell.keeps_beside(keep):
        check_saved("beside", kept.beside, p.compute if cell.has_c else p.dtype, (rows, units))
    if keep == Keep.ALL:
        check_saved("gates", kept.gates, p.dtype, (rows, cell.gates * units))
    shapes = {"grad_h_n": (p.batch.batch, width), "grad_c_n": (p.batch.batch, units)}
    check_shapes({name: (grads.get(name), shape) for name, shape in shapes.items()})
    if apart or y is None:
        check_saved("states", kept.states, p.dtype, (rows, width))
        return aligned(kept.states)
    check_saved("y", y, p.dtype, tuple(p.batch.shape(width)))
    return aligned(y).view(rows, width)


def _over_all_steps(
    cell: Cell,
    p: Pass,
    layer: Layer,
    weights: WeightMasks,
    needs: int,
    dgates: Tensor,
    w_ih: Tensor,
    lefts: dict[str, Tensor | None],
    rights: tuple[Tensor | None, ...],
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of x and of the weights: a product or a sum over all steps for each.

    Args:
        lefts: by the name of a weight, the gradients at what its products gave.
        rights: in the same order, what those products read.
    """
    units = layer.units

    def last_first(weight: Tensor) -> Tensor:
        """The rows of a weight with the last gate's first, where that is apart."""
        return torch.cat((weight[-units:], weight[:-units])) if cell.apart else weight

    def first_last(weight: Tensor) -> Tensor:
        """The other way round."""
        return torch.cat((weight[units:], weight[:units])) if cell.apart else weight

    dx = layer.x.new_empty(0)
    if needs & NEEDS_X:
        wide = p.dtype if layer.x.dtype == p.dtype else p.compute
        at_input = lefts["weight_ih"]
        assert at_input is not None
        dx = new_product(at_input, last_first(w_ih), wide).to(layer.x.dtype).view(layer.x.shape)

    found: dict[str, Tensor] = {}
    masters = {"w_ih": layer.w_ih, "w_hh": layer.w_hh, "w_hr": layer.w_hr}
    for (name, left), right, (short, master) in zip(lefts.items(), rights, masters.items(), strict=True):
        if master is None or not needed(needs, short):
            continue
        assert left is not None and right is not None
        grad = new_product(left.t(), right, p.compute)
        grad = first_last(grad) if name == "weight_ih" else grad
        found[short] = weights.gradient(name, grad, master.dtype)
    if layer.b_ih is not None and needed(needs, "b_ih"):
        assert layer.b_hh is not None
        sums = row_sum(dgates, p.compute)
        found["b_ih"] = (first_last(sums[:-units]) if cell.apart else sums).to(layer.b_ih.dtype)
        if cell.apart:  # elsewhere both have the same gradient
            found["b_hh"] = sums[units:].clone().to(layer.b_hh.dtype)
    given = {name: getattr(layer, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")}
    in_order = [found.get(name, like.new_empty(0)) for name, like in given.items() if like is not None]
    return dx, in_order


def backward(
    cell: Cell,
    layer: Layer,
    around: Surroundings,
    grads: Sequence[Tensor | None],
    y: Tensor | None,
    saved: Kept,
    keep: int,
    needs: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of x, of the states and of the weights, of one direction.

    Args:
        grads: of the output and the last states, None where nobody asked for one.
        y: the output, where no h is kept apart from it.
    """
    batch, sites, weights, at_once = around
    p, kernels = Pass(layer.x, layer.b_ih, layer.b_hh, cell.apart * layer.units, batch, weights), KERNELS[cell.name]
    grad_out, grad_h_n, grad_c_n = (*grads, None)[:3]
    kept = keep == Keep.ALL  # otherwise the forward kept no gates
    last = {"grad_h_n": grad_h_n, "grad_c_n": grad_c_n}
    h_apart = output_differs(cell, weights.flags)
    states = _check_backward(cell, p, layer, h_apart, last, y, saved, keep)
    units, width, rows = layer.units, layer.h0.shape[1], batch.rows
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)
    w_hr = None if layer.w_hr is None else weights.masked("weight_hr", layer.w_hr)
    beside, gates = aligned(saved.beside), aligned(saved.gates)
    h0, c0 = layer.h0.contiguous(), None if layer.c0 is None else layer.c0.contiguous()

    operand = None
    if needed(needs, "w_hh") or not kept:
        operand = operands(states, h0, p.values(rows, width), batch, sites, scaled=cell.scaled)
    if not kept:
        assert operand is not None
        gates, *apart = _gates_again(cell, p, operand, w_ih, w_hh)
        beside = apart[0] if cell.apart else beside
    # Gates that were computed again are nobody else's: their gradients take their place where there are as many.
    dgates = gates if not kept and not cell.apart else p.values(rows, (cell.gates + cell.apart) * units)
    at_input, at_recurrent = dgates[:, : cell.gates * units], dgates[:, cell.apart * units :]
    dh = p.carried(grad_h_n, width)
    k = Backward(
        dout=None if grad_out is None else aligned(grad_out),
        dh=sites.read(dh) if cell.scaled else dh,
        dc=p.carried(grad_c_n, units) if cell.has_c else None,
        gates=gates,
        beside=beside,
        states=states,
        h0=h0,
        c0=c0,
        dgates=dgates,
    )
    rec = p.sums(batch.batch, width)
    dprojected = outputs = dh_new = None
    if w_hr is not None:
        dprojected, outputs = p.values(rows, width), p.values(rows, units)
        dh_new = p.sums(batch.batch, units)

    def send(t: int) -> int:
        """What step t sends through U to the state before it, in ``rec``."""
        n, row = batch.active(t), batch.row(t)
        if n:
            product(at_recurrent[row : row + n], w_hh, rec[:n])
        return n

    if at_once:
        kernels.backward_steps(k, w_hh, layout_of(batch, p.x.device), sites, batch, TILES, precision(p.dtype))
    for s in () if at_once else reversed(range(batch.steps)):
        t = batch.time(s)
        active, row = batch.active(t), batch.row(t)
        send(batch.after(t))
        if w_hr is None:
            kernels.backward_step(k, rec, sites, batch, t)
        else:
            assert dprojected is not None and dh_new is not None and outputs is not None
            lstm_step_backward.unproject_step(k, rec, dprojected, sites, batch, t)
            product(dprojected[row : row + active], w_hr, dh_new[:active])
            lstm_step_backward.projected_backward_step(k, dh_new, outputs, sites, batch, t)
    initial = [h0.new_empty(h0.shape)]
    leave_state(k.dh, rec, send(batch.time(0)), initial[0], sites, memory=cell.scaled, scaled=cell.scaled)
    if c0 is not None:
        assert k.dc is not None
        initial.append(c0.new_empty(c0.shape))
        leave_state(k.dc, None, 0, initial[1], sites, memory=True)

    lefts = {"weight_ih": at_input, "weight_hh": at_recurrent, "weight_hr": dprojected}
    dx, of_weights = _over_all_steps(cell, p, layer, weights, needs, dgates, w_ih, lefts, (p.x, operand, outputs))
    return dx, initial, of_weights
