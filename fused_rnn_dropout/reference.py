"""The slow truth: LSTM, GRU and plain RNN layers with every dropout, in plain PyTorch with explicit masks.

One layer, one direction, any floating dtype, any device. Only differentiable torch operations and no host reads, so
double backward, forward AD, ``vmap``, ``torch.func`` and ``torch.compile`` all work. Every backend is held to these
functions. ``docs/semantics.md`` has the equations; :mod:`masks` makes the masks; any tensors of these shapes will do.

Masks come as a dict; an absent key means that the site is off. With G gates (4, 3 or 1), width H of the memory and
width P of h (H without a projection):

=================================== ================================================================================
``input``                           factor on x: (T or 1, B or 1, I); one per gate: (1, B or 1, G, I)
``hidden``                          factor on h before U h: (T or 1, B or 1, P); one per gate: (1, B or 1, G, P)
``weight_hh, weight_ih, weight_hr`` factor on a weight of shape (R, C): (R, C), (R, 1) or per example (B, R, C)
``update``                          factor on the candidate: (T or 1, B or 1, H) or 0-dim
``cell``                            factor (0/1) on the new memory: (T or 1, B or 1, H), or 0-dim: eval of scale="paper"
``cell_scale``                      0-dim: factor on what reads the memory; absent means 1
``cell_entry``                      factor on the memory that comes in: (B or 1, H) or 0-dim; absent means, where
                                    ``cell`` is one mask for all steps, that mask (over ``cell_scale`` in a GRU), and
                                    otherwise 1 (over ``cell_scale`` in a GRU)
``zoneout_c``, ``zoneout_h``        1 where the old value stays: (T or 1, B or 1, H or P); 0-dim: the expectation z
``zoneout_gate``                    1 where the update is skipped and the old output gate stays: as ``zoneout_c``
``input_noise``, ``hidden_noise``   added to x or h behind its mask: (T or 1, B or 1, I or P)
``weight_hh_noise``, ...            added to a weight behind its mask: (R, C) or per example (B, R, C)
=================================== ================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Masks: TypeAlias = Mapping[str, Tensor]
Lengths: TypeAlias = Tensor | Sequence[int]


def apply(x: Tensor, factor: Tensor) -> Tensor:
    """``x * factor`` that selects 0 where the factor is 0, so that a dropped inf or NaN is 0 and not NaN."""
    return torch.where(factor != 0, x * factor, 0.0)


# --------------------------------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------------------------------


def _check_tensor(name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} should be a tensor, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} should have shape {shape}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise ValueError(f"{name} should have the dtype of x, {dtype}, got {value.dtype}")


def _width(name: str, state: object) -> int:
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} should be a tensor, got {type(state).__name__}")
    return state.shape[-1] if state.dim() else 0


def _check_mask(name: str, mask: object, allowed: list[tuple[tuple[int, ...], ...]]) -> None:
    """``allowed`` lists shapes; each of their sizes is a tuple of the values that may stand there."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"masks[{name!r}] should be a tensor, got {type(mask).__name__}")
    if not mask.is_floating_point():
        raise ValueError(f"masks[{name!r}] should have a floating dtype, got {mask.dtype}")
    shape = tuple(mask.shape)
    fits = (len(shape) == len(sizes) and all(map(tuple.__contains__, sizes, shape)) for sizes in allowed)
    if not any(fits):
        spelled = (", ".join("|".join(map(str, dict.fromkeys(size))) for size in sizes) for sizes in allowed)
        raise ValueError(f"masks[{name!r}] should have shape ({') or ('.join(spelled)}), got {shape}")


def _check(
    x: Tensor,
    states: dict[str, tuple[Tensor, int]],
    weights: Sequence[Tensor | None],
    masks: Masks | None,
    gates: int,
    hidden_size: int,
    keys: tuple[str, ...],
) -> dict[str, Tensor]:
    """Checks every argument of a layer against x and returns the masks as a dict of their own."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x should be a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x should have 3 dimensions (time, batch, features), got {x.dim()}")
    if not x.is_floating_point():
        raise ValueError(f"x should have a floating dtype, got {x.dtype}")
    steps, batch, input_size = x.shape
    if steps == 0:
        raise ValueError("Expected sequence length to be larger than 0 in RNN")
    w_ih, w_hh, b_ih, b_hh, w_hr = (*weights, None)[:5]
    rows, state_size = gates * hidden_size, hidden_size if w_hr is None else w_hr.shape[0]
    _check_tensor("weights: w_ih", w_ih, (rows, input_size), x.dtype)
    _check_tensor("weights: w_hh", w_hh, (rows, state_size), x.dtype)
    _check_tensor("weights: w_hr", w_hr, (state_size, hidden_size), x.dtype, optional=True)
    _check_tensor("weights: b_ih", b_ih, (rows,), x.dtype, optional=True)
    _check_tensor("weights: b_hh", b_hh, (rows,), x.dtype, optional=True)
    for name, (state, width) in states.items():
        _check_tensor(name, state, (batch, width or state_size), x.dtype)
    masks = dict(masks or {})
    time, rows_of_x, gate = (steps, 1), (batch, 1), (gates,)
    memory: list[tuple[tuple[int, ...], ...]] = [(time, rows_of_x, (hidden_size,)), ()]
    allowed: dict[str, list[tuple[tuple[int, ...], ...]]] = {
        "input": [(time, rows_of_x, (input_size,)), ((1,), rows_of_x, gate, (input_size,))],
        "hidden": [(time, rows_of_x, (state_size,)), ((1,), rows_of_x, gate, (state_size,))],
        "weight_hh": [((rows,), (state_size, 1)), ((batch,), (rows,), (state_size,))],
        "weight_ih": [((rows,), (input_size, 1)), ((batch,), (rows,), (input_size,))],
        "weight_hr": [((state_size,), (hidden_size, 1)), ((batch,), (state_size,), (hidden_size,))],
        "update": memory,
        "cell": memory,
        "cell_scale": [()],
        "cell_entry": [(rows_of_x, (hidden_size,)), ()],
        "zoneout_c": memory,
        "zoneout_h": [(time, rows_of_x, (state_size,)), ()],
        "zoneout_gate": memory,
        "input_noise": [(time, rows_of_x, (input_size,))],
        "hidden_noise": [(time, rows_of_x, (state_size,))],
        "weight_hh_noise": [((rows,), (state_size,)), ((batch,), (rows,), (state_size,))],
        "weight_ih_noise": [((rows,), (input_size,)), ((batch,), (rows,), (input_size,))],
        "weight_hr_noise": [((state_size,), (hidden_size,)), ((batch,), (state_size,), (hidden_size,))],
    }
    for name, mask in masks.items():
        if name not in keys:
            raise ValueError(f"masks has no {name!r} here; allowed keys are {', '.join(keys)}")
        _check_mask(name, mask, allowed[name])
    for name in ("weight_hr", "weight_hr_noise"):
        if name in masks and w_hr is None:
            raise ValueError(f"masks[{name!r}] needs a projection, but weights has no w_hr")
    if "cell" not in masks and ("cell_scale" in masks or "cell_entry" in masks):
        raise ValueError("masks['cell_scale'] and masks['cell_entry'] need masks['cell']")
    others = [name for name in ("update", "cell", "zoneout_c", "zoneout_h") if name in masks]
    if "zoneout_gate" in masks and others:
        raise ValueError(f"masks['zoneout_gate'] cannot be combined with {', '.join(others)}")
    return masks


def _valid(lengths: Lengths | None, x: Tensor) -> Tensor | None:
    """(T, B, 1) bool: which steps of which rows are inside their sequence; None where all are."""
    if lengths is None:
        return None
    steps, batch, _ = x.shape
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor([int(n) for n in lengths], dtype=torch.int64)
    if lengths.dtype != torch.int64 or tuple(lengths.shape) != (batch,):
        given = f"{lengths.dtype} of shape {tuple(lengths.shape)}"
        raise ValueError(f"lengths should be int64 of shape ({batch},), got {given}")
    readable = not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(lengths)
    if readable and lengths.device.type == "cpu" and not bool(((lengths >= 1) & (lengths <= steps)).all()):
        raise ValueError(f"lengths should be in [1, {steps}], got {lengths.tolist()}")
    return torch.arange(steps, device=x.device)[:, None, None] < lengths.to(x.device)[:, None]


# --------------------------------------------------------------------------------------------------------------------
# Parts that the cells share
# --------------------------------------------------------------------------------------------------------------------


def _at(masks: Masks, name: str, step: int) -> Tensor | None:
    """The mask of one step, without its time dimension."""
    mask = masks.get(name)
    if mask is None or mask.dim() == 0:
        return mask
    return mask[0 if mask.shape[0] == 1 else step]


def _masked(value: Tensor, mask: Tensor | None, noise: Tensor | None = None) -> Tensor:
    value = value if mask is None else apply(value, mask)
    return value if noise is None else value + noise


def _weight(masks: Masks, name: str, weight: Tensor) -> Tensor:
    return _masked(weight, masks.get(name), masks.get(f"{name}_noise"))


def _product(x: Tensor, weight: Tensor, mask: Tensor | None, gates: int, noise: Tensor | None = None) -> Tensor:
    """W (x . M + E): x, E (..., B, D), W (R, D) or per example (B, R, D), M as x or, one per gate, (..., B, G, D)."""
    untied = mask is not None and mask.dim() == x.dim() + 1
    x = _masked(x.unsqueeze(-2) if untied else x, mask, noise.unsqueeze(-2) if untied and noise is not None else noise)
    if not untied:
        return F.linear(x, weight) if weight.dim() == 2 else torch.einsum("...bd,brd->...br", x, weight)
    of_gate = weight.unflatten(-2, (gates, -1))
    return torch.einsum("...bgd,ghd->...bgh" if weight.dim() == 2 else "...bgd,bghd->...bgh", x, of_gate).flatten(-2)


def _mix(keep: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """Zoneout: the old value where ``keep`` is 1, the new where it is 0, their mean between (expectation in eval)."""
    if keep is None:
        return new
    # Selecting keeps an inf or NaN of the value that is not taken out of the result.
    return torch.where(keep == 1, old, torch.where(keep == 0, new, keep * old + (1 - keep) * new))


def _entry(masks: Masks, divide_by_scale: bool) -> Tensor | None:
    """Factor on the memory that comes in."""
    if "cell_entry" in masks or "cell" not in masks:
        return masks.get("cell_entry")
    cell, scale = masks["cell"], masks.get("cell_scale")
    if cell.dim() == 0:
        return None
    entry = cell[0] if cell.shape[0] == 1 else torch.ones_like(cell[0])
    if not divide_by_scale or scale is None:
        return entry
    return torch.where(scale > 0, entry / torch.where(scale > 0, scale, 1.0), 0.0)


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _input_product(
    x: Tensor, valid: Tensor | None, w_ih: Tensor, b_ih: Tensor | None, masks: Masks, gates: int
) -> Tensor:
    """W (x . M) + b for all steps; what stands after a row's end must not reach a gradient, not even as NaN."""
    x = x if valid is None else torch.where(valid, x, 0.0)
    a = _product(x, _weight(masks, "weight_ih", w_ih), masks.get("input"), gates, masks.get("input_noise"))
    return a if b_ih is None else a + b_ih


def _stack(outputs: list[Tensor], valid: Tensor | None, reverse: bool) -> Tensor:
    out = torch.stack(outputs[::-1] if reverse else outputs)
    return out if valid is None else torch.where(valid, out, 0.0)


# --------------------------------------------------------------------------------------------------------------------
# Cells
# --------------------------------------------------------------------------------------------------------------------

_COMMON = ("input", "hidden", "weight_hh", "weight_ih", "update", "zoneout_h", "input_noise", "hidden_noise",
           "weight_hh_noise", "weight_ih_noise")  # fmt: skip
_MEMORY = ("cell", "cell_scale", "cell_entry")


def lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: Sequence[Tensor | None],
    masks: Masks | None = None,
    *,
    lengths: Lengths | None = None,
    reverse: bool = False,
    unzoned: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One direction of one LSTM layer with explicit masks.

    Args:
        x: (T, B, I).
        state: h_0 (B, P) and c_0 (B, H).
        weights: w_ih (4H, I), w_hh (4H, P), b_ih and b_hh (4H,) or None, and w_hr (P, H) where there is a projection;
            gates in the order i, f, g, o.
        masks: see the head of this module.
        lengths: int64 (B,), each in [1, T]: rows are frozen after their end, outputs there are 0.
        reverse: run from each row's last step to its first; masks stay indexed by absolute step.
        unzoned: return the new value instead of the zoned h, which recurs in both cases.

    Returns:
        Outputs (T, B, P) and the state (h_n (B, P), c_n (B, H)) after each row's last step.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or dtype, or a mask that cannot be here.
    """
    h, c = state
    if len(weights) not in (4, 5):
        raise ValueError(f"weights should be (w_ih, w_hh, b_ih, b_hh) or these and w_hr, got {len(weights)} entries")
    w_ih, w_hh, b_ih, b_hh, w_hr = (*weights, None)[:5]
    size = _width("c_0", c)
    keys = (*_COMMON, "weight_hr", "weight_hr_noise", *_MEMORY, "zoneout_c", "zoneout_gate")
    masks = _check(x, {"h_0": (h, 0), "c_0": (c, size)}, weights, masks, 4, size, keys)
    valid = _valid(lengths, x)
    assert w_ih is not None and w_hh is not None
    a_x = _input_product(x, valid, w_ih, b_ih, masks, 4)
    w_hh = _weight(masks, "weight_hh", w_hh)
    w_hr = None if w_hr is None else _weight(masks, "weight_hr", w_hr)
    scale = masks.get("cell_scale")
    c = _masked(c, _entry(masks, divide_by_scale=False))
    o_old = torch.zeros_like(c)
    outputs = []
    for t in _order(x.shape[0], reverse):
        a = a_x[t] + _product(h, w_hh, _at(masks, "hidden", t), 4, _at(masks, "hidden_noise", t))
        i, f, g, o = (a if b_hh is None else a + b_hh).chunk(4, dim=-1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        update = i * _masked(g.tanh(), _at(masks, "update", t))
        gate = _at(masks, "zoneout_gate", t)
        if gate is not None:
            update = apply(update, 1 - gate)
        c_new = _masked(f * c + update, _at(masks, "cell", t))
        o = _mix(gate, o_old, o)
        h_new = _masked(o * c_new.tanh(), scale)
        if w_hr is not None:
            h_new = _product(h_new, w_hr, None, 1)
        c_next = _mix(_at(masks, "zoneout_c", t), c, c_new)
        h_next = _mix(_at(masks, "zoneout_h", t), h, h_new)
        outputs.append(h_new if unzoned else h_next)
        if valid is not None:
            h_next, c_next = torch.where(valid[t], h_next, h), torch.where(valid[t], c_next, c)
            o = torch.where(valid[t], o, o_old)
        h, c, o_old = h_next, c_next, o
    return _stack(outputs, valid, reverse), (h, c)


def gru(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    masks: Masks | None = None,
    *,
    lengths: Lengths | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    unzoned: bool = False,
) -> tuple[Tensor, Tensor]:
    """One direction of one GRU layer with explicit masks.

    Args:
        x: (T, B, I).
        h0: (B, H).
        weights: w_ih (3H, I), w_hh (3H, H), b_ih and b_hh (3H,) or None; gates in the order r, z, n.
        masks: see the head of this module.
        lengths: int64 (B,), each in [1, T]: rows are frozen after their end, outputs there are 0.
        reverse: run from each row's last step to its first; masks stay indexed by absolute step.
        reset_after: ``True`` is torch's cell, n = tanh(W x + b + r (U h + b)); ``False`` resets before the product,
            n = tanh(W x + b + U (r h) + b) (Cho et al. 2014).
        unzoned: return the new value instead of the zoned h, which recurs in both cases.

    Returns:
        Outputs (T, B, H) and h_n (B, H) after each row's last step.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or dtype, or a mask that cannot be here.
    """
    if len(weights) != 4:
        raise ValueError(f"weights should be (w_ih, w_hh, b_ih, b_hh), got {len(weights)} entries")
    w_ih, w_hh, b_ih, b_hh = weights
    size = _width("h_0", h0)
    masks = _check(x, {"h_0": (h0, size)}, weights, masks, 3, size, (*_COMMON, *_MEMORY))
    valid = _valid(lengths, x)
    assert w_ih is not None and w_hh is not None
    a_x = _input_product(x, valid, w_ih, b_ih, masks, 3)
    w_hh = _weight(masks, "weight_hh", w_hh)
    scale = masks.get("cell_scale")
    h = _masked(h0, _entry(masks, divide_by_scale=True))
    outputs = []
    for t in _order(x.shape[0], reverse):
        seen, hidden, noise = _masked(h, scale), _at(masks, "hidden", t), _at(masks, "hidden_noise", t)
        if reset_after:
            u = _product(seen, w_hh, hidden, 3, noise)
            u_r, u_z, u_n = (u if b_hh is None else u + b_hh).chunk(3, dim=-1)
            x_r, x_z, x_n = a_x[t].chunk(3, dim=-1)
            r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
            n = (x_n + r * u_n).tanh()
        else:
            a = a_x[t] if b_hh is None else a_x[t] + b_hh
            for_rz = for_n = hidden
            if hidden is not None and hidden.dim() == 3:
                for_rz, for_n = hidden[:, :2], hidden[:, 2]
            u = _product(seen, w_hh[..., : 2 * size, :], for_rz, 2, noise)
            r, z = (a[..., : 2 * size] + u).sigmoid().chunk(2, dim=-1)
            seen = r * _masked(seen, for_n, noise)
            n = (a[..., 2 * size :] + _product(seen, w_hh[..., 2 * size :, :], None, 1)).tanh()
        new = z * h + (1 - z) * _masked(n, _at(masks, "update", t))
        new = _masked(new, _at(masks, "cell", t))
        h_next = _mix(_at(masks, "zoneout_h", t), h, new)
        outputs.append(_masked(new if unzoned else h_next, scale))
        h = h_next if valid is None else torch.where(valid[t], h_next, h)
    return _stack(outputs, valid, reverse), _masked(h, scale)


def _rnn(
    activation: str,
    x: Tensor,
    h: Tensor,
    weights: Sequence[Tensor | None],
    masks: Masks | None,
    lengths: Lengths | None,
    reverse: bool,
    unzoned: bool,
) -> tuple[Tensor, Tensor]:
    if len(weights) != 4:
        raise ValueError(f"weights should be (w_ih, w_hh, b_ih, b_hh), got {len(weights)} entries")
    w_ih, w_hh, b_ih, b_hh = weights
    size = _width("h_0", h)
    masks = _check(x, {"h_0": (h, size)}, weights, masks, 1, size, _COMMON)
    valid = _valid(lengths, x)
    assert w_ih is not None and w_hh is not None
    a_x = _input_product(x, valid, w_ih, b_ih, masks, 1)
    w_hh = _weight(masks, "weight_hh", w_hh)
    outputs = []
    for t in _order(x.shape[0], reverse):
        a = a_x[t] + _product(h, w_hh, _at(masks, "hidden", t), 1, _at(masks, "hidden_noise", t))
        a = a if b_hh is None else a + b_hh
        new = _masked(a.tanh() if activation == "tanh" else a.relu(), _at(masks, "update", t))
        h_next = _mix(_at(masks, "zoneout_h", t), h, new)
        outputs.append(new if unzoned else h_next)
        h = h_next if valid is None else torch.where(valid[t], h_next, h)
    return _stack(outputs, valid, reverse), h


def rnn_tanh(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    masks: Masks | None = None,
    *,
    lengths: Lengths | None = None,
    reverse: bool = False,
    unzoned: bool = False,
) -> tuple[Tensor, Tensor]:
    """One direction of one plain RNN layer, h = tanh(W x + b + U h + b), with explicit masks.

    Args:
        x: (T, B, I).
        h0: (B, H).
        weights: w_ih (H, I), w_hh (H, H), b_ih and b_hh (H,) or None.
        masks: see the head of this module; ``update`` masks the new value, the memory sites do not exist here.
        lengths: int64 (B,), each in [1, T]: rows are frozen after their end, outputs there are 0.
        reverse: run from each row's last step to its first; masks stay indexed by absolute step.
        unzoned: return the new value instead of the zoned h, which recurs in both cases.

    Returns:
        Outputs (T, B, H) and h_n (B, H) after each row's last step.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or dtype, or a mask that cannot be here.
    """
    return _rnn("tanh", x, h0, weights, masks, lengths, reverse, unzoned)


def rnn_relu(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    masks: Masks | None = None,
    *,
    lengths: Lengths | None = None,
    reverse: bool = False,
    unzoned: bool = False,
) -> tuple[Tensor, Tensor]:
    """One direction of one plain RNN layer, h = relu(W x + b + U h + b); otherwise as :func:`rnn_tanh`."""
    return _rnn("relu", x, h0, weights, masks, lengths, reverse, unzoned)
