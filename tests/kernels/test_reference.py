"""The reference layers: torch.nn's results without masks, the published equations with them, and every gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

import fused_rnn_dropout  # noqa: F401  the package must import as a whole
from fused_rnn_dropout import masks, reference, sites
from fused_rnn_dropout.options import rate_of
from fused_rnn_dropout.sites import GROUPS, KIND, Plan, threshold

F64 = torch.float64
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
EQUATIONS = ("lstm", "gru", "gru_before", "rnn_tanh")
GATES = {"lstm": 4, "gru": 3, "gru_before": 3, "rnn_tanh": 1, "rnn_relu": 1}
OF_TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN}


def name_of(cell: str) -> str:
    """Of its row in the table of cells."""
    return cell.removesuffix("_before").upper()


def fits(cell: str, specs: Iterable[str]) -> bool:
    """Whether it has all of these sites."""
    return all(sites.SITE[site].fits(name_of(cell)) for site in specs)


def run(
    cell: str, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor | None], given=None, **options
) -> tuple[Tensor, ...]:
    """Any cell with one signature: the state goes in and comes out as a flat tuple."""
    if cell == "lstm":
        out, state = reference.lstm(x, state, weights, given, **options)
        return out, *state
    if cell == "gru_before":
        return reference.gru(x, state[0], weights, given, reset_after=False, **options)
    return getattr(reference, cell)(x, state[0], weights, given, **options)


def problem(
    cell: str, steps: int = 3, batch: int = 2, inputs: int = 2, hidden: int = 3, proj: int = 0, bias: bool = True
):
    """Random x, state and weights, all fp64 leaves that need gradients."""
    rows, state = GATES[cell] * hidden, proj or hidden
    sizes = [(steps, batch, inputs), (batch, state), *([(batch, hidden)] if cell == "lstm" else [])]
    sizes += [(rows, inputs), (rows, state)]
    tensors = [torch.randn(size, dtype=F64).requires_grad_() for size in sizes]
    biases = [torch.randn(rows, dtype=F64).requires_grad_() if bias else None for _ in range(2)]
    weights = [*tensors[-2:], *biases] + ([torch.randn(proj, hidden, dtype=F64).requires_grad_()] if proj else [])
    return tensors[0], tuple(tensors[1:-2]), weights


def state_dict_weights(module: torch.nn.RNNBase, layer: int, reverse: bool) -> list[Tensor | None]:
    suffix = f"_l{layer}{'_reverse' * reverse}"
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] + ["weight_hr"] * bool(module.proj_size)
    return [getattr(module, name + suffix, None) for name in names]


# --------------------------------------------------------------------------------------------------------------------
# Without masks: torch.nn
# --------------------------------------------------------------------------------------------------------------------


def stacked(
    cell: str, module: torch.nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], lengths=None
) -> tuple[Tensor, ...]:
    """All layers and directions of a torch module, each computed by the reference."""
    directions = 2 if module.bidirectional else 1
    last = []
    for layer in range(module.num_layers):
        outputs = []
        for reverse in range(directions):
            index = layer * directions + reverse
            weights = state_dict_weights(module, layer, bool(reverse))
            out, *end = run(
                cell, x, tuple(part[index] for part in state), weights, lengths=lengths, reverse=bool(reverse)
            )
            outputs.append(out)
            last.append(end)
        x = torch.cat(outputs, dim=-1)
    return x, *(torch.stack(part) for part in zip(*last, strict=True))


@pytest.mark.parametrize(
    ("cell", "proj"),
    [("lstm", 0), ("lstm", 2), ("gru", 0), ("rnn_tanh", 0), ("rnn_relu", 0)],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 2, 4, 1]])
def test_equals_torch_without_masks(cell, proj, bias, lengths):
    options = {"proj_size": proj} if proj else {}
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
    module = OF_TORCH[cell](3, 4, num_layers=2, bias=bias, bidirectional=True, dtype=F64, **options)
    x = torch.randn(5, 4, 3, dtype=F64, requires_grad=True)
    sizes = [proj or 4, 4] if cell == "lstm" else [4]
    state = tuple(torch.randn(4, 4, size, dtype=F64, requires_grad=True) for size in sizes)
    given = x if lengths is None else torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    out, end = module(given, state if cell == "lstm" else state[0])
    if lengths is not None:
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out)
    expected = (out, *end) if cell == "lstm" else (out, end)
    result = stacked(cell, module, x, state, lengths)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    leaves = [x, *state, *module.parameters()]
    loss_weights = [torch.randn_like(part) for part in result]
    ours, theirs = (
        torch.autograd.grad(
            sum((part * weight).sum() for part, weight in zip(parts, loss_weights, strict=True)), leaves
        )
        for parts in (result, expected)
    )
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


def test_one_step_alone_equals_torch():
    module = torch.nn.LSTM(3, 4, dtype=F64)
    x, state = torch.randn(1, 1, 3, dtype=F64), (torch.randn(1, 4, dtype=F64), torch.randn(1, 4, dtype=F64))
    out, (h, c) = reference.lstm(x, state, state_dict_weights(module, 0, False))
    expected, (h_n, c_n) = module(x, tuple(part[None] for part in state))
    for ours, theirs in ((out, expected), (h, h_n[0]), (c, c_n[0])):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_empty_masks_are_no_masks():
    for cell in GATES:
        given = problem(cell)
        for ours, theirs in zip(run(cell, *given, {}), run(cell, *given), strict=True):
            assert torch.equal(ours, theirs)


# --------------------------------------------------------------------------------------------------------------------
# With masks: the equations, once more, a number at a time
# --------------------------------------------------------------------------------------------------------------------


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def lstm_by_hand(x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, m, unzoned):
    """The fused cell of docs/semantics.md for one example, in Python floats; untied and per-step masks throughout."""
    steps, width, hidden, proj = len(x), len(x[0]), len(c), len(h)
    c = [m["cell_entry"][u] * c[u] for u in range(hidden)]
    out = []
    for t in range(steps):
        a = []
        for k, u in itertools.product(range(4), range(hidden)):
            row = k * hidden + u
            total = b_ih[row] + b_hh[row]
            total += sum(w_ih[row][j] * m["weight_ih"][row][j] * x[t][j] * m["input"][k][j] for j in range(width))
            total += sum(w_hh[row][j] * m["weight_hh"][row][j] * h[j] * m["hidden"][k][j] for j in range(proj))
            a.append(total)
        new_c, read = [], []
        for u in range(hidden):
            i, f, o = (sigmoid(a[k * hidden + u]) for k in (0, 1, 3))
            g = math.tanh(a[2 * hidden + u])
            new_c.append(m["cell"][t][u] * (f * c[u] + i * g * m["update"][t][u]))
            read.append(o * math.tanh(new_c[u]) * m["cell_scale"])
        new_h = [sum(w_hr[j][u] * m["weight_hr"][j][u] * read[u] for u in range(hidden)) for j in range(proj)]
        c = [c[u] if m["zoneout_c"][t][u] else new_c[u] for u in range(hidden)]
        h = [h[j] if m["zoneout_h"][t][j] else new_h[j] for j in range(proj)]
        out.append(new_h if unzoned else h)
    return out, h, c


def gru_by_hand(x, h, w_ih, w_hh, b_ih, b_hh, m, reset_after, unzoned):
    steps, width, hidden = len(x), len(x[0]), len(h)
    h = [m["cell_entry"][u] * h[u] for u in range(hidden)]
    scale, out = m["cell_scale"], []

    def from_input(k: int, u: int, t: int) -> float:
        row = k * hidden + u
        return sum(w_ih[row][j] * m["weight_ih"][row][j] * x[t][j] * m["input"][k][j] for j in range(width)) + b_ih[row]

    def from_state(k: int, u: int, state: list[float]) -> float:
        row = k * hidden + u
        return sum(w_hh[row][j] * m["weight_hh"][row][j] * state[j] * m["hidden"][k][j] for j in range(hidden))

    for t in range(steps):
        seen = [scale * value for value in h]
        r, z = (
            [sigmoid(from_input(k, u, t) + from_state(k, u, seen) + b_hh[k * hidden + u]) for u in range(hidden)]
            for k in (0, 1)
        )
        new = []
        for u in range(hidden):
            bias = b_hh[2 * hidden + u]
            if reset_after:
                n = math.tanh(from_input(2, u, t) + r[u] * (from_state(2, u, seen) + bias))
            else:
                n = math.tanh(
                    from_input(2, u, t) + from_state(2, u, [one * two for one, two in zip(r, seen, strict=True)]) + bias
                )
            new.append(m["cell"][t][u] * (z[u] * h[u] + (1 - z[u]) * n * m["update"][t][u]))
        h = [h[u] if m["zoneout_h"][t][u] else new[u] for u in range(hidden)]
        out.append([scale * value for value in (new if unzoned else h)])
    return out, [scale * value for value in h]


def random_masks(cell: str, steps: int, batch: int, inputs: int, hidden: int, proj: int = 0) -> dict[str, Tensor]:
    """A mask at every site, each the most general of its kind, each with another factor."""
    gates, state = GATES[cell], proj or hidden

    def mask(scale: float, *size: int) -> Tensor:
        return (torch.rand(size) < 0.6).to(F64) * scale

    made = {
        "input": mask(1.2, 1, batch, gates, inputs),
        "hidden": mask(1.3, 1, batch, gates, state),
        "weight_hh": mask(1.4, batch, gates * hidden, state),
        "weight_ih": mask(1.5, batch, gates * hidden, inputs),
        "update": mask(1.6, steps, batch, hidden),
        "zoneout_h": mask(1, steps, batch, state),
        "cell": mask(1, steps, batch, hidden),
        "cell_scale": torch.tensor(1.7, dtype=F64),
        "cell_entry": mask(1.8, batch, hidden),
    }
    if cell == "lstm":
        made["zoneout_c"] = mask(1, steps, batch, hidden)
        if proj:
            made["weight_hr"] = mask(1.9, batch, proj, hidden)
    return made


def of_example(made: dict[str, Tensor], b: int) -> dict[str, list]:
    """The masks of one example as nested lists, without dimensions of size 1."""
    result = {}
    for name, mask in made.items():
        if name in ("input", "hidden"):
            mask = mask[0, b]
        elif name.startswith("weight") or name == "cell_entry":
            mask = mask[b]
        elif mask.dim():
            mask = mask[:, b]
        result[name] = mask.tolist()
    return result


@pytest.mark.parametrize("unzoned", [False, True])
def test_lstm_equations_with_a_mask_at_every_site(unzoned):
    x, (h, c), weights = problem("lstm", steps=4, batch=3, inputs=2, hidden=4, proj=3)
    made = random_masks("lstm", 4, 3, 2, 4, 3)
    out, (h_n, c_n) = reference.lstm(x, (h, c), weights, made, unzoned=unzoned)
    for b in range(3):
        by_hand = lstm_by_hand(
            x[:, b].tolist(), h[b].tolist(), c[b].tolist(), *(w.tolist() for w in weights), of_example(made, b), unzoned
        )
        for ours, expected in zip((out[:, b], h_n[b], c_n[b]), by_hand, strict=True):
            torch.testing.assert_close(ours, torch.tensor(expected, dtype=F64), **CLOSE)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("unzoned", [True, False])
def test_gru_equations_with_a_mask_at_every_site(reset_after, unzoned):
    x, (h,), weights = problem("gru", steps=4, batch=3, inputs=2, hidden=4)
    made = random_masks("gru", 4, 3, 2, 4)
    out, h_n = reference.gru(x, h, weights, made, reset_after=reset_after, unzoned=unzoned)
    for b in range(3):
        by_hand = gru_by_hand(
            x[:, b].tolist(), h[b].tolist(), *(w.tolist() for w in weights), of_example(made, b), reset_after, unzoned
        )
        for ours, expected in zip((out[:, b], h_n[b]), by_hand, strict=True):
            torch.testing.assert_close(ours, torch.tensor(expected, dtype=F64), **CLOSE)


def test_plain_rnn_equations():
    x, (h,), weights = problem("rnn_tanh")
    made = {name: mask for name, mask in random_masks("rnn_tanh", 3, 2, 2, 3).items() if not name.startswith("cell")}
    out, _ = reference.rnn_tanh(x, h, weights, made)
    w_ih, w_hh, b_ih, b_hh = weights
    for t in range(3):
        a = torch.einsum("bi,bji,ji->bj", x[t] * made["input"][0, :, 0], made["weight_ih"], w_ih) + b_ih + b_hh
        a = a + torch.einsum("bi,bji,ji->bj", h * made["hidden"][0, :, 0], made["weight_hh"], w_hh)
        h = torch.where(made["zoneout_h"][t] == 1, h, a.tanh() * made["update"][t])
        torch.testing.assert_close(out[t], h, **CLOSE)


def test_gate_shared_zoneout_skips_the_update_and_keeps_the_old_output_gate():
    """c = f c + d i g and h = (d o + (1-d) o_old) tanh(c), o_old = 0 before the first step."""
    x, (h, c), weights = problem("lstm")
    keep = (torch.rand(3, 2, 3) < 0.5).to(F64)
    out, (_, c_n) = reference.lstm(x, (h, c), weights, {"zoneout_gate": keep})
    w_ih, w_hh, b_ih, b_hh = weights
    o_old = torch.zeros_like(c)
    for t in range(3):
        i, f, g, o = (x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        d = 1 - keep[t]
        c = f.sigmoid() * c + d * i.sigmoid() * g.tanh()
        o_old = d * o.sigmoid() + (1 - d) * o_old
        h = o_old * c.tanh()
        torch.testing.assert_close(out[t], h, **CLOSE)
    torch.testing.assert_close(c_n, c, **CLOSE)


def test_eval_of_zoneout_is_the_expectation():
    x, (h, c), weights = problem("lstm", steps=1)
    _, (new_h, new_c) = reference.lstm(x, (h, c), weights)
    z_c, z_h = torch.tensor(0.3, dtype=F64), torch.tensor(0.2, dtype=F64)
    out, (h_n, c_n) = reference.lstm(x, (h, c), weights, {"zoneout_c": z_c, "zoneout_h": z_h})
    torch.testing.assert_close(h_n, 0.2 * h + 0.8 * new_h, **CLOSE)
    torch.testing.assert_close(c_n, 0.3 * c + 0.7 * new_c, **CLOSE)
    assert torch.equal(out[0], h_n)
    unzoned, (h_n, _) = reference.lstm(x, (h, c), weights, {"zoneout_h": z_h}, unzoned=True)
    torch.testing.assert_close(unzoned[0], new_h, **CLOSE)
    torch.testing.assert_close(h_n, 0.2 * h + 0.8 * new_h, **CLOSE)


def test_eval_with_paper_scales():
    """update_dropout scales the candidate by q, cell_dropout the memory at each step."""
    x, (h, c), weights = problem("lstm", steps=1)
    q = torch.tensor(0.7, dtype=F64)
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (x[0] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
    expected = f.sigmoid() * c + i.sigmoid() * (0.7 * g.tanh())
    _, (_, c_n) = reference.lstm(x, (h, c), weights, {"update": q})
    torch.testing.assert_close(c_n, expected, **CLOSE)
    expected = 0.7 * (f.sigmoid() * c + i.sigmoid() * g.tanh())
    _, (h_n, c_n) = reference.lstm(x, (h, c), weights, {"cell": q, "cell_scale": torch.tensor(1.0, dtype=F64)})
    torch.testing.assert_close(c_n, expected, **CLOSE)
    torch.testing.assert_close(h_n, o.sigmoid() * expected.tanh(), **CLOSE)
    x, (h,), weights = problem("gru", steps=1)
    new_h = reference.gru(x, h, weights)[1]
    torch.testing.assert_close(reference.gru(x, h, weights, {"cell": q})[1], 0.7 * new_h, **CLOSE)


# --------------------------------------------------------------------------------------------------------------------
# Masks from counters, site by site
# --------------------------------------------------------------------------------------------------------------------

LSTM_SITES: dict[str, dict[str, sites.Spec]] = {
    "input": {"input_dropout": sites.LockedDropout(0.4)},
    "input per step": {"input_dropout": sites.LockedDropout(0.4, per="step")},
    "input untied": {"input_dropout": sites.LockedDropout(0.4, tied=False)},
    "hidden": {"hidden_dropout": sites.HiddenDropout(0.4)},
    "hidden untied": {"hidden_dropout": sites.HiddenDropout(0.4, tied=False)},
    "hidden per step": {"hidden_dropout": sites.HiddenDropout(0.4, per="step")},
    "hidden noise": {"hidden_dropout": sites.HiddenDropout(0.4, per="step", noise="gaussian")},
    "input noise": {"input_dropout": sites.LockedDropout(0.4, noise="gaussian")},
    "weight noise": {"weight_dropout": sites.WeightDropout(0.4, inputs=True, projection=True, noise="gaussian")},
    "hidden of the batch": {"hidden_dropout": sites.HiddenDropout(0.4, batch_shared=True)},
    "weight": {"weight_dropout": sites.WeightDropout(0.4, inputs=True, projection=True)},
    "weight by row": {"weight_dropout": sites.WeightDropout(0.4, mode="row", inputs=True, projection=True)},
    "weight per example": {"weight_dropout": sites.WeightDropout(0.4, inputs=True, projection=True, per_example=True)},
    "update": {"update_dropout": sites.UpdateDropout(0.4)},
    "update per sequence": {"update_dropout": sites.UpdateDropout(0.4, per="sequence")},
    "update, paper": {"update_dropout": sites.UpdateDropout(0.4, scale="paper")},
    "cell": {"cell_dropout": sites.CellDropout(0.4)},
    "cell per step": {"cell_dropout": sites.CellDropout(0.4, per="step")},
    "cell, paper": {"cell_dropout": sites.CellDropout(0.4, scale="paper")},
    "zoneout_c": {"zoneout_c": sites.Zoneout(0.4)},
    "zoneout_c per sequence": {"zoneout_c": sites.Zoneout(0.4, per="sequence")},
    "zoneout of gates": {"zoneout_c": sites.Zoneout(0.4, gate_shared=True)},
    "zoneout_c of steps": {"zoneout_c": sites.Zoneout(0.4, unit_shared=True)},
    "zoneout_h": {"zoneout_h": sites.Zoneout(0.4)},
    "zoneout_h of steps": {"zoneout_h": sites.Zoneout(0.4, unit_shared=True)},
    "zoneout_h unzoned": {"zoneout_h": sites.Zoneout(0.4, output="unzoned")},
}
ONE_EACH = ("input", "hidden", "weight", "update", "cell", "zoneout_c", "zoneout_h")
UNUSUAL = (
    "input untied",
    "hidden untied",
    "weight per example",
    "cell per step",
    "zoneout of gates",
    "zoneout_h unzoned",
)
ON_THE_CELL = {"update", "cell", "cell per step", "zoneout_c", "zoneout_h", "zoneout_h unzoned"}


def names_of(cell: str) -> list[str]:
    return [name for name in LSTM_SITES if fits(cell, LSTM_SITES[name])]


EACH_SITE = [(cell, name) for cell in EQUATIONS for name in names_of(cell)]


def pairs_of(cell: str) -> list[tuple[str, str]]:
    """Every pair of two sites' usual forms, and of each unusual form with every usual one of another site."""
    usual = [name for name in ONE_EACH if name in names_of(cell)]
    unusual = [name for name in UNUSUAL if name in names_of(cell)]
    pairs = [*itertools.combinations(usual, 2), *itertools.product(unusual, usual), *itertools.combinations(unusual, 2)]
    allowed = []
    for one, two in pairs:
        same_site = LSTM_SITES[one].keys() & LSTM_SITES[two].keys()
        refused = "zoneout of gates" in (one, two) and ON_THE_CELL & {one, two}
        if not same_site and not refused:
            allowed.append((one, two))
    return allowed


def sampled(cell: str, specs: dict[str, sites.Spec], rate: float | None = None, masks_on: bool = True, **sizes: int):
    """(masks, unzoned) of configured sites from counters, at their own rates or all at ``rate``."""
    sizes = {"steps": 3, "batch": 2, "inputs": 2, "hidden": 3, "proj": 0} | sizes
    kind = name_of(cell)
    plan = Plan.make(kind, specs)
    rates = [(rate_of(specs[name]) if rate is None else rate) if name in specs else 0 for name in sites.SITE_NAMES]
    limits, rng = torch.tensor([threshold(value) for value in rates]), torch.tensor([11, 13])
    common = {"example_ids": torch.arange(sizes["batch"]), "steps": torch.arange(sizes["steps"]), "dtype": F64}
    made = masks.layer(
        plan,
        kind,
        dict.fromkeys(GROUPS, rng),
        limits,
        layer=0,
        reverse=False,
        input_size=sizes["inputs"],
        hidden_size=sizes["hidden"],
        proj_size=sizes["proj"],
        masks_on=masks_on,
        **common,
    )
    if plan.input_dropout and masks_on:
        gates = {"gates": GATES[cell]}
        made["input"] = masks.locked(
            plan.input_dropout, limits[1], rng, KIND["INPUT"], 0, sizes["inputs"], **common, **gates
        )
    return made, bool(plan.zoneout_h and plan.zoneout_h.output == "unzoned")


def gradcheck(
    cell: str, specs: dict[str, sites.Spec], fast: bool, rate: float | None = None, lengths=None, **sizes: int
) -> None:
    masks_on = sizes.pop("masks_on", True)
    made, unzoned = sampled(cell, specs, rate, masks_on, **sizes)
    x, state, weights = problem(cell, **sizes)
    leaves = [x, *state, *weights]
    options = {"lengths": lengths, "unzoned": unzoned}

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return run(cell, x, rest[: len(state)], list(rest[len(state) :]), made, **options)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=fast)


@pytest.mark.parametrize(("cell", "name"), EACH_SITE)
def test_gradcheck_of_each_site(cell, name):
    gradcheck(cell, LSTM_SITES[name], fast=False, proj=2 if cell == "lstm" and name.startswith("weight") else 0)


@pytest.mark.parametrize("cell", EQUATIONS)
def test_gradcheck_of_pairs(cell):
    pairs = pairs_of(cell)
    for one, two in pairs:
        gradcheck(cell, LSTM_SITES[one] | LSTM_SITES[two], fast=True, proj=2 if cell == "lstm" else 0)
    assert len(pairs) > {"lstm": 40, "gru": 25, "gru_before": 25, "rnn_tanh": 15}[cell]


def everything(cell: str, per: str = "step") -> dict[str, sites.Spec]:
    names = ("input", "hidden", "weight", "zoneout_h", "zoneout_c")
    specs: dict[str, sites.Spec] = {site: spec for name in names for site, spec in LSTM_SITES[name].items()}
    specs["update_dropout"] = sites.UpdateDropout(0.4, per=per)
    specs["cell_dropout"] = sites.CellDropout(0.4, per=per)
    return {site: spec for site, spec in specs.items() if fits(cell, [site])}


@pytest.mark.parametrize("cell", EQUATIONS)
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_gradcheck_of_everything(cell, rate):
    for steps, batch in ((1, 1), (2, 3), (5, 1)):
        gradcheck(cell, everything(cell), fast=True, rate=rate, steps=steps, batch=batch)
        gradcheck(cell, everything(cell, "sequence"), fast=True, rate=rate, steps=steps, batch=batch)


@pytest.mark.parametrize("cell", EQUATIONS)
def test_gradcheck_with_lengths_and_in_eval(cell):
    gradcheck(cell, everything(cell), fast=True, lengths=[3, 1], proj=2 if cell == "lstm" else 0)
    zoneout = {"zoneout_c": sites.Zoneout(0.4), "zoneout_h": sites.Zoneout(0.4)}
    paper = {
        "update_dropout": sites.UpdateDropout(0.4, scale="paper"),
        "cell_dropout": sites.CellDropout(0.4, scale="paper"),
    }
    in_eval = {name: spec for name, spec in (zoneout | paper).items() if fits(cell, [name])}
    gradcheck(cell, in_eval, fast=True, masks_on=False)


@pytest.mark.parametrize("cell", EQUATIONS)
def test_second_derivatives(cell):
    made, _ = sampled(cell, everything(cell))
    x, state, weights = problem(cell)

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return run(cell, x, rest[: len(state)], list(rest[len(state) :]), made)

    assert torch.autograd.gradgradcheck(function, [x, *state, *weights], fast_mode=True)


@pytest.mark.parametrize(("cell", "name"), EACH_SITE)
def test_rates_at_the_ends(cell, name):
    """p = 0 changes nothing; p = 1 is finite forward and backward, and does what dropping all means."""
    x, state, weights = problem(cell)
    made, unzoned = sampled(cell, LSTM_SITES[name], rate=0.0)
    for ours, plain in zip(
        run(cell, x, state, weights, made, unzoned=unzoned), run(cell, x, state, weights), strict=True
    ):
        # A product of its own for each gate or example sums in another order.
        tolerance = CLOSE if name in ("input untied", "hidden untied", "weight per example") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours, plain, **tolerance)
    made, unzoned = sampled(cell, LSTM_SITES[name], rate=1.0)
    result = run(cell, x, state, weights, made, unzoned=unzoned)
    gradients = torch.autograd.grad(sum(part.sum() for part in result), [x, *state, *weights], allow_unused=True)
    assert all(part.isfinite().all() for part in (*result, *(grad for grad in gradients if grad is not None)))
    if name.startswith("cell"):
        assert not any(part.any() for part in result)
    if name in ("zoneout_h", "zoneout_c", "zoneout_c per sequence"):
        assert torch.equal(result[2 if name.startswith("zoneout_c") else 1], state[name.startswith("zoneout_c")])
    if name == "zoneout of gates":
        assert not result[0].any()


# --------------------------------------------------------------------------------------------------------------------
# What tells the techniques apart
# --------------------------------------------------------------------------------------------------------------------


def remembering(hidden: int, inputs: int = 2) -> list[Tensor]:
    """LSTM weights with f = 1 and i = 0 exactly, so that the memory never changes by itself."""
    bias = torch.zeros(4 * hidden, dtype=F64)
    bias[:hidden], bias[hidden : 2 * hidden] = -1e4, 1e4
    return [
        torch.randn(4 * hidden, inputs, dtype=F64),
        torch.randn(4 * hidden, hidden, dtype=F64),
        bias,
        torch.zeros_like(bias),
    ]


SURVIVING = [name for name in LSTM_SITES if not name.startswith("cell")]


def memory_after(
    name: str,
    steps: int = 30,
    hidden: int = 64,
    batch: int = 50,
    rate: float = 0.2,
    masks_on: bool = True,
    changes: Callable = dict,
):
    made, _ = sampled("lstm", LSTM_SITES[name], rate, masks_on, steps=steps, hidden=hidden, batch=batch)
    c_0 = torch.randn(batch, hidden, dtype=F64)
    x, h_0 = torch.randn(steps, batch, 2, dtype=F64), torch.zeros(batch, hidden, dtype=F64)
    _, (_, c_n) = reference.lstm(x, (h_0, c_0), remembering(hidden), changes(made))
    return made, c_0, c_n


@pytest.mark.parametrize("name", SURVIVING)
def test_memory_survives(name):
    weight = name.startswith("weight")
    made, c_0, c_n = memory_after(name, hidden=8, batch=4, steps=10) if weight else memory_after(name)
    assert torch.equal(c_n, c_0)


def test_dead_units_of_a_sequence_and_no_others_lose_their_memory():
    made, c_0, c_n = memory_after("cell")
    assert torch.equal(c_n, c_0 * made["cell"][0])
    assert 0 < float(made["cell"].mean()) < 1


def test_masks_of_the_memory_per_step_kill_every_unit_in_time():
    q, steps = 0.8, 10
    made, c_0, c_n = memory_after("cell per step", steps=steps, batch=200)
    alive = c_n == c_0
    assert bool((alive | (c_n == 0)).all())
    total, expected = alive.numel(), q**steps
    assert abs(int(alive.sum()) - total * expected) < 5 * (total * expected * (1 - expected)) ** 0.5


def test_eval_with_the_paper_scale_forgets():
    made, c_0, c_n = memory_after("cell, paper", masks_on=False, steps=10)
    torch.testing.assert_close(c_n, c_0 * 0.8**10, rtol=1e-8, atol=0)


def test_scaling_inside_the_loop_would_explode():
    """The known error that the binary mask avoids: the same masks, scaled, grow the survivors by 1/q a step."""
    made, c_0, c_n = memory_after("cell", changes=lambda made: made | {"cell": made["cell"] / 0.8})
    grown = made["cell"][0] == 1
    torch.testing.assert_close(c_n[grown], (c_0 * 0.8**-30)[grown], rtol=1e-8, atol=0)


def test_surviving_memory_of_a_gru_is_not_scaled():
    """z = 1 exactly: the memory leaks through for good, dead units stay dead, and the caller sees it times 1/q."""
    hidden, batch, steps = 64, 50, 30
    bias = torch.zeros(3 * hidden, dtype=F64)
    bias[hidden : 2 * hidden] = 1e4
    weights = [torch.randn(3 * hidden, size, dtype=F64) for size in (2, hidden)] + [bias, torch.zeros_like(bias)]
    made, _ = sampled("gru", LSTM_SITES["cell"], 0.2, steps=steps, hidden=hidden, batch=batch)
    h_0 = torch.randn(batch, hidden, dtype=F64)
    out, h_n = reference.gru(torch.randn(steps, batch, 2, dtype=F64), h_0, weights, made)
    # Scaled by 1/q on the way out and by q on the way in: carried over calls, the caller's h neither grows nor decays.
    torch.testing.assert_close(h_n, h_0 * made["cell"][0], **CLOSE)
    assert torch.equal(out[-1], h_n)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_update_dropout_leaves_the_old_state_alone(cell):
    """Where the candidate is dropped the state only decays by its gate; where it is kept the candidate counts 1/q."""
    x, state, weights = problem(cell, steps=1)
    full = torch.ones(1, 2, 3, dtype=F64)
    kept, dropped, plain = (run(cell, x, state, weights, {"update": full * factor})[-1] for factor in (2, 0, 1))
    torch.testing.assert_close(kept - dropped, 2 * (plain - dropped), **CLOSE)


# --------------------------------------------------------------------------------------------------------------------
# Expectations, by summing over every mask
# --------------------------------------------------------------------------------------------------------------------


def every_mask(units: int, q: float) -> tuple[Tensor, Tensor]:
    """All 2**units binary masks, (2**units, units), and the probability of each."""
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=F64)
    return bits, (q**bits * (1 - q) ** (1 - bits)).prod(-1)


def one_step(cell: str, count: int):
    """One step from one state, as a batch with an example for each mask."""
    x, state, weights = problem(cell, steps=1, batch=1)
    return x.expand(-1, count, -1), tuple(part.expand(count, -1) for part in state), weights


def assert_expectation(values: Tensor, probability: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close((values * probability[:, None]).sum(0), expected, **CLOSE)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_before", "rnn_tanh"])
@pytest.mark.parametrize("q", [0.5, 0.7])
def test_expectation_after_one_step_is_the_value_in_eval(cell, q):
    bits, probability = every_mask(3, q)
    x, state, weights = one_step(cell, 8)
    plain = [part[0] for part in run(cell, x, state, weights)[1:]]
    memory = 1 if cell == "lstm" else 0
    scale = torch.tensor(1 / q, dtype=F64)

    update = run(cell, x, state, weights, {"update": bits[None] / q})[1:]
    assert_expectation(update[memory], probability, plain[memory])
    paper = run(cell, x, state, weights, {"update": bits[None]})[1:]
    in_eval = run(cell, x, state, weights, {"update": torch.tensor(q, dtype=F64)})[1:]
    assert_expectation(paper[memory], probability, in_eval[memory][0])

    kept = 1 - bits  # P(old value stays) = 1 - q
    z = torch.tensor(1 - q, dtype=F64)
    for name in ("zoneout_c", "zoneout_h") if cell == "lstm" else ("zoneout_h",):
        sampled_state = run(cell, x, state, weights, {name: kept[None]})[1:]
        in_eval = run(cell, x, state, weights, {name: z})[1:]
        for ours, expected in zip(sampled_state, in_eval, strict=True):
            assert_expectation(ours, probability, expected[0])

    if cell == "lstm":
        # Of h given the memory before the mask: dropped units read tanh(0), the others 1/q times what eval reads.
        # Without "cell_entry" of its own the mask would also act on what comes in, which the mask of c covers anyway.
        h, _ = run(cell, x, state, weights, {"cell": bits[None], "cell_scale": scale})[1:]
        assert_expectation(h, probability, plain[0])
    elif not cell.startswith("rnn"):
        # From a state of zero no unit's entry changes what another unit sees.
        zero = tuple(torch.zeros_like(part) for part in state)
        (h,) = run(cell, x, zero, weights, {"cell": bits[None], "cell_scale": scale})[1:]
        assert_expectation(h, probability, run(cell, x, zero, weights)[1][0])


def test_expectation_of_a_pre_activation():
    """A plain RNN in the linear range of its relu returns the pre-activation itself."""
    q = 0.6
    x, state, weights = problem("rnn_relu", steps=1, batch=1, inputs=3)
    weights[2] = weights[2] + 100  # far above zero under every mask
    plain = run("rnn_relu", x, state, weights)[1][0]
    for name, units, size in (
        ("input", 3, (1, 8, 3)),
        ("hidden", 3, (1, 8, 3)),
        ("weight_hh", 9, (512, 3, 3)),
        ("weight_ih", 9, (512, 3, 3)),
        ("weight_hh", 3, (8, 3, 1)),
    ):
        bits, probability = every_mask(units, q)
        count = len(bits)
        mask = (bits / q).reshape(size).expand(-1, -1, 3)
        values = run("rnn_relu", x.expand(-1, count, -1), (state[0].expand(count, -1),), weights, {name: mask})[1]
        assert bool((values > 0).all())
        assert_expectation(values, probability, plain)


def test_zoneout_over_three_steps_has_the_mean_of_all_its_masks():
    """Sampled from counters it hits the exact mean, which eval only approximates."""
    z_c, z_h, steps, count = 0.3, 0.2, 3, 100_000
    x, state, weights = problem("lstm", steps=steps, batch=1, hidden=1)

    def final_h(given: dict[str, Tensor], batch: int) -> Tensor:
        with torch.no_grad():
            return reference.lstm(
                x.expand(-1, batch, -1), tuple(part.expand(batch, -1) for part in state), weights, given
            )[1][0]

    kept_c, of_c = every_mask(steps, z_c)
    kept_h, of_h = every_mask(steps, z_h)
    c_index, h_index = (index.flatten() for index in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    all_masks = {"zoneout_c": kept_c[c_index].T[..., None], "zoneout_h": kept_h[h_index].T[..., None]}
    exact = float((final_h(all_masks, 64)[:, 0] * of_c[c_index] * of_h[h_index]).sum())
    specs = {"zoneout_c": sites.Zoneout(z_c), "zoneout_h": sites.Zoneout(z_h)}
    drawn = final_h(sampled("lstm", specs, steps=steps, batch=count, hidden=1)[0], count)
    assert abs(float(drawn.mean()) - exact) < 5 * float(drawn.std()) / count**0.5
    in_eval = float(final_h(sampled("lstm", specs, masks_on=False, steps=steps, batch=1, hidden=1)[0], 1))
    assert in_eval != pytest.approx(exact, abs=1e-9) and in_eval == pytest.approx(exact, abs=0.05)


# --------------------------------------------------------------------------------------------------------------------
# Dropped means 0
# --------------------------------------------------------------------------------------------------------------------


def test_dropped_infinities_are_zero():
    factor = torch.tensor([2.0, 0.0])
    assert reference.apply(torch.tensor([1.0, math.inf]), factor).tolist() == [2, 0]
    assert reference.apply(torch.tensor([1.0, math.nan]), factor).tolist() == [2, 0]
    assert torch.dropout(torch.tensor([math.inf]), 1.0, True).isnan()  # what multiplying would have given
    x = torch.tensor([3.0, math.inf], requires_grad=True)
    (grad,) = torch.autograd.grad(reference.apply(x, factor).sum(), x)
    assert grad.tolist() == [2, 0]


@pytest.mark.parametrize("cell", EQUATIONS)
def test_gradients_are_zero_where_a_mask_is(cell):
    x, state, weights = problem(cell, batch=3, inputs=4, hidden=6)
    specs = {"input_dropout": sites.LockedDropout(0.5), "weight_dropout": sites.WeightDropout(0.5, inputs=True)}
    made, _ = sampled(cell, specs, batch=3, inputs=4, hidden=6)
    out = run(cell, x, state, weights, made)[0]
    grads = torch.autograd.grad(out.square().sum(), [x, *weights[:2]])
    for grad, name in zip(grads, ("input", "weight_ih", "weight_hh"), strict=True):
        mask = made[name].expand_as(grad)
        assert torch.equal(grad == 0, mask == 0)


def test_gradient_of_a_masked_weight_is_the_mask_times_that_of_the_weight_used():
    x, state, weights = problem("lstm")
    mask = sampled("lstm", LSTM_SITES["weight"])[0]["weight_hh"]
    (of_raw,) = torch.autograd.grad(reference.lstm(x, state, weights, {"weight_hh": mask})[0].sum(), weights[1])
    used = (weights[1] * mask).detach().requires_grad_()
    (of_used,) = torch.autograd.grad(reference.lstm(x, state, [weights[0], used, *weights[2:]])[0].sum(), used)
    torch.testing.assert_close(of_raw, of_used * mask, **CLOSE)


# --------------------------------------------------------------------------------------------------------------------
# Time: lengths, direction, segments
# --------------------------------------------------------------------------------------------------------------------


def cut(made: dict[str, Tensor], rows: slice, steps: slice) -> dict[str, Tensor]:
    """The masks of some rows and steps."""
    result = {}
    for name, mask in made.items():
        if name.startswith("weight") and mask.dim() == 2 or mask.dim() == 0:
            result[name] = mask
        elif name == "cell_entry" or name.startswith("weight"):
            result[name] = mask[rows]
        else:
            result[name] = mask[steps if mask.shape[0] > 1 else slice(None), rows]
    return result


@pytest.mark.parametrize("cell", EQUATIONS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_a_padded_batch_equals_its_rows_alone(cell, reverse, per):
    lengths = [5, 1, 3]
    made, _ = sampled(cell, everything(cell, per), steps=5, batch=3)
    x, state, weights = problem(cell, steps=5, batch=3)
    x = x.detach().clone()
    for b, length in enumerate(lengths):
        x[length:, b] = math.nan  # what stands in the padding reaches neither a result nor a gradient
    x.requires_grad_()
    leaves = [x, *state, *weights]
    out, *end = run(cell, x, state, weights, made, lengths=lengths, reverse=reverse)
    loss = out.square().sum() + sum(part.square().sum() for part in end)
    rows_loss = 0
    for b, length in enumerate(lengths):
        row, span = slice(b, b + 1), slice(0, length)
        of_row = cut(made, row, span)
        alone, *end_alone = run(
            cell, x[span, row], tuple(part[row] for part in state), weights, of_row, reverse=reverse
        )
        torch.testing.assert_close(out[span, row], alone, **CLOSE)
        assert not out[length:, b].any()
        for padded, expected in zip(end, end_alone, strict=True):
            torch.testing.assert_close(padded[row], expected, **CLOSE)
        rows_loss = rows_loss + alone.square().sum() + sum(part.square().sum() for part in end_alone)
    for one, two in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(rows_loss, leaves), strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("cell", EQUATIONS)
def test_reverse_runs_backwards_over_the_same_masks(cell):
    x, state, weights = problem(cell, steps=4)
    specs = everything(cell)
    made = sampled(cell, specs, steps=4)[0] if specs else {"zoneout_h": (torch.rand(4, 2, 3) < 0.5).to(F64)}
    flipped = {name: mask.flip(0) if mask.dim() == 3 and mask.shape[0] == 4 else mask for name, mask in made.items()}
    out, *end = run(cell, x, state, weights, made, reverse=True)
    expected, *expected_end = run(cell, x.flip(0), state, weights, flipped)
    torch.testing.assert_close(out.flip(0), expected, **CLOSE)
    for ours, theirs in zip(end, expected_end, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("cell", EQUATIONS)
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_segments_that_carry_the_state_equal_the_whole(cell, per):
    x, state, weights = problem(cell, steps=6)
    made, _ = sampled(cell, everything(cell, per), steps=6)
    whole = run(cell, x, state, weights, made)
    first, *carried = run(cell, x[:2], state, weights, cut(made, slice(None), slice(0, 2)))
    second, *end = run(cell, x[2:], tuple(carried), weights, cut(made, slice(None), slice(2, 6)))
    for ours, theirs in zip((torch.cat([first, second]), *end), whole, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_entry_of_the_memory_follows_from_its_mask(cell):
    """Without cell_entry the mask says it, but for one step with a mask per step, which looks like one per sequence."""
    x, state, weights = problem(cell)
    for per in ("step", "sequence"):
        made, _ = sampled(cell, {"cell_dropout": sites.CellDropout(0.4, per=per)})
        without = {name: mask for name, mask in made.items() if name != "cell_entry"}
        for ours, theirs in zip(run(cell, x, state, weights, without), run(cell, x, state, weights, made), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


# --------------------------------------------------------------------------------------------------------------------
# Transformations
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", EQUATIONS)
def test_vmap_over_masks_and_weights(cell):
    """An ensemble: each member has its own weights and its own masks, drawn inside the map."""
    x, state, weights = problem(cell)
    plan = Plan.make(name_of(cell), everything(cell))

    def member(rng: Tensor, w_hh: Tensor) -> tuple[Tensor, ...]:
        made = masks.layer(
            plan,
            plan.cell,
            dict.fromkeys(GROUPS, rng),
            torch.tensor([threshold(0.4)] * 10),
            layer=0,
            reverse=False,
            input_size=2,
            hidden_size=3,
            example_ids=torch.arange(2),
            steps=torch.arange(3),
            dtype=F64,
            masks_on=True,
        )
        return run(cell, x, state, [weights[0], w_hh, *weights[2:]], made, lengths=[3, 2])

    rngs, w_hh = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.stack([weights[1] * k for k in (1, 2, 3)])
    together = torch.func.vmap(member)(rngs, w_hh)
    for k in range(3):
        for ours, alone in zip(together, member(rngs[k], w_hh[k]), strict=True):
            torch.testing.assert_close(ours[k], alone, **CLOSE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_forward_and_reverse_jacobians_agree(cell):
    x, state, weights = (part.detach() if isinstance(part, Tensor) else part for part in problem(cell))
    made, _ = sampled(cell, everything(cell))

    def of_weight(w_hh: Tensor) -> Tensor:
        return run(cell, x, state, [weights[0], w_hh, *weights[2:]], made)[0]

    w_hh = weights[1].detach()
    torch.testing.assert_close(torch.func.jacfwd(of_weight)(w_hh), torch.func.jacrev(of_weight)(w_hh), **CLOSE)


@pytest.mark.parametrize("cell", EQUATIONS)
def test_compiles_as_one_graph(cell):
    x, state, weights = problem(cell)
    made, _ = sampled(cell, everything(cell))
    compiled = torch.compile(
        lambda x, made: run(cell, x, state, weights, made, lengths=[3, 2]), backend="aot_eager", fullgraph=True
    )
    ours, expected = compiled(x, made), run(cell, x, state, weights, made, lengths=[3, 2])
    for one, two in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
    leaves = [x, *weights]
    for one, two in zip(*(torch.autograd.grad(parts[0].sum(), leaves) for parts in (ours, expected)), strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_kept(dtype):
    for cell in GATES:
        x, state, weights = problem(cell)
        made = {"hidden": torch.ones(1, 2, 3, dtype=dtype)}
        result = run(
            cell, x.to(dtype), tuple(part.to(dtype) for part in state), [weight.to(dtype) for weight in weights], made
        )
        tolerance = 20 * torch.finfo(dtype).eps
        for ours, exact in zip(result, run(cell, x, state, weights), strict=True):
            assert ours.dtype == dtype
            # relu is unbounded: relative to the largest value.
            assert float((ours.to(F64) - exact).detach().abs().max()) <= tolerance * max(
                1, float(exact.detach().abs().max())
            )


# --------------------------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------------------------


def one(*size: int) -> Tensor:
    return torch.ones(size, dtype=F64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden": one(1, 2, 3)}, r"masks has no 'hiden' here; allowed keys are input, hidden"),
        (
            {"hidden": one(2, 2, 3)},
            r"masks\['hidden'\] should have shape \(3\|1, 2\|1, 3\) or \(1, 2\|1, 4, 3\), got \(2, 2, 3\)",
        ),
        ({"update": one(2, 2, 3)}, r"masks\['update'\] should have shape \(3\|1, 2\|1, 3\) or \(\), got \(2, 2, 3\)"),
        (
            {"weight_hh": one(3, 3)},
            r"masks\['weight_hh'\] should have shape \(12, 3\|1\) or \(2, 12, 3\), got \(3, 3\)",
        ),
        ({"zoneout_h": one(3, 2, 3).bool()}, r"masks\['zoneout_h'\] should have a floating dtype, got torch.bool"),
        ({"weight_hr": one(3, 3)}, r"masks\['weight_hr'\] needs a projection"),
        ({"cell_scale": one()}, r"need masks\['cell'\]"),
        ({"zoneout_gate": one(3, 2, 3), "update": one()}, r"'zoneout_gate'\] cannot be combined with update"),
    ],
)
def test_bad_masks_raise(given, message):
    with pytest.raises(ValueError, match=message):
        reference.lstm(*problem("lstm"), given)


def test_sites_of_other_cells_raise():
    with pytest.raises(ValueError, match="masks has no 'zoneout_c' here"):
        run("gru", *problem("gru"), {"zoneout_c": one(3, 2, 3)})
    with pytest.raises(ValueError, match="masks has no 'cell' here"):
        run("rnn_tanh", *problem("rnn_tanh"), {"cell": one(3, 2, 3)})
    with pytest.raises(TypeError, match=r"masks\['hidden'\] should be a tensor, got ndarray"):
        run("gru", *problem("gru"), {"hidden": np.ones((1, 2, 3))})


def test_bad_tensors_raise():
    x, (h, c), weights = problem("lstm")
    bad: list[tuple[type, str, Callable]] = [
        (TypeError, "x should be a tensor, got list", lambda: reference.lstm([1.0], (h, c), weights)),
        (TypeError, "c_0 should be a tensor, got NoneType", lambda: reference.lstm(x, (h, None), weights)),
        (ValueError, "x should have 3 dimensions", lambda: reference.lstm(x[0], (h, c), weights)),
        (ValueError, "x should have a floating dtype", lambda: reference.lstm(x.long(), (h, c), weights)),
        (
            ValueError,
            "Expected sequence length to be larger than 0 in RNN",
            lambda: reference.lstm(x[:0], (h, c), weights),
        ),
        (ValueError, r"h_0 should have shape \(2, 3\), got \(1, 3\)", lambda: reference.lstm(x, (h[:1], c), weights)),
        (ValueError, "c_0 should have the dtype of x", lambda: reference.lstm(x, (h, c.float()), weights)),
        (
            ValueError,
            r"weights: w_ih should have shape \(12, 2\)",
            lambda: reference.lstm(x, (h, c), [weights[1], *weights[1:]]),
        ),
        (
            ValueError,
            r"weights: b_hh should have shape \(12,\)",
            lambda: reference.lstm(x, (h, c), [*weights[:3], one(3)]),
        ),
        (
            TypeError,
            "weights: w_hh should be a tensor, got NoneType",
            lambda: reference.lstm(x, (h, c), [weights[0], None, None, None]),
        ),
        (ValueError, "weights should be", lambda: reference.lstm(x, (h, c), weights[:2])),
        (ValueError, "weights should be", lambda: reference.gru(x, h, [*weights, None])),
        (
            ValueError,
            r"lengths should be in \[1, 3\], got \[4, 1\]",
            lambda: reference.lstm(x, (h, c), weights, lengths=[4, 1]),
        ),
        (
            ValueError,
            r"lengths should be in \[1, 3\], got \[0, 1\]",
            lambda: reference.lstm(x, (h, c), weights, lengths=[0, 1]),
        ),
        (
            ValueError,
            r"lengths should be int64 of shape \(2,\)",
            lambda: reference.lstm(x, (h, c), weights, lengths=[3]),
        ),
    ]
    for error, message, call in bad:
        with pytest.raises(error, match=message):
            call()
