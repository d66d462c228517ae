"""Cases and measures that the tests of the fused kernels share.

A *case* is a cell and a set of sites. :func:`measure` runs a module and returns every result and every gradient by
name; :func:`expect` computes the same with ``frd.reference`` in fp64 from explicit masks, layer by layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout, cells
from fused_rnn_dropout.cells import Cell
from fused_rnn_dropout.sites import SITE

CELLS = ("LSTM", "LSTM_proj", "GRU", "RNN_TANH", "RNN_RELU")
"""``LSTM_proj`` is an LSTM with ``proj_size``."""

ONLY_AS_A_WHOLE = ("RNN_RELU",)
"""Cells that tests of single sites leave out: it is an RNN_TANH with another activation, which knows of no site."""

RATES: dict[str, float] = {
    "dropout": 0.45,
    "input_dropout": 0.2,
    "inter_layer_dropout": 0.3,
    "output_dropout": 0.25,
    "hidden_dropout": 0.35,
    "weight_dropout": 0.4,
    "update_dropout": 0.33,
    "cell_dropout": 0.15,
    "zoneout_c": 0.12,
    "zoneout_h": 0.22,
}
"""Another rate for each site, so that a rate taken from the wrong one shows."""


def of_torch(theirs: nn.Module, *args: Any) -> Any:
    """What a layer of torch.nn gives; skips where oneDNN cannot, as in bfloat16 on an older processor."""
    try:
        return theirs(*args)
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        pytest.skip(f"torch.nn cannot be asked here: {error}")


_OPTIONS: dict[str, dict[str, Any]] = {
    "input_step": {"input_dropout": LockedDropout(0.3, "step")},
    "input_step_shared": {"input_dropout": LockedDropout(0.3, "step", batch_shared=True)},
    "input_shared": {"input_dropout": LockedDropout(0.3, batch_shared=True)},
    "inter_layer_step": {"inter_layer_dropout": LockedDropout(0.3, "step")},
    "inter_layer_shared": {"inter_layer_dropout": LockedDropout(0.3, batch_shared=True)},
    "output_step": {"output_dropout": LockedDropout(0.3, "step")},
    "output_shared": {"output_dropout": LockedDropout(0.3, batch_shared=True)},
    "hidden_shared": {"hidden_dropout": HiddenDropout(0.4, batch_shared=True)},
    "weight_row": {"weight_dropout": WeightDropout(0.3, "row")},
    "weight_inputs": {"weight_dropout": WeightDropout(0.3, inputs=True)},
    "weight_row_inputs": {"weight_dropout": WeightDropout(0.3, "row", inputs=True)},
    "weight_projection": {"weight_dropout": WeightDropout(0.3, inputs=True, projection=True)},
    "weight_row_projection": {"weight_dropout": WeightDropout(0.3, "row", inputs=True, projection=True)},
    "update_sequence": {"update_dropout": UpdateDropout(0.3, "sequence")},
    "update_paper": {"update_dropout": UpdateDropout(0.3, scale="paper")},
    "update_sequence_paper": {"update_dropout": UpdateDropout(0.3, "sequence", "paper")},
    "cell_step": {"cell_dropout": CellDropout(0.2, "step")},
    "cell_paper": {"cell_dropout": CellDropout(0.2, scale="paper")},
    "cell_step_paper": {"cell_dropout": CellDropout(0.2, "step", "paper")},
    "zoneout_h_sequence": {"zoneout_h": Zoneout(0.3, "sequence")},
    "zoneout_h_unzoned": {"zoneout_h": Zoneout(0.3, output="unzoned")},
    "zoneout_h_unzoned_cell": {"zoneout_h": Zoneout(0.3, output="unzoned"), "cell_dropout": 0.2},
    "zoneout_c_sequence": {"zoneout_c": Zoneout(0.3, "sequence")},
    "zoneout_shared": {"zoneout_c": 0.3, "zoneout_h": Zoneout(0.3, shared=True)},
    "zoneout_shared_two_rates": {"zoneout_c": 0.2, "zoneout_h": Zoneout(0.4, shared=True)},
    "zoneout_shared_sequence": {"zoneout_c": Zoneout(0.3, "sequence"), "zoneout_h": Zoneout(0.3, "sequence", True)},
    "state_sites_per_sequence": {
        "update_dropout": UpdateDropout(0.3, "sequence"),
        "cell_dropout": 0.2,
        "zoneout_h": Zoneout(0.25, "sequence"),
        "hidden_dropout": 0.3,
    },
    "state_sites_mixed": {
        "update_dropout": UpdateDropout(0.3, "sequence"),
        "cell_dropout": CellDropout(0.2, "step"),
        "zoneout_h": Zoneout(0.25, output="unzoned"),
        "hidden_dropout": HiddenDropout(0.3, batch_shared=True),
    },
}


def name_of(cell: str) -> str:
    """A cell of :data:`CELLS` by its name in the table of cells."""
    return cell.removesuffix("_proj")


def row_of(cell: str) -> Cell:
    """Its row there."""
    return cells.CELLS[name_of(cell)]


def has(module: str, site: str) -> bool:
    """Whether a class of this package has a site."""
    return any(SITE[site].fits(row.name) for row in cells.CELLS.values() if row.module == module)


def candidate_rows(rnn: Any) -> slice:
    """Of a module's weights: those of g, of n, or of the one gate."""
    first = min(2, cells.CELLS[rnn.mode].gates - 1) * rnn.hidden_size
    return slice(first, first + rnn.hidden_size)


def fits(cell: str, sites: dict[str, Any]) -> bool:
    """Whether ``cell`` has all of ``sites`` with these options."""
    projection = any(isinstance(spec, WeightDropout) and spec.projection for spec in sites.values())
    return all(SITE[name].fits(name_of(cell)) for name in sites) and (cell == "LSTM_proj" or not projection)


def fitting(cell: str, sites: dict[str, Any]) -> dict[str, Any]:
    """Those of ``sites`` that a cell has."""
    return {name: spec for name, spec in sites.items() if fits(cell, {name: spec})}


def all_sites(cell: str) -> dict[str, Any]:
    """All sites on: every site but ``dropout``, which is the same place as ``inter_layer_dropout``."""
    return {name: rate for name, rate in RATES.items() if name != "dropout" and fits(cell, {name: rate})}


def inner_sites(cell: str) -> dict[str, Any]:
    """All sites on that one layer has."""
    return {name: rate for name, rate in all_sites(cell).items() if name != "inter_layer_dropout"}


def alone(cell: str) -> dict[str, dict[str, Any]]:
    """Every site alone, by its name; none for a cell that another one stands for."""
    return {
        name: {name: rate} for name, rate in RATES.items() if fits(cell, {name: rate}) and cell not in ONLY_AS_A_WHOLE
    }


def options(cell: str) -> dict[str, dict[str, Any]]:
    """Every option that is not a default, at least once; none for a cell that another one stands for."""
    return {name: sites for name, sites in _OPTIONS.items() if fits(cell, sites) and cell not in ONLY_AS_A_WHOLE}


def pairs(cell: str) -> dict[str, dict[str, Any]]:
    """Every two sites that may be on together."""
    names = list(alone(cell))
    found = itertools.combinations(names, 2)
    return {f"{a}+{b}": {a: RATES[a], b: RATES[b]} for a, b in found if {a, b} != {"dropout", "inter_layer_dropout"}}


# --------------------------------------------------------------------------------------------------------------------
# Modules and inputs
# --------------------------------------------------------------------------------------------------------------------


def module(
    cell: str,
    sites: dict[str, Any],
    sizes: tuple[int, int, int] = (6, 19, 7),
    *,
    layers: int = 2,
    bidirectional: bool = True,
    dtype: torch.dtype = torch.float64,
    **kwargs: Any,
) -> nn.Module:
    """A module on the CPU backend; ``sizes`` are I, H and, for LSTM_proj, P."""
    inputs, units, projected = sizes
    if cell == "LSTM_proj":
        kwargs["proj_size"] = projected
    kwargs = {"backend": "cpu", **row_of(cell).settings, **kwargs}
    return getattr(frd, row_of(cell).module)(
        inputs, units, layers, bidirectional=bidirectional, dtype=dtype, **sites, **kwargs
    )


def states_for(rnn: nn.Module, batch: int) -> tuple[Tensor, ...]:
    """Random initial states, leaves that need a gradient, on the module's device."""
    count, like = rnn.num_layers * (2 if rnn.bidirectional else 1), rnn.weight_hh_l0
    widths = [rnn.proj_size or rnn.hidden_size, rnn.hidden_size][: cells.CELLS[rnn.mode].states]
    return tuple(random_leaf(like, count, batch, width) for width in widths)


def random_leaf(like: Tensor, *shape: int) -> Tensor:
    """Random numbers of the CPU's generator, whatever the device of ``like`` is."""
    return torch.randn(*shape, dtype=like.dtype).to(like.device).requires_grad_()


def inputs_for(rnn: nn.Module, steps: int, batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A random input (T, B, I) and initial states, leaves that need a gradient."""
    return random_leaf(rnn.weight_hh_l0, steps, batch, rnn.input_size), states_for(rnn, batch)


def pack(x: Tensor, lengths: Sequence[int] | None) -> Tensor | PackedSequence:
    """x itself, or its rows cut to ``lengths``."""
    return x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)


def call(rnn: nn.Module, x: Any, states: tuple[Tensor, ...] | None, **kwargs: Any) -> dict[str, Tensor]:
    """Results of a forward pass by name; a packed output is padded."""
    hx = states if states is None or cells.CELLS[rnn.mode].has_c else states[0]
    out, last = rnn(x, hx, **kwargs)
    out = pad_packed_sequence(out)[0] if isinstance(out, PackedSequence) else out
    return dict(zip(("out", "h_n", "c_n"), (out, *(last if isinstance(last, tuple) else (last,))), strict=False))


# --------------------------------------------------------------------------------------------------------------------
# Measures
# --------------------------------------------------------------------------------------------------------------------


def loss_of(results: dict[str, Tensor], precision: torch.dtype) -> Tensor:
    """A random linear function of all results, with coefficients that ``precision`` holds exactly."""
    generator = torch.Generator().manual_seed(1)
    terms = []
    for result in results.values():
        probe = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(precision).double()
        terms.append((result.double() * probe.to(result.device)).sum())
    return torch.stack(terms).sum()


def with_gradients(
    results: dict[str, Tensor], leaves: dict[str, Tensor], precision: torch.dtype, retain_graph: bool = False
) -> dict[str, Tensor]:
    """The results, and the gradient of :func:`loss_of` by every leaf."""
    gradients = torch.autograd.grad(loss_of(results, precision), list(leaves.values()), retain_graph=retain_graph)
    named = {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: result.detach() for name, result in results.items()} | named


def leaves_of(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> dict[str, Tensor]:
    named = zip(("h0", "c0"), states, strict=False)
    leaves = {"x": x, **dict(named), **dict(rnn.named_parameters())}
    return {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}


def measure(
    rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], lengths: Sequence[int] | None = None, **kwargs: Any
) -> dict[str, Tensor]:
    """Every result of ``rnn`` and the gradient by every leaf, by name."""
    results = call(rnn, pack(x, lengths), states, **kwargs)
    return with_gradients(results, leaves_of(rnn, x, states), rnn.weight_hh_l0.dtype)


def expect(
    rnn: nn.Module,
    x: Tensor,
    states: tuple[Tensor, ...],
    masks: dict[str, Tensor],
    lengths: Sequence[int] | None = None,
    between: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """What :func:`measure` should give, by ``frd.reference`` in fp64 from ``masks`` as ``export_masks`` names them.

    ``between`` is the dtype that the output of a layer is rounded to.
    """
    leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves_of(rnn, x, states).items()}
    masks = {name: mask.double() for name, mask in masks.items()}
    inputs = leaves["x"]
    last: list[list[Tensor]] = [[] for _ in states]
    if "input" in masks:
        inputs = frd.reference.apply(inputs, masks["input"]).to(between).double()
    for layer in range(rnn.num_layers):
        if f"inter_layer_l{layer}" in masks:
            inputs = frd.reference.apply(inputs, masks[f"inter_layer_l{layer}"]).to(between).double()
        outputs = []
        for direction in range(2 if rnn.bidirectional else 1):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *(("weight_hr",) if rnn.proj_size else ()))
            weights = [leaves.get(name + suffix) for name in names]
            own = {
                name.removesuffix(suffix): mask
                for name, mask in masks.items()
                if name.endswith(suffix) and not name.startswith("inter_layer")
            }
            index = layer * (2 if rnn.bidirectional else 1) + direction
            zoneout = rnn.sites.get("zoneout_h")
            chosen: dict[str, Any] = {
                "lengths": lengths,
                "reverse": direction == 1,
                "unzoned": zoneout is not None and zoneout.output == "unzoned",
            }
            initial = [leaves[name][index] for name in ("h0", "c0")[: len(states)]]
            equations = getattr(frd.reference, rnn.mode.lower())
            has_c = cells.CELLS[rnn.mode].has_c
            out, final = equations(inputs, tuple(initial) if has_c else initial[0], weights, own, **chosen)
            final = final if has_c else (final,)
            outputs.append(out.to(between).double())
            for collected, state in zip(last, final, strict=True):
                collected.append(state)
        inputs = torch.cat(outputs, -1)
    if "output" in masks:
        inputs = frd.reference.apply(inputs, masks["output"])
    results = {"out": inputs, **dict(zip(("h_n", "c_n"), map(torch.stack, last), strict=False))}
    return with_gradients(results, leaves, rnn.weight_hh_l0.dtype)


def tolerance(dtype: torch.dtype, steps: int) -> float:
    """Of what a GPU's kernels compute in ``steps`` steps: their products read and write values of that dtype."""
    return TOLERANCE.get(dtype, 2 * torch.finfo(dtype).eps * (steps + 1) ** 0.5)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of the largest element of a tensor. A few thousand and about eighty times the rounding of one operation."""


def cudnn_tolerance(dtype: torch.dtype, rnn: Any, steps: int) -> float:
    """Of the largest element of a tensor, for what cuDNN computes in ``steps`` steps of each layer and direction.

    How cuDNN splits its sums is its own, and differs with the kernels that torch has it take (up to 192 units one
    that stays resident), so that the bound of any order holds, not the likely error of one. A sum of n products errs
    by at most n u of the sum of their magnitudes, with u = eps / 2 of what it adds up in: float32 for 16 bits. A
    gate is a sum over I + H products and two biases; its sigmoid or tanh and the rest of the step are within 8 eps,
    four times what CUDA states for the functions. Magnitudes sum up to about twice the largest element, which makes
    eps of u. A value goes through the steps of all layers, and on its way back through as many.

    What is kept in between is rounded once to ``dtype`` in each step, three times in an LSTM (c, h and the gates).
    Those errors are independent: their sum's deviation is u sqrt(steps), and the largest of a thousand elements is
    within four of them.
    """
    widest = max(rnn.input_size, (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1))
    terms, passed = widest + rnn.hidden_size + 2, 2 * rnn.num_layers * steps
    sums = passed * (terms + 8) * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    rounding = 2 * passed**0.5 * torch.finfo(dtype).eps
    return max(sums + rounding, TOLERANCE.get(dtype, 0.0))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within ``tolerance`` of the largest element of what it should be; exactly 0 where all of that is."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert torch.isfinite(value).all(), f"{name}: the expected value is not finite"
        if value.numel():
            error, limit = (got[name].double() - value.double()).abs().max(), tolerance * value.double().abs().max()
            assert error <= limit, f"{name}: off by {error:.3g}, allowed are {limit:.3g}"


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """The same bits everywhere."""
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def check_finite_differences(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], **given: Any) -> None:
    """Every gradient of a padded call against finite differences, with the reference out of play; in float64."""
    leaves = leaves_of(rnn, x, states)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(leaves, values, strict=True))
        named_states = [named.pop(name) for name in ("h0", "c0") if name in named]
        hx = tuple(named_states) if cells.CELLS[rnn.mode].has_c else named_states[0]
        out, last = torch.func.functional_call(rnn, named, (named.pop("x"), hx), given)
        return out, *(last if isinstance(last, tuple) else (last,))

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)
