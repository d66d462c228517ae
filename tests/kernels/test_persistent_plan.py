"""Persistent plans of layers for seven GPUs: csrc/cuda/schedules/persistent_plan.h, tests/cuda/plan.cpp."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import persistent_floor
import persistent_plans
import pytest
from persistent_plans import DEVICES, KIB, Device, Layer, Plan

from fused_rnn_dropout.cells import CELLS
from fused_rnn_dropout.sites import FLAG

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Planner(NamedTuple):
    program: Path

    def all(self, asked: list[tuple[Device, Layer]]) -> list[Plan | str]:
        return persistent_plans.plans(self.program, asked)

    def one(self, device: str = "H100", **layer: object) -> Plan | str:
        return self.all([(DEVICES[device], Layer(**layer))])[0]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return Planner(persistent_plans.build(tmp_path_factory.mktemp("plan")))


LAYERS = [
    Layer(cell, kind, batch, units, directions=directions, backward=backward)
    for cell, kind, (batch, units), directions, backward in itertools.product(
        ("LSTM", "GRU", "RNN_TANH"),
        ("bfloat16", "float32"),
        ((1, 8), (3, 33), (16, 256), (20, 1150), (16, 1024), (64, 768), (128, 512), (7, 2048), (256, 96)),
        (1, 2),
        (False, True),
    )
]


@pytest.mark.parametrize("device", DEVICES)
def test_plans_hold_together(planner: Planner, device: str) -> None:
    """Every unit and row has a block, U is somewhere, and nothing is more than the device has."""
    limits = DEVICES[device]
    found = planner.all([(limits, layer) for layer in LAYERS])
    for layer, plan in zip(LAYERS, found, strict=True):
        if isinstance(plan, str):
            continue
        gates = CELLS[layer.cell].gates
        size = BYTES[layer.type]
        rows_of_u, columns = (plan["units"], gates * layer.units) if layer.backward else (
            gates * plan["units"], layer.units)  # fmt: skip
        assert (plan["unit_groups"] - 1) * plan["units"] < layer.units <= plan["unit_groups"] * plan["units"]
        assert plan["batch_groups"] * plan["rows"] >= layer.batch
        assert plan["blocks"] == layer.directions * plan["unit_groups"] * plan["batch_groups"]
        assert plan["blocks"] <= limits.multiprocessors
        assert plan["row_tiles"] * 16 >= rows_of_u and plan["batch_tiles"] * 8 >= plan["rows"]
        assert plan["u_in_registers"] + plan["u_in_shared"] >= rows_of_u * columns * size
        assert plan["registers"] <= 255
        assert plan["u_in_registers"] <= 4 * plan["registers"] * 256
        assert plan["chunks"] * 16 >= plan["unit_groups"] * plan["clusters"] * plan["items"]
        sums = 8 * plan["row_tiles"] * 16 * plan["batch_tiles"] * 8 * 4
        assert plan["u_in_shared"] + (2 if plan["kernel"] == 0 else 1) * sums < plan["shared"] <= limits.shared
        assert plan["bytes_read"] == plan["words_read"] * (8 if plan["tagged"] else 4)
        assert plan["bytes_read"] >= plan["rows"] * columns * BYTES[layer.type]
        assert plan["workspace"] >= 8 * layer.directions * plan["bytes_read"] * plan["batch_groups"]
        assert plan["bytes_written"] * plan["unit_groups"] >= plan["rows"] * columns * BYTES[layer.type]


def test_most_fit_where_there_is_room(planner: Planner) -> None:
    fits = Counter()
    for device, limits in DEVICES.items():
        fits[device] = sum(not isinstance(plan, str) for plan in planner.all([(limits, one) for one in LAYERS]))
    assert fits["B200"] >= fits["H100"] == fits["H200"] >= fits["A100"] >= fits["A10"] >= fits["GB10"] > 0
    assert fits["H100"] > 0.7 * len(LAYERS) and fits["RTX 4090"] >= fits["A10"]


def test_known_plans(planner: Planner) -> None:
    """Worked out by hand."""
    plan = planner.one(units=768, batch=16)
    assert isinstance(plan, dict)
    # 12 units of 4 gates are 3 tiles of rows, 768 columns 48 tiles, 6 of each warp: 18 fragments of 4 registers.
    assert (plan["batch_groups"], plan["unit_groups"], plan["units"]) == (2, 64, 12)
    assert (plan["tiles_in_registers"], plan["u_in_shared"], plan["u_in_registers"]) == (18, 0, 48 * 768 * 2)
    assert (plan["bytes_read"], plan["words_read"], plan["tagged"]) == (8 * 768 * 2, 8 * 768 // 2, 0)
    assert plan["workspace"] == 8 * 16 * 768 * 2
    backward = planner.one(units=768, batch=16, backward=True)
    assert isinstance(backward, dict)
    assert (backward["tagged"], backward["bytes_read"]) == (1, 8 * 4 * 768 // 3 * 8)  # three values a word of 8 bytes


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        ("phased", {"cell": "LSTM"}),
        ("phased", {"cell": "LSTM", "h0": True}),
        ("phased", {"cell": "LSTM", "flags": FLAG["ZONEOUT_H"]}),
        ("tagged", {"cell": "LSTM", "flags": FLAG["ZONEOUT_H"], "h0": True}),
        ("phased", {"cell": "LSTM", "flags": FLAG["UPDATE"] | FLAG["CELL"] | FLAG["HIDDEN"], "h0": True}),
        ("tagged", {"cell": "LSTM", "backward": True}),
        ("tagged", {"cell": "GRU"}),
        ("phased", {"cell": "RNN_TANH", "h0": True}),
        ("tagged", {"cell": "RNN_TANH", "flags": FLAG["UPDATE"]}),
        ("tagged", {"cell": "RNN_TANH", "flags": FLAG["ZONEOUT_H"], "h0": True}),
        ("tagged", {"cell": "RNN_RELU"}),
    ],
)
def test_words_follow_from_what_is_configured(planner: Planner, words: str, layer: dict[str, object]) -> None:
    plan = planner.one(units=256, **layer)
    assert isinstance(plan, dict) and plan["tagged"] == (words == "tagged")


@pytest.mark.parametrize(
    ("why", "layer"),
    [
        ("float64: tensor cores have no products of it here", {"type": "float64"}),
        ("a projection: h has not the width of c", {"projected": 96}),
        ("a layer without units or rows", {"batch": 0}),
        # 24 units are 6 tiles of rows by 192 of columns, 24 of each warp: 576 KiB, and 48 of sums.
        ("a block's part of W_hh leaves 625 KiB to shared memory, and a block has 227", {"units": 3072}),
        (
            "a block would have 1 x 64 tiles, and the kernels are compiled for 6 x 2 at most",
            {"batch": 4096, "units": 64},
        ),
    ],
)
def test_what_does_not_fit_is_said(planner: Planner, why: str, layer: dict[str, object]) -> None:
    said = planner.one(**layer)
    assert isinstance(said, str) and why in said


def test_an_old_device_is_refused(planner: Planner) -> None:
    turing = Device(7, 5, 40, 64 * KIB)
    assert planner.all([(turing, Layer())]) == ["compute capability 7.5: its products need 8.0"]


def test_a_device_too_small_says_so(planner: Planner) -> None:
    small = Device(8, 9, 4, 99 * KIB)
    (said,) = planner.all([(small, Layer(units=1024))])
    assert isinstance(said, str) and ("multiprocessors" in said or "shared memory" in said)


def test_the_table_of_the_page_is_what_is_printed(planner: Planner) -> None:
    page = persistent_plans.PAGE.read_text("utf-8")
    inside = page.split(persistent_plans.BEGIN)[1].split(persistent_plans.END)[0]
    assert inside.strip() == persistent_plans.table(planner.program), (
        "out of date: python tools/persistent_plans.py --write"
    )


def test_cells_have_the_numbers_of_the_package() -> None:
    assert {name: cell.number for name, cell in CELLS.items()} == persistent_plans.CELLS


# --------------------------------------------------------------------------------------------------------------------
# The least time of a step
# --------------------------------------------------------------------------------------------------------------------


def test_the_page_of_floors_is_up_to_date(planner: Planner) -> None:
    page = persistent_floor.PAGE.read_text("utf-8")
    inside = page.split(persistent_floor.BEGIN)[1].split(persistent_floor.END)[0]
    made = persistent_floor.text(planner.program)
    assert inside.strip() == made, "out of date: python tools/persistent_floor.py --write"


@pytest.mark.parametrize("name", persistent_floor.PLACES)
def test_a_floor_is_bounded_by_what_it_is_made_of(planner: Planner, name: str) -> None:
    place = persistent_floor.PLACES[name]
    layers = [layer for layer in LAYERS if layer.directions == 1]
    found = planner.all([(place.limits, layer) for layer in layers])
    assert any(isinstance(plan, dict) for plan in found)
    for layer, plan in zip(layers, found, strict=True):
        if isinstance(plan, str):
            continue
        seconds = persistent_floor.step(plan, layer, place)
        assert seconds >= place.hop + plan["bytes_read"] / place.gpu.l2_of_one
        assert seconds >= persistent_floor.memory(layer) / place.gpu.bandwidth
        flops = 2 * CELLS[layer.cell].gates * layer.units**2 * layer.batch
        assert seconds >= flops / place.gpu.peak["bfloat16"]
        more = persistent_floor.step({**plan, "bytes_read": 2 * plan["bytes_read"]}, layer, place)
        assert more > seconds or seconds == persistent_floor.memory(layer) / place.gpu.bandwidth


def test_a_step_by_hand() -> None:
    """An LSTM of 768 units in bfloat16 on 16 rows, on an H100: 2 x 64 blocks of 12 units and 8 rows."""
    plan = {"row_tiles": 3, "batch_tiles": 1, "k_tiles": 48, "u_in_shared": 0, "bytes_read": 768 * 8 * 2}
    layer, place = Layer("LSTM", "bfloat16", 16, 768), persistent_floor.PLACES["H100"]
    from_l2 = 768 * 8 * 2 / (64 * 1.83e9)
    products = 3 * 48 * (16 * 8 * 16 * 2) / (989e12 / 132)
    assert persistent_floor.step(plan, layer, place) == pytest.approx(0.65e-6 + from_l2 + products)
    assert persistent_floor.memory(layer) == 16 * 768 * (4 * 2 + 4 * 2 + 4 + 2)  # W x, gates, c, h


@pytest.mark.parametrize("backward", [False, True])
def test_both_types_of_16_bits_have_the_same_plans(planner: Planner, backward: bool) -> None:
    """So that they share a row."""
    for cell, units, batch in itertools.product(("LSTM", "GRU"), (256, 768, 1024, 1150, 2048), (16, 64)):
        of = [Layer(cell, kind, batch, units, backward=backward) for kind in ("bfloat16", "float16")]
        for place in persistent_floor.PLACES.values():
            one, other = planner.all([(place.limits, layer) for layer in of])
            assert one == other
