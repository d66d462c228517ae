"""Masks: their statistics, what they share and what they do not, and that nothing but their counters changes them."""

from __future__ import annotations

import functools
import itertools

import mask_statistics as statistics
import pytest
import torch
from mask_statistics import Source, rate_z
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks, reference, sites
from fused_rnn_dropout.sites import GROUPS, KIND, SITE_INDEX, Plan, threshold

RNG = torch.tensor([1234567890123456789, -987654321987654321])
STATE_SITES = ("update", "cell", "zoneout_c", "zoneout_h")


def thresholds(rate: float = 0.5, **rates: float) -> Tensor:
    """The int64[10] of thresholds with one rate, but those of ``rates``."""
    return torch.tensor([threshold(rates.get(site, rate)) for site in sites.SITE_NAMES])


def plan_of(cell: str = "LSTM", **specs: sites.Spec) -> Plan:
    return Plan.make(cell, specs)


def all_sites(per: str = "step", cell: str = "LSTM") -> Plan:
    specs = {
        "hidden_dropout": sites.HiddenDropout(0.5),
        "weight_dropout": sites.WeightDropout(0.5, inputs=True, projection=True),
        "update_dropout": sites.UpdateDropout(0.5, per=per),
        "cell_dropout": sites.CellDropout(0.5, per=per),
        "zoneout_c": sites.Zoneout(0.5, per=per),
        "zoneout_h": sites.Zoneout(0.5, per=per),
    }
    return Plan.make(cell, {name: spec for name, spec in specs.items() if sites.SITE[name].fits(cell)})


def layer_masks(
    plan: Plan, rates: Tensor | None = None, rng: Tensor | dict[str, Tensor] = RNG, **options
) -> dict[str, Tensor]:
    given = {
        "layer": 1,
        "reverse": False,
        "input_size": 6,
        "hidden_size": 8,
        "proj_size": 0,
        "example_ids": torch.arange(3),
        "steps": torch.arange(4),
        "dtype": torch.float32,
        "masks_on": True,
    } | options
    rngs = rng if isinstance(rng, dict) else dict.fromkeys(GROUPS, rng)
    return masks.layer(plan, plan.cell, rngs, thresholds() if rates is None else rates, **given)


def locked_mask(spec: sites.LockedDropout | sites.StepDropout, **options) -> Tensor:
    given = {
        "p_threshold": torch.tensor(threshold(0.5)),
        "rng": RNG,
        "kind": KIND["INPUT"],
        "layer": 0,
        "units": 16,
        "example_ids": torch.arange(3),
        "steps": torch.arange(4),
        "dtype": torch.float32,
    } | options
    return masks.locked(spec, **given)


# --------------------------------------------------------------------------------------------------------------------
# Statistics, and that they see what is wrong
# --------------------------------------------------------------------------------------------------------------------

OPERATORS = Source(
    words=lambda *given: torch.ops.fused_rnn_dropout.words(*given),
    draw=lambda: torch.ops.fused_rnn_dropout.draw(torch.empty(0)),
)


@pytest.mark.parametrize("check", statistics.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("source", [Source(), OPERATORS], ids=["python", "cpu"])
def test_statistics(source, check):
    check(source)


def _one_field_for_two_elements(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    return masks.words(rng, row, step, n, stream)[..., torch.arange(n) & ~4]


def _one_mask_for_all_gates(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    return masks.words(rng, row, step, n, stream & ~(63 << 9))


def _batch_shared(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    return masks.words(rng, torch.zeros_like(row), step, n, stream)


def _steps_ignored(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    return masks.words(rng, row, torch.zeros_like(step), n, stream)


def _one_call_for_both_halves(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    upper = masks.words(rng, row, step, n, stream) >> 16
    return upper << 16 | upper


def _dropped_at_ties(numbers: Tensor, p: float) -> Tensor:
    return numbers >> 16 <= threshold(p) >> 16


def _scaled_twice(numbers: Tensor, p: float) -> Tensor:
    return masks.factor(numbers, torch.tensor(threshold(p)), torch.float32) * sites.keep_scale(threshold(p))


MUTATIONS = {
    "six rounds": (Source(words=functools.partial(masks.words, rounds=6)), "check_lags"),
    "five rounds": (Source(words=functools.partial(masks.words, rounds=5)), "check_pairs"),
    "one field for two elements, in pairs": (Source(words=_one_field_for_two_elements), "check_pairs"),
    "one field for two elements, jointly": (Source(words=_one_field_for_two_elements), "check_joint"),
    "one mask for all gates": (Source(words=_one_mask_for_all_gates), "check_pairs"),
    "batch-shared masks, in sums": (Source(words=_batch_shared), "check_sums"),
    "batch-shared masks, in repeats": (Source(words=_batch_shared), "check_birthday"),
    "one mask for all steps, in sums": (Source(words=_steps_ignored), "check_sums"),
    "one mask for all steps, at lags": (Source(words=_steps_ignored), "check_lags"),
    "one call for both halves": (Source(words=_one_call_for_both_halves), "check_halves"),
    "all dropped at ties": (Source(dropped=_dropped_at_ties), "check_edges"),
    "8-bit threshold": (Source(dropped=lambda numbers, p: numbers >> 24 < round(p * 256)), "check_rate"),
    "drops with 1-p": (Source(dropped=lambda numbers, p: numbers >= threshold(p)), "check_rate"),
    "mask scaled twice": (Source(factor=_scaled_twice), "check_mean"),
    "offset not advanced": (Source(draw=lambda: RNG), "check_calls"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_statistics_see(name, monkeypatch):
    """The checks above fail, each on the mutation that it is there for."""
    source, check = MUTATIONS[name]
    if name == "8-bit threshold":
        monkeypatch.setattr(statistics, "RATES", (0.3,))  # 77/256 is nearer to it than any other rate's is to its own
    said = r"standard deviations from chance|dropped at P = |occur twice|all\(\)|any\(\)"
    with pytest.raises(AssertionError, match=said):
        getattr(statistics, check)(source)


# --------------------------------------------------------------------------------------------------------------------
# What is shared: over time, the batch, gates
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proj_size", [0, 5])
def test_shapes_and_values(proj_size):
    p = 0.3
    scale = sites.keep_scale(threshold(p))
    for per, dtype in itertools.product(("sequence", "step"), (torch.float32, torch.float64)):
        found = layer_masks(all_sites(per), thresholds(p), proj_size=proj_size, hidden_size=8, dtype=dtype)
        state, time = proj_size or 8, 4 if per == "step" else 1
        shapes = {
            "hidden": (1, 3, state),
            "weight_hh": (32, state),
            "weight_ih": (32, 6),
            "update": (time, 3, 8),
            "cell": (time, 3, 8),
            "cell_scale": (),
            "cell_entry": (3, 8) if per == "sequence" else (),
            "zoneout_c": (time, 3, 8),
            "zoneout_h": (time, 3, state),
        } | ({"weight_hr": (proj_size, 8)} if proj_size else {})
        assert {name: tuple(mask.shape) for name, mask in found.items()} == shapes
        assert {mask.dtype for mask in found.values()} == {dtype}
        for name in ("hidden", "weight_hh", "weight_ih", "update"):
            assert set(found[name].unique().tolist()) == {0.0, float(torch.tensor(scale, dtype=dtype))}
        for name in ("cell", "zoneout_c", "zoneout_h"):
            assert set(found[name].unique().tolist()) == {0.0, 1.0}
        assert found["cell_scale"] == torch.tensor(scale, dtype=dtype)


def test_gru_memory_enters_unscaled():
    """A caller's h is scaled by 1/q, so the memory that enters is q h, and dead where the mask of the sequence is 0."""
    rates = thresholds(0.3)
    for per in ("sequence", "step"):
        found = layer_masks(plan_of("GRU", cell_dropout=sites.CellDropout(0.3, per=per)), rates, dtype=torch.float64)
        expected = found["cell"][0] * 0.7 if per == "sequence" else torch.tensor(0.7, dtype=torch.float64)
        torch.testing.assert_close(found["cell_entry"], expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(found["cell_entry"] * found["cell_scale"], (found["cell_entry"] != 0).double())
        paper = sites.CellDropout(0.3, per=per, scale="paper")
        found = layer_masks(plan_of("GRU", cell_dropout=paper), rates, dtype=torch.float64)
        assert found["cell_scale"] == 1
        assert torch.equal(found["cell_entry"], found["cell"][0] if per == "sequence" else torch.tensor(1.0).double())


def test_paper_scale_leaves_the_update_unscaled():
    found = layer_masks(plan_of(update_dropout=sites.UpdateDropout(0.3, scale="paper")), thresholds(0.3))
    assert set(found["update"].unique().tolist()) == {0.0, 1.0}


def test_masks_off_leaves_the_expectations():
    rates = thresholds(0.25)
    paper = {
        "update_dropout": sites.UpdateDropout(0.5, scale="paper"),
        "cell_dropout": sites.CellDropout(0.5, scale="paper"),
    }
    assert layer_masks(plan_of(**paper), rates, rng={}, masks_on=False) == {"update": 0.75, "cell": 0.75}
    assert layer_masks(all_sites(), rates, rng={}, masks_on=False) == {"zoneout_c": 0.25, "zoneout_h": 0.25}
    gate = plan_of(zoneout_c=sites.Zoneout(0.5, gate_shared=True))
    assert layer_masks(gate, rates, rng={}, masks_on=False) == {"zoneout_gate": 0.25}
    assert layer_masks(plan_of(), rates, rng={}, masks_on=False) == layer_masks(plan_of(), rates, rng={}) == {}


def test_masks_per_step_differ_at_every_step_and_masks_per_sequence_are_one():
    wide = {"hidden_size": 64, "example_ids": torch.arange(16), "steps": torch.arange(40)}
    step, sequence = layer_masks(all_sites("step"), **wide), layer_masks(all_sites("sequence"), **wide)
    for name in STATE_SITES:
        assert step[name].shape[0] == 40 and len(step[name].flatten(1).unique(dim=0)) == 40
        assert sequence[name].shape[0] == 1
    moved = layer_masks(all_sites("sequence"), **wide | {"steps": torch.arange(7) + 100})
    for name, mask in sequence.items():
        assert torch.equal(mask, moved[name])
    for per in ("sequence", "step"):
        mask = locked_mask(sites.LockedDropout(0.5, per=per))
        assert len(mask) == len(mask.unique(dim=0)) == (4 if per == "step" else 1)
    assert len(locked_mask(sites.StepDropout(0.5)).unique(dim=0)) == 4


def test_batch_shared_masks_do_not_know_the_examples():
    others = torch.tensor([9, 4, 7, 5])
    for per in ("sequence", "step"):
        shared = sites.LockedDropout(0.5, per=per, batch_shared=True)
        assert locked_mask(shared).shape[1] == 1
        assert torch.equal(locked_mask(shared), locked_mask(shared, example_ids=others))
        own = locked_mask(sites.LockedDropout(0.5, per=per))
        assert len(own.transpose(0, 1).unique(dim=0)) == 3
    plan = plan_of(hidden_dropout=sites.HiddenDropout(0.5, batch_shared=True))
    assert layer_masks(plan)["hidden"].shape == (1, 1, 8)
    assert torch.equal(layer_masks(plan)["hidden"], layer_masks(plan, example_ids=others)["hidden"])


def test_weight_masks_are_shared_by_the_batch_unless_per_example():
    weight = sites.WeightDropout(0.5, inputs=True, projection=True)
    options = {"proj_size": 5, "hidden_size": 8}
    one = layer_masks(plan_of(weight_dropout=weight), **options)
    other = layer_masks(plan_of(weight_dropout=weight), **options, example_ids=torch.tensor([4]), steps=torch.arange(9))
    assert one.keys() == {"weight_hh", "weight_ih", "weight_hr"}
    for name, mask in one.items():
        assert torch.equal(mask, other[name])
    own = layer_masks(
        plan_of(weight_dropout=sites.WeightDropout(0.5, inputs=True, projection=True, per_example=True)), **options
    )
    assert {name: tuple(mask.shape) for name, mask in own.items()} == {
        "weight_hh": (3, 32, 5),
        "weight_ih": (3, 32, 6),
        "weight_hr": (3, 5, 8),
    }
    for mask in own.values():
        assert len(mask.unique(dim=0)) == 3
    row = layer_masks(
        plan_of(weight_dropout=sites.WeightDropout(0.5, mode="row", inputs=True, projection=True)), **options
    )
    assert {name: tuple(mask.shape) for name, mask in row.items()} == {
        "weight_hh": (32, 1),
        "weight_ih": (32, 1),
        "weight_hr": (5, 1),
    }
    assert not torch.equal(row["weight_hh"], row["weight_ih"])


@pytest.mark.parametrize(("cell", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_untied_masks_differ_between_gates(cell, gates):
    untied = locked_mask(sites.LockedDropout(0.5, tied=False), gates=gates)
    assert untied.shape == (1, 3, gates, 16)
    assert len(untied[0].transpose(0, 1).unique(dim=0)) == gates
    plan = plan_of(cell, hidden_dropout=sites.HiddenDropout(0.5, tied=False))
    hidden = layer_masks(plan, hidden_size=16)["hidden"]
    assert hidden.shape == (1, 3, gates, 16)
    assert len(hidden[0].transpose(0, 1).unique(dim=0)) == gates
    tied = layer_masks(plan_of(cell, hidden_dropout=sites.HiddenDropout(0.5)), hidden_size=16)["hidden"]
    assert torch.equal(tied, hidden[:, :, 0])


def test_layers_directions_and_sites_have_masks_of_their_own():
    found = [layer_masks(all_sites(), layer=layer, reverse=reverse) for layer in (0, 1, 2) for reverse in (False, True)]
    for name in ("hidden", "weight_hh", "weight_ih", *STATE_SITES):
        assert len(torch.stack([of_layer[name].flatten() for of_layer in found]).unique(dim=0)) == 6
    bits = [found[0][name] != 0 for name in STATE_SITES]
    for one, two in itertools.combinations(bits, 2):
        assert not torch.equal(one, two)


def test_each_site_uses_its_own_rate():
    """With one rate at 1 and all others at 0, that site drops all and no other drops anything."""
    masked = {
        "hidden_dropout": ("hidden",),
        "weight_dropout": ("weight_hh", "weight_ih"),
        "update_dropout": ("update",),
        "cell_dropout": ("cell",),
        "zoneout_c": ("zoneout_c",),
        "zoneout_h": ("zoneout_h",),
    }
    for site, names in masked.items():
        found = layer_masks(all_sites(), thresholds(0.0, **{site: 1.0}))
        for name in ("hidden", "weight_hh", "weight_ih", *STATE_SITES):
            full = float(name.startswith("zoneout"))  # a zoneout mask is 1 where the old value stays
            assert bool((found[name] == (full if name in names else 1 - full)).all()), (site, name)


def test_each_group_draws_from_its_own_rng():
    before = layer_masks(all_sites())
    of_group = {
        "hidden": {"hidden"},
        "weight": {"weight_hh", "weight_ih"},
        "state": {*STATE_SITES},
        "input": set(),
        "inter_layer": set(),
        "output": set(),
    }
    for group, expected in of_group.items():
        after = layer_masks(all_sites(), rng=dict.fromkeys(GROUPS, RNG) | {group: RNG + 1})
        assert {name for name in before if not torch.equal(before[name], after[name])} == expected


def test_shared_zoneout_is_one_mask_where_the_rates_are_equal():
    plan = plan_of(zoneout_c=sites.Zoneout(0.5), zoneout_h=sites.Zoneout(0.5, shared=True))
    equal = layer_masks(plan)
    assert torch.equal(equal["zoneout_c"], equal["zoneout_h"])
    nested = layer_masks(plan, thresholds(zoneout_c=0.5, zoneout_h=0.2), hidden_size=64)
    assert bool((nested["zoneout_h"] <= nested["zoneout_c"]).all())
    assert 0 < float(nested["zoneout_h"].mean()) < float(nested["zoneout_c"].mean())


@pytest.mark.parametrize("shared", [False, True])
def test_zoneout_keeps_old_values_bitwise_at_its_rate(shared):
    z_c, z_h, hidden_size, batch, steps = 0.3, 0.15, 64, 32, 30
    z_h = z_c if shared else z_h
    plan = plan_of(zoneout_c=sites.Zoneout(z_c), zoneout_h=sites.Zoneout(z_h, shared=shared))
    rates = thresholds(zoneout_c=z_c, zoneout_h=z_h)
    found = layer_masks(
        plan,
        rates,
        hidden_size=hidden_size,
        example_ids=torch.arange(batch),
        steps=torch.arange(steps),
        dtype=torch.float64,
    )
    weights = [torch.randn(4 * hidden_size, size, dtype=torch.float64) * 0.1 for size in (5, hidden_size)] + [
        None,
        None,
    ]
    x = torch.randn(steps, batch, 5, dtype=torch.float64)
    h, c = (torch.randn(batch, hidden_size, dtype=torch.float64) for _ in range(2))
    kept_h, kept_c = [], []
    for t in range(steps):
        _, (h_next, c_next) = reference.lstm(
            x[t : t + 1], (h, c), weights, {name: mask[t : t + 1] for name, mask in found.items()}
        )
        kept_h.append(h_next == h)
        kept_c.append(c_next == c)
        h, c = h_next, c_next
    kept_h, kept_c = torch.stack(kept_h), torch.stack(kept_c)
    total = kept_h.numel()
    assert abs(rate_z(int(kept_h.sum()), total, z_h)) < 5
    assert abs(rate_z(int(kept_c.sum()), total, z_c)) < 5
    both = int((kept_h & kept_c).sum())
    assert torch.equal(kept_h, kept_c) if shared else abs(rate_z(both, total, z_h * z_c)) < 5


# --------------------------------------------------------------------------------------------------------------------
# What does not change a mask
# --------------------------------------------------------------------------------------------------------------------

PER_EXAMPLE = ("hidden", *STATE_SITES)


def test_split_batches_have_the_same_masks():
    whole = layer_masks(all_sites(), example_ids=torch.arange(7))
    for part in ([0, 1, 2], [1, 3, 5], [6, 0]):
        # Every other row of a table: the ids need not be contiguous in memory.
        ids = torch.tensor(part).repeat_interleave(2)[::2]
        found = layer_masks(all_sites(), example_ids=ids)
        for name in PER_EXAMPLE:
            assert torch.equal(found[name], whole[name][:, part])
        locked = locked_mask(sites.LockedDropout(0.5), example_ids=ids)
        assert torch.equal(locked, locked_mask(sites.LockedDropout(0.5), example_ids=torch.arange(7))[:, part])


def test_split_time_has_the_same_masks():
    whole = layer_masks(all_sites(), steps=torch.arange(9))
    first, second = (layer_masks(all_sites(), steps=steps) for steps in (torch.arange(5), torch.arange(4) + 5))
    for name in STATE_SITES:
        assert torch.equal(torch.cat([first[name], second[name]]), whole[name])
    step = sites.LockedDropout(0.5, per="step")
    parts = [locked_mask(step, steps=torch.arange(2) + offset) for offset in (0, 2)]
    assert torch.equal(torch.cat(parts), locked_mask(step))


def test_permuted_examples_have_permuted_masks():
    order = torch.tensor([2, 0, 3, 1])
    straight, permuted = (layer_masks(all_sites(), example_ids=ids) for ids in (torch.arange(4), order))
    for name in PER_EXAMPLE:
        assert torch.equal(straight[name][:, order], permuted[name])


def test_more_units_leave_the_masks_of_the_first():
    narrow, wide = layer_masks(all_sites(), hidden_size=7), layer_masks(all_sites(), hidden_size=16)
    for name in PER_EXAMPLE:
        assert torch.equal(narrow[name], wide[name][..., :7])
    assert torch.equal(locked_mask(sites.LockedDropout(0.5), units=13), locked_mask(sites.LockedDropout(0.5))[..., :13])


def test_masks_of_all_dtypes_have_the_same_bits():
    found = {
        dtype: layer_masks(all_sites(), dtype=dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }
    for of_dtype in found.values():
        for name, mask in of_dtype.items():
            assert torch.equal(mask != 0, found[torch.float64][name] != 0)
    # The scale of p = .3 is 1.428571 and rounds to 1.4297 only where the mask itself is bfloat16.
    factor = layer_masks(all_sites(), thresholds(0.3), dtype=torch.float32)["hidden"]
    assert abs(float(factor.max()) - 1 / 0.7) < 1e-6


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("per", ["sequence", "step"])
def test_words_of_the_operator_make_the_same_masks(cell, per):
    options = {
        "hidden_size": 9,
        "example_ids": torch.tensor([5, 2**32 - 2, 0]),
        "steps": torch.arange(3) + 2**31,
        "reverse": True,
    }
    ours = layer_masks(all_sites(per, cell), **options)
    theirs = layer_masks(all_sites(per, cell), **options, words=torch.ops.fused_rnn_dropout.words)
    assert ours.keys() == theirs.keys()
    for name, mask in ours.items():
        assert torch.equal(mask, theirs[name])


def test_masks_of_one_graph_follow_the_rates(monkeypatch):
    """Thresholds and rng are inputs of a compiled graph: other values need no other graph."""
    graphs = 0

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def make(rng: Tensor, rates: Tensor) -> dict[str, Tensor]:
        return layer_masks(all_sites(), rates, rng)

    compiled = torch.compile(make, backend=counting, fullgraph=True)
    for rate, rng in ((0.5, RNG), (0.1, RNG), (1.0, RNG + 1)):
        found, expected = compiled(rng, thresholds(rate)), make(rng, thresholds(rate))
        assert found.keys() == expected.keys()
        for name, mask in found.items():
            assert torch.equal(mask, expected[name])
    assert graphs == 1


def test_masks_under_vmap():
    rngs = torch.stack([RNG, RNG + 1])
    rates = torch.stack([thresholds(0.2), thresholds(0.7)])
    together = torch.func.vmap(lambda rng, rate: layer_masks(all_sites(), rate, rng))(rngs, rates)
    for i in range(2):
        for name, mask in layer_masks(all_sites(), rates[i], rngs[i]).items():
            assert torch.equal(together[name][i], mask)


def test_masks_need_no_value_of_a_tensor():
    with FakeTensorMode():
        rates, rng = torch.empty(10, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
        found = layer_masks(all_sites(), rates, rng, example_ids=torch.arange(3), steps=torch.arange(4))
    assert found["cell"].shape == (4, 3, 8)


# --------------------------------------------------------------------------------------------------------------------
# The draw
# --------------------------------------------------------------------------------------------------------------------


def test_draw_takes_the_same_from_the_generator_whatever_it_is_for():
    states = []
    for like in (
        torch.empty(0),
        torch.empty(5, 3, 2),
        torch.empty(400, dtype=torch.float64),
        torch.empty(3, dtype=torch.bfloat16),
    ):
        torch.manual_seed(5)
        drawn = torch.ops.fused_rnn_dropout.draw(like)
        assert drawn.dtype == torch.int64 and drawn.shape == (2,)
        states.append((drawn.tolist(), torch.get_rng_state()))
    for drawn, state in states:
        assert drawn == states[0][0] and torch.equal(state, states[0][1])


def test_draws_follow_the_seed_and_the_state_of_the_generator():
    def draw() -> list[int]:
        return torch.ops.fused_rnn_dropout.draw(torch.empty(0)).tolist()

    torch.manual_seed(5)
    first, state, second = draw(), torch.get_rng_state(), draw()
    assert first != second
    torch.set_rng_state(state)
    assert draw() == second
    torch.manual_seed(5)
    assert draw() == first


def test_a_forward_takes_from_the_generator_only_where_a_site_is_configured():
    """And then the same amount whatever T, B, H and the rate are, in training and in MC mode; none in eval."""

    def taken(rnn: torch.nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        rnn(x)
        return torch.get_rng_state()

    torch.manual_seed(5)
    untouched = torch.get_rng_state()
    torch.ops.fused_rnn_dropout.draw(torch.empty(0))
    once = torch.get_rng_state()
    x = torch.randn(3, 2, 4)
    assert torch.equal(taken(frd.LSTM(4, 5, weight_dropout=0.5), x), once)
    assert torch.equal(
        taken(frd.LSTM(4, 7, num_layers=2, dropout=0.1, zoneout_c=0.9, bidirectional=True), torch.randn(6, 3, 4)), once
    )
    assert torch.equal(taken(frd.GRU(4, 5, update_dropout=0.2), x), once)
    assert torch.equal(taken(frd.LSTM(4, 5), x), untouched)
    assert torch.equal(taken(frd.LSTM(4, 5, weight_dropout=0.5).eval(), x), untouched)
    assert torch.equal(taken(frd.LSTM(4, 5, weight_dropout=0.5, mc=True).eval(), x), once)


def test_indices_of_sites_are_those_of_the_thresholds():
    assert list(SITE_INDEX.values()) == list(range(10)) and len(thresholds()) == 10
