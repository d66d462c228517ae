"""An LSTM layer in one direction: checks, then its passes in order. Products are torch's, all else is a kernel."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..cells import LSTM
from ..fakes import NEEDS_BIAS, NEEDS_W_HH, NEEDS_W_HR, NEEDS_W_IH, NEEDS_X, Keep, states_apart
from . import lstm_sequence as sequence
from . import lstm_step as step
from . import lstm_step_backward as step_backward
from .batch import Batch
from .checks import check, check_device, check_floating, check_saved, check_shapes
from .entry import enter_state, leave_state, operands
from .launch import TILES, precision, rows_of_chunk
from .passes import Pass
from .products import new_product, product, row_sum
from .sequence import layout_of
from .state_sites import Sites
from .weights import WeightMasks


class Layer(NamedTuple):
    """The tensors of a layer, as its operators take them."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    def check(self) -> None:
        dims = self.x.dim() >= 2 and self.h0.dim() == 2 and self.c0.dim() == 2
        check(dims, "x must have 2 or 3 dimensions, h0 and c0 2")
        check_floating(**self._asdict())
        check_device(self.x.device, **self._asdict())
        inputs, units, projected = self.x.shape[-1], self.c0.shape[1], self.h0.shape[1]
        fits = projected <= units if self.w_hr is not None else projected == units
        check(fits, "h0 must have as many units as c0, or with a projection no more")
        check_shapes(
            {
                "h0": (self.h0, (self.c0.shape[0], projected)),
                "w_ih": (self.w_ih, (4 * units, inputs)),
                "w_hh": (self.w_hh, (4 * units, projected)),
                "b_ih": (self.b_ih, (4 * units,)),
                "b_hh": (self.b_hh, (4 * units,)),
                "w_hr": (self.w_hr, (projected, units)),
            }
        )
        check((self.b_ih is None) == (self.b_hh is None), "b_ih and b_hh must be given together")


def forward(
    layer: Layer, batch: Batch, sites: Sites, weights: WeightMasks, at_once: bool, save: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of ``lstm_forward``."""
    p = Pass(layer.x, layer.b_ih, layer.b_hh, batch, weights)
    units, width, rows = layer.c0.shape[1], layer.h0.shape[1], batch.rows
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)
    w_hr = None if layer.w_hr is None else weights.masked("weight_hr", layer.w_hr)

    out = p.values(*batch.shape(width))
    gates = p.values(rows, 4 * units) if save == Keep.ALL else None
    cells = p.sums(rows, units) if save else None
    apart = save and states_apart(LSTM, True, p.dtype, weights.flags)
    states = p.values(rows, width) if apart else None

    h, c, halves = p.sums(batch.batch, width), p.sums(batch.batch, units), p.values(2, batch.batch, width)
    read = halves[0]
    enter_state(layer.c0, c, None, sites, memory=True)
    enter_state(layer.h0, h, read, sites, memory=False)
    layout = layout_of(batch, p.x.device) if at_once else None
    if at_once:
        halves[1].copy_(read)  # rows that begin later, in a reversed packed batch, may find either half
    rec = p.sums(0 if at_once else batch.batch, 4 * units)
    outputs = projected = None
    if w_hr is not None:
        outputs, projected = p.values(batch.batch, units), p.sums(batch.batch, width)

    for begin, end, row, chunk_rows in batch.chunks(rows_of_chunk(4 * units, p.compute.itemsize)):
        pre = new_product(p.x[row : row + chunk_rows], w_ih.t(), p.compute)
        if at_once:
            sequence.forward_steps(
                pre, w_hh, p.b_ih, p.b_hh, c, h, halves, out, states, gates, cells, layout, sites, batch, begin, end,
                row, TILES, precision(p.dtype),
            )  # fmt: skip
            continue
        for s in range(begin, end):
            t = batch.time(s)
            active = batch.active(t)
            product(read[:active], w_hh.t(), rec[:active])
            if w_hr is None:
                step.forward_step(
                    pre, rec, p.b_ih, p.b_hh, c, h, read, out, states, None, gates, cells, sites, batch, t, row
                )
            else:
                assert outputs is not None and projected is not None
                step.forward_step(
                    pre, rec, p.b_ih, p.b_hh, c, None, None, None, None, outputs, gates, cells, sites, batch, t, row
                )
                product(outputs[:active], w_hr.t(), projected[:active])
                step.project_step(projected, h, read, out, states, sites, batch, t)

    nothing = p.values(0)
    return (
        out,
        h.to(p.dtype),
        c.to(p.dtype),
        nothing if gates is None else gates,
        p.sums(0) if cells is None else cells,
        p.values(0) if states is None else states,
    )


def _gates_again(p: Pass, operand: Tensor, w_ih: Tensor, w_hh: Tensor) -> Tensor:
    gates = p.values(p.batch.rows, w_hh.shape[0])
    for _, _, row, rows in p.batch.chunks(rows_of_chunk(w_hh.shape[0], p.compute.itemsize)):
        of_chunk = slice(row, row + rows)
        pre = new_product(p.x[of_chunk], w_ih.t(), p.compute)
        rec = new_product(operand[of_chunk], w_hh.t(), p.compute)
        step.activate(pre, rec, p.b_ih, p.b_hh, gates[of_chunk])
    return gates


def backward(
    grad_out: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    layer: Layer,
    gates: Tensor,
    cells: Tensor,
    states: Tensor,
    batch: Batch,
    sites: Sites,
    weights: WeightMasks,
    at_once: bool,
    needs: int,
) -> tuple[Tensor, ...]:
    """The results of ``lstm_backward``."""
    p = Pass(layer.x, layer.b_ih, layer.b_hh, batch, weights)
    units, width, rows = layer.c0.shape[1], layer.h0.shape[1], batch.rows
    kept = gates.dim() != 1  # otherwise the forward kept no gates
    check_floating(grad_out=grad_out, grad_h_n=grad_h_n, grad_c_n=grad_c_n)
    check_device(
        layer.x.device, grad_out=grad_out, grad_h_n=grad_h_n, grad_c_n=grad_c_n, gates=gates, cells=cells, states=states
    )
    check_saved("cells", cells, p.compute, (rows, units))
    if kept:
        check_saved("gates", gates, p.dtype, (rows, 4 * units))
    check(states.numel() == rows * width and states.dtype == p.dtype, "states must be what the forward returned")
    check_shapes(
        {
            "grad_out": (grad_out, batch.shape(width)),
            "grad_h_n": (grad_h_n, (batch.batch, width)),
            "grad_c_n": (grad_c_n, (batch.batch, units)),
        }
    )
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)
    w_hr = None if layer.w_hr is None else weights.masked("weight_hr", layer.w_hr)
    states, cells, gates = states.contiguous().view(rows, width), cells.contiguous(), gates.contiguous()
    dout = None if grad_out is None else grad_out.contiguous()
    c0 = layer.c0.contiguous()

    operand = None
    if needs & NEEDS_W_HH or not kept:
        operand = operands(states, layer.h0, p.values(rows, width), batch, sites)
    if not kept:
        assert operand is not None
        gates = _gates_again(p, operand, w_ih, w_hh)
    # Gates that were computed again are nobody else's: their gradients may take their place.
    dgates = p.values(rows, 4 * units) if kept else gates
    dh, dc = p.carried(grad_h_n, width), p.carried(grad_c_n, units)
    rec = p.sums(batch.batch, width)
    dprojected = outputs = dh_new = None
    if w_hr is not None:
        dprojected, outputs = p.values(rows, width), p.values(rows, units)
        dh_new = p.sums(batch.batch, units)

    def send(t: int) -> int:
        """What step t sends through U to the state before it, in ``rec``."""
        n, row = batch.active(t), batch.row(t)
        if n:
            product(dgates[row : row + n], w_hh, rec[:n])
        return n

    if at_once:
        sequence.backward_steps(
            w_hh, dout, dh, gates, cells, c0, dc, dgates, layout_of(batch, p.x.device), sites, batch, TILES,
            precision(p.dtype),
        )  # fmt: skip
    for s in () if at_once else reversed(range(batch.steps)):
        t = batch.time(s)
        active, row = batch.active(t), batch.row(t)
        send(batch.after(t))
        if w_hr is None:
            step_backward.backward_step(rec, dout, dh, gates, cells, c0, dc, dgates, sites, batch, t)
        else:
            assert dprojected is not None and dh_new is not None and outputs is not None
            step_backward.unproject_step(rec, dout, dh, dprojected, sites, batch, t)
            product(dprojected[row : row + active], w_hr, dh_new[:active])
            step_backward.projected_backward_step(dh_new, gates, cells, c0, dc, dgates, outputs, sites, batch, t)
    dh0, dc0 = layer.h0.new_empty(layer.h0.shape), c0.new_empty(c0.shape)
    leave_state(dh, rec, send(batch.time(0)), dh0, sites, memory=False)
    leave_state(dc, None, 0, dc0, sites, memory=True)

    def gradient(needed: int, name: str, weight: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
        if not needs & needed:
            return weight.new_empty(0)
        assert left is not None and right is not None
        return weights.gradient(name, new_product(left.t(), right, p.compute), weight.dtype)

    dx = layer.x.new_empty(0)
    if needs & NEEDS_X:
        wide = p.dtype if layer.x.dtype == p.dtype else p.compute
        dx = new_product(dgates, w_ih, wide).to(layer.x.dtype).view(layer.x.shape)
    dw_ih = gradient(NEEDS_W_IH, "weight_ih", layer.w_ih, dgates, p.x)
    dw_hh = gradient(NEEDS_W_HH, "weight_hh", layer.w_hh, dgates, operand)
    bias_dtype = p.compute if layer.b_ih is None else layer.b_ih.dtype
    wants_bias = layer.b_ih is not None and needs & NEEDS_BIAS
    db = row_sum(dgates, p.compute).to(bias_dtype) if wants_bias else p.sums(0).to(bias_dtype)
    if layer.w_hr is None:
        dw_hr = p.sums(0)
    else:
        dw_hr = gradient(NEEDS_W_HR, "weight_hr", layer.w_hr, dprojected, outputs)
    return dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr
