"""A GRU layer in one direction: checks, then its passes in order. See ``lstm.py``.

W x and U h have the gradients of r and z in common and their own of n, so that a row of gradients holds four: n at W x,
r, z, n at U h. The first three go back through W, whose rows are put into that order, the last three through U.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cells import GRU
from ..fakes import NEEDS_BIAS, NEEDS_W_HH, NEEDS_W_IH, NEEDS_X, Keep, states_apart
from . import gru_sequence as sequence
from . import gru_step as step
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
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    def check(self) -> None:
        check(self.x.dim() >= 2 and self.h0.dim() == 2, "x must have 2 or 3 dimensions, h0 2")
        check_floating(**self._asdict())
        check_device(self.x.device, **self._asdict())
        inputs, units = self.x.shape[-1], self.h0.shape[1]
        check_shapes(
            {
                "w_ih": (self.w_ih, (3 * units, inputs)),
                "w_hh": (self.w_hh, (3 * units, units)),
                "b_ih": (self.b_ih, (3 * units,)),
                "b_hh": (self.b_hh, (3 * units,)),
            }
        )
        check((self.b_ih is None) == (self.b_hh is None), "b_ih and b_hh must be given together")


def forward(
    layer: Layer, batch: Batch, sites: Sites, weights: WeightMasks, at_once: bool, save: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of ``gru_forward``."""
    p = Pass(layer.x, layer.b_ih, layer.b_hh, batch, weights)
    units, rows = layer.h0.shape[1], batch.rows
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)

    out = p.values(*batch.shape(units))
    gates = p.values(rows, 3 * units) if save == Keep.ALL else None
    resets = p.values(rows, units) if save == Keep.ALL else None
    apart = save and states_apart(GRU, True, p.dtype, weights.flags)
    states = p.values(rows, units) if apart else None

    h, halves = p.sums(batch.batch, units), p.values(2, batch.batch, units)
    read = halves[0]
    enter_state(layer.h0, h, read, sites, memory=True, scaled=True)
    layout = layout_of(batch, p.x.device) if at_once else None
    if at_once:
        halves[1].copy_(read)  # rows that begin later, in a reversed packed batch, may find either half
    rec = p.sums(0 if at_once else batch.batch, 3 * units)
    for begin, end, row, chunk_rows in batch.chunks(rows_of_chunk(3 * units, p.compute.itemsize)):
        pre = new_product(p.x[row : row + chunk_rows], w_ih.t(), p.compute)
        if at_once:
            sequence.forward_steps(
                pre, w_hh, p.b_ih, p.b_hh, h, halves, out, states, gates, resets, layout, sites, batch, begin, end, row,
                TILES, precision(p.dtype),
            )  # fmt: skip
            continue
        for s in range(begin, end):
            t = batch.time(s)
            active = batch.active(t)
            product(read[:active], w_hh.t(), rec[:active])
            step.forward_step(pre, rec, p.b_ih, p.b_hh, h, read, out, states, gates, resets, sites, batch, t, row)
    return (
        out,
        sites.read(h).to(p.dtype),
        p.values(0) if gates is None else gates,
        p.values(0) if resets is None else resets,
        p.values(0) if states is None else states,
    )


def _gates_again(p: Pass, operand: Tensor, w_ih: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = operand.shape[0], w_hh.shape[0]
    gates, resets = p.values(rows, width), p.values(rows, width // 3)
    for _, _, row, chunk_rows in p.batch.chunks(rows_of_chunk(width, p.compute.itemsize)):
        of_chunk = slice(row, row + chunk_rows)
        pre = new_product(p.x[of_chunk], w_ih.t(), p.compute)
        rec = new_product(operand[of_chunk], w_hh.t(), p.compute)
        step.activate(pre, rec, p.b_ih, p.b_hh, gates[of_chunk], resets[of_chunk])
    return gates, resets


def backward(
    grad_out: Tensor | None,
    grad_h_n: Tensor | None,
    layer: Layer,
    gates: Tensor,
    resets: Tensor,
    states: Tensor,
    batch: Batch,
    sites: Sites,
    weights: WeightMasks,
    at_once: bool,
    needs: int,
) -> tuple[Tensor, ...]:
    """The results of ``gru_backward``."""
    p = Pass(layer.x, layer.b_ih, layer.b_hh, batch, weights)
    units, rows = layer.h0.shape[1], batch.rows
    kept = gates.dim() != 1  # otherwise the forward kept no gates
    check_floating(grad_out=grad_out, grad_h_n=grad_h_n)
    check_device(layer.x.device, grad_out=grad_out, grad_h_n=grad_h_n, gates=gates, resets=resets, states=states)
    if kept:
        check_saved("gates", gates, p.dtype, (rows, 3 * units))
        check_saved("resets", resets, p.dtype, (rows, units))
    check(states.numel() == rows * units and states.dtype == p.dtype, "states must be what the forward returned")
    check_shapes({"grad_out": (grad_out, batch.shape(units)), "grad_h_n": (grad_h_n, (batch.batch, units))})
    w_ih, w_hh = weights.masked("weight_ih", layer.w_ih), weights.masked("weight_hh", layer.w_hh)
    states, gates, resets = states.contiguous().view(rows, units), gates.contiguous(), resets.contiguous()
    dout = None if grad_out is None else grad_out.contiguous()
    h0 = layer.h0.contiguous()

    operand = None
    if needs & NEEDS_W_HH or not kept:
        operand = operands(states, h0, p.values(rows, units), batch, sites, scaled=True)
    if not kept:
        assert operand is not None
        gates, resets = _gates_again(p, operand, w_ih, w_hh)
    dgates = p.values(rows, 4 * units)  # n at W x; r; z; n at U h
    at_input, at_recurrent = dgates[:, : 3 * units], dgates[:, units:]
    dh = sites.read(p.carried(grad_h_n, units))
    rec = p.sums(batch.batch, units)

    def send(t: int) -> int:
        """What step t sends through U to the state before it, in ``rec``."""
        n, row = batch.active(t), batch.row(t)
        if n:
            product(at_recurrent[row : row + n], w_hh, rec[:n])
        return n

    if at_once:
        sequence.backward_steps(
            w_hh, dout, dh, gates, resets, states, h0, dgates, layout_of(batch, p.x.device), sites, batch, TILES,
            precision(p.dtype),
        )  # fmt: skip
    for s in () if at_once else reversed(range(batch.steps)):
        t = batch.time(s)
        send(batch.after(t))
        step.backward_step(rec, dout, dh, gates, resets, states, h0, dgates, sites, batch, t)
    dh0 = h0.new_empty(h0.shape)
    leave_state(dh, rec, send(batch.time(0)), dh0, sites, memory=True, scaled=True)

    dx, dw_ih, dw_hh = layer.x.new_empty(0), layer.w_ih.new_empty(0), layer.w_hh.new_empty(0)
    if needs & NEEDS_X:
        wide = p.dtype if layer.x.dtype == p.dtype else p.compute
        n_first = torch.cat((w_ih[2 * units :], w_ih[: 2 * units]))
        dx = new_product(at_input, n_first, wide).to(layer.x.dtype).view(layer.x.shape)
    if needs & NEEDS_W_IH:
        of_w = new_product(at_input.t(), p.x, p.compute)
        dw_ih = weights.gradient("weight_ih", torch.cat((of_w[units:], of_w[:units])), layer.w_ih.dtype)
    if needs & NEEDS_W_HH:
        assert operand is not None
        dw_hh = weights.gradient("weight_hh", new_product(at_recurrent.t(), operand, p.compute), layer.w_hh.dtype)
    db_ih, db_hh = p.sums(0), p.sums(0)
    if layer.b_ih is not None and layer.b_hh is not None:
        if needs & NEEDS_BIAS:
            sums = row_sum(dgates, p.compute)
            db_ih, db_hh = torch.cat((sums[units : 3 * units], sums[:units])), sums[units:].clone()
        db_ih, db_hh = db_ih.to(layer.b_ih.dtype), db_hh.to(layer.b_hh.dtype)
    return dx, dh0, dw_ih, dw_hh, db_ih, db_hh
