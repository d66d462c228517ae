"""What ``python -m bench floor`` says: its counts are those of runs, its page is what the command prints."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import host_run
import pytest
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout.bench import count, floor
from fused_rnn_dropout.bench.__main__ import main
from fused_rnn_dropout.bench.contenders import contenders_of
from fused_rnn_dropout.bench.count import SCHEDULES, Layer, launches
from fused_rnn_dropout.bench.shapes import SHAPES, Shape
from fused_rnn_dropout.cells import MODULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpu.md"
SMALL = [
    Shape("few rows", 7, 5, 6, 8, "small", ""),
    Shape("two passes of sums", 40, 8, 3, 5, "small", ""),
    Shape("packed", 70, 6, 4, 8, "packed", ""),
]


def build(cell: str, shape: Shape, name: str = "all") -> torch.nn.Module:
    return next(c for c in contenders_of("cuda") if c.name == name).build(cell, shape)


def products(profile: torch.profiler.profile) -> tuple[int, float]:
    """Number and FLOPs of matrix products."""
    found = [event for event in profile.events() if event.name == "aten::mm"]
    return len(found), sum(event.flops for event in found)


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
@pytest.mark.parametrize("cell", MODULES)
def test_alternating_launches_what_is_counted(cell: str, shape: Shape) -> None:
    """Kernels, products and FLOPs, forward and backward, in a run on the host; and the bytes that are kept."""
    torch.set_num_threads(1)
    with host_run.run_on_host():
        host = host_run.host_module()
        rnn = build(cell, shape)
        lengths = shape.lengths()
        x = torch.randn(shape.steps, shape.batch, shape.inputs, requires_grad=True)
        given = x if lengths is None else torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        explained, again = (frd.explain(module, given) for module in (rnn, build(cell, shape, "recompute")))
        measured = []
        host.take_launches()
        with torch.profiler.profile(with_flops=True) as forward:
            out = rnn(given)[0]
        measured.append((sum(host.take_launches().values()), *products(forward)))
        with torch.profiler.profile(with_flops=True) as backward:
            (out if lengths is None else out.data).sum().backward()
        measured.append((sum(host.take_launches().values()), *products(backward)))
    layer = Layer(cell, shape, 4)
    for part, found in zip(count.alternating(layer), measured, strict=True):
        flops = sum(work.times * work.flops for work in part if work.product)
        assert (launches(part, False), launches(part, True), flops) == found
    assert explained.schedule.startswith("alternating")
    # The dropped input is kept too, and h, which is the output before its own dropout.
    around = layer.rows * (shape.inputs + shape.units) * 4
    assert explained.bytes_for_backward == layer.kept + around
    assert again.bytes_for_backward == layer.kept_states + around


TRITON = """
import sys, torch
import fused_rnn_dropout.triton.operators
import fused_rnn_dropout.triton as package
from fused_rnn_dropout.bench.contenders import contenders_of
from fused_rnn_dropout.bench.shapes import Shape
calls = {"kernels": 0, "products": 0}
for name, module in list(sys.modules.items()):
    if name.startswith(package.__name__ + "."):
        for attribute, key in (("launch", "kernels"), ("product", "products")):
            function = getattr(module, attribute, None)
            if callable(function):
                def counted(*args, _function=function, _key=key, **kwargs):
                    calls[_key] += 1
                    return _function(*args, **kwargs)
                setattr(module, attribute, counted)
torch.set_num_threads(1)
cell, *sizes = sys.argv[1:]
shape = Shape("s", *map(int, sizes[:4]), sizes[4], "")
rnn = next(c for c in contenders_of("cuda") if c.name == "triton-all").build(cell, shape)
x = torch.randn(shape.steps, shape.batch, shape.inputs, requires_grad=True)
lengths = shape.lengths()
given = x if lengths is None else torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
out = rnn(given)[0]
print(*calls.values())
calls.update(kernels=0, products=0)
(out if lengths is None else out.data).sum().backward()
print(*calls.values())
"""


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "fused_rnn_dropout.triton")),
    reason="needs triton, and the library's kernels for it",
)
@pytest.mark.parametrize("schedule", ["alternating", "sequence"])
@pytest.mark.parametrize("shape", SMALL[::2], ids=lambda shape: shape.name)
@pytest.mark.parametrize("cell", MODULES)
def test_triton_launches_what_is_counted(cell: str, shape: Shape, schedule: str) -> None:
    """In Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FRD_TRITON_SCHEDULE": schedule}
    sizes = map(str, (cell, shape.steps, shape.batch, shape.inputs, shape.units, shape.kind))
    done = subprocess.run(
        [sys.executable, "-c", TRITON, *sizes], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    parts = SCHEDULES[f"Triton, {schedule}"](Layer(cell, shape, 4))
    assert [(launches(part, False), launches(part, True)) for part in parts] == found


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("cell", MODULES)
def test_products_are_those_of_the_layer(cell: str, shape: Shape) -> None:
    """The alternating schedules compute nothing twice; tiles of 16 rows do where there are fewer."""
    layer = Layer(cell, shape, 4)
    for name in ("alternating", "Triton, alternating"):
        total = sum(work.times * work.flops for part in SCHEDULES[name](layer) for work in part)
        assert total == pytest.approx(shape.flops(cell, "train"))
    filled = sum(work.times * work.flops for part in count.triton_sequence(layer) for work in part)
    assert (filled > shape.flops(cell, "train")) or shape.batch % count.TILE_ROWS == 0


def moved(works: list[count.Work], name: str) -> list[float]:
    """Bytes of each launch of a kernel."""
    return [work.moved for work in works if work.name == name for _ in range(work.times)]


def test_bytes_by_hand() -> None:
    """Of kernels whose loads and stores are few enough to be counted by eye, on (B, H) = (64, 512), float32."""
    wide = next(shape for shape in SHAPES if shape.name == "wide")
    elements = 64 * 512
    of_h = elements * (4 + 4 + 1 + 4)  # csrc/cuda/leave.cu: carried, through, the byte of masks; the gradient
    of_c = elements * (4 + 1 + 4)  # the same without through
    assert (of_h, of_c) == (425_984, 294_912)
    assert moved(count.alternating(Layer("LSTM", wide, 4))[1], "leave") == [of_h, of_c]
    assert moved(count.alternating(Layer("GRU", wide, 4))[1], "leave") == [of_h]
    half = elements * (4 + 2 + 1 + 4)  # what is carried and what a caller gets are float32 for 16 bits too
    assert moved(count.alternating(Layer("LSTM", wide, 2))[1], "leave") == [half, of_c]
    # fused_rnn_dropout/triton/entry.py: c, then h, which the first product reads; both leave, through is float32.
    for name in ("Triton, alternating", "Triton, sequence"):
        first, last = SCHEDULES[name](Layer("LSTM", wide, 2))
        assert moved(first, "enter") == [elements * 8, elements * 10]
        assert moved(last, "leave") == [elements * 12, elements * 8]
        first, last = SCHEDULES[name](Layer("GRU", wide, 2))
        assert (moved(first, "enter"), moved(last, "leave")) == ([elements * 10], [elements * 12])


@pytest.mark.parametrize("name", ["alternating", "Triton, alternating", "Triton, sequence"])
def test_a_mask_on_what_a_layer_writes_takes_no_pass(name: str) -> None:
    """Rows are masked by themselves where the first layer reads them, and nowhere else."""
    wide = next(shape for shape in SHAPES if shape.name == "wide")
    of_input = 2 * 4 * wide.rows * wide.inputs
    first, last = SCHEDULES[name](Layer("LSTM", wide, 4))
    assert (moved(first, "drop_rows"), moved(last, "drop_rows")) == ([of_input], [of_input] * 2)
    bits = [64 * 512 // 8] if name == "alternating" else []
    assert (moved(first, "written_masks"), moved(last, "written_masks")) == (bits, bits)


@pytest.mark.parametrize(
    ("cell", "sites", "apart"),
    [
        ("LSTM", {"cell_dropout": 0.2}, False),
        ("GRU", {"cell_dropout": 0.2}, True),
        ("LSTM", {"zoneout_h": frd.Zoneout(0.1, output="unzoned")}, True),
        ("GRU", {"zoneout_h": frd.Zoneout(0.1, output="unzoned")}, True),
        ("LSTM", {"zoneout_h": 0.1}, False),
        ("GRU", {"zoneout_h": 0.1, "weight_dropout": 0.5}, False),
        ("RNN", {"zoneout_h": 0.1, "update_dropout": 0.5}, False),
        ("RNN", {"zoneout_h": frd.Zoneout(0.1, output="unzoned")}, True),
    ],
)
def test_what_stores_states(cell: str, sites: dict, apart: bool) -> None:
    """In a run on the host: backward keeps the output, or another tensor of its size in its place."""
    shape, kept = SMALL[0], []
    with host_run.run_on_host():
        rnn = getattr(frd, cell)(shape.inputs, shape.units, backend="cuda", **sites)
        x = torch.randn(shape.steps, shape.batch, shape.inputs, requires_grad=True)
        explained = frd.explain(rnn, x)
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.data_ptr()), lambda saved: saved):
            out = rnn(x)[0]
    assert (out.data_ptr() not in kept) == apart
    beside = shape.inputs + (shape.units if apart else 0)  # the output itself is the caller's anyway
    assert explained.bytes_for_backward == Layer(cell, shape, 4).kept + 4 * shape.rows * beside


def test_floors_are_bounded_by_what_they_are_made_of() -> None:
    gpu, latency = floor.GPUS[0], 2e-6
    for shape in SHAPES:
        for cell in MODULES:
            for dtype, e in floor.BYTES.items():
                layer = Layer(cell, shape, e)
                works = [work for part in count.alternating(layer) for work in part]
                least = floor.floor("alternating", layer, gpu, dtype, latency)
                assert least >= latency * sum(work.times for work in works) * (1 - 1e-12)
                assert least >= sum(work.times * work.flops for work in works) / gpu.peak[dtype]
                assert floor.floor("alternating", layer, gpu, dtype, 2 * latency) <= 2 * least
                held = floor.persistent(layer, gpu, dtype, latency)
                assert held is None or held < least
    tiny = count.Work("k", False, 3, 0, 10, 10)
    assert floor.seconds(tiny, gpu, "float32", latency, 1e12) == 3 * latency
    large = count.Work("k", False, 1, 0, 1555e9, 1555e9)
    assert floor.seconds(large, gpu, "float32", latency, 1e12) == 1
    assert floor.seconds(large, gpu, "float32", latency, 1e6) == latency  # it never leaves L2
    weight = count.Work("U h", True, 1, 0, 0, 0, weight=gpu.l2)
    assert floor.seconds(weight, gpu, "float32", latency, 1e6) == pytest.approx(gpu.l2 / gpu.bandwidth)


def test_the_page_is_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["floor"]) == 0
    printed = capsys.readouterr().out.strip()
    inside = PAGE.read_text().split(floor.BEGIN)[1].split(floor.END)[0].strip()
    assert inside == printed, "out of date: python -m bench floor docs/gpu.md"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{floor.BEGIN}\nold\n{floor.END}\nafter\n")
    assert main(["floor", str(page), "--shapes", "small", "--cells", "GRU", "--dtypes", "bfloat16"]) == 0
    assert "old" not in page.read_text() and "| GRU | small" in page.read_text()
    assert "LSTM" not in page.read_text() and "float32" not in page.read_text()
