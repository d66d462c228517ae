"""The bench: that it compares like with like, that its statistics are what they are called, and that all of it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import library, ops
from fused_rnn_dropout.bench import __main__ as bench_main
from fused_rnn_dropout.bench import (
    baselines,
    call,
    criteria,
    dtypes,
    gpu,
    machine,
    memory,
    onnx_runtime,
    paths,
    report,
    run,
    sites,
)
from fused_rnn_dropout.bench.__main__ import main
from fused_rnn_dropout.bench.contenders import BY_NAME, CONTENDERS, RATES, contenders_of, rates_of, runner
from fused_rnn_dropout.bench.loops import Loop, WeightDrop
from fused_rnn_dropout.bench.measure import FEWEST, FEWEST_SLOW, Effort, Interval, median_of, paired, ratio_of
from fused_rnn_dropout.bench.profile import profile
from fused_rnn_dropout.bench.shapes import QUICK, SHAPES, Shape
from fused_rnn_dropout.cells import MODULES

ROOT = Path(__file__).resolve().parents[2]
SHAPE = Shape("tiny", 5, 3, 4, 6, "small", "")


# --------------------------------------------------------------------------------------------------------------------
# Like with like
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("cell", MODULES)
def test_the_loop_is_the_layer(cell: str, careful: bool) -> None:
    """Without sites, and in eval with them but zoneout, the loop computes what torch does."""
    rnn = getattr(nn, cell)(4, 6).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for rates in ({}, {name: rate for name, rate in RATES.items() if not name.startswith("zoneout")}):
        loop = Loop(cell, 4, 6, rates, careful=careful).double().train(not rates)
        loop.load_state_dict(rnn.state_dict())
        torch.testing.assert_close(loop(x)[0], rnn(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(RATES))
def test_every_site_of_the_loop_acts(name: str) -> None:
    for cell in MODULES:
        if name in rates_of(cell):
            loop = Loop(cell, 4, 6, {name: 0.5})
            x = torch.randn(5, 3, 4)
            assert not torch.equal(loop(x)[0], loop(x)[0])


def test_the_loop_keeps_the_old_state_at_rate_one() -> None:
    loop = Loop("LSTM", 4, 6, {"zoneout_h": 1.0, "zoneout_c": 1.0})
    assert torch.equal(loop(torch.randn(5, 3, 4))[0], torch.zeros(5, 3, 6))


def test_weight_drop_is_torchs_module_with_dropped_weights() -> None:
    rnn = nn.LSTM(4, 6)
    wrapped = WeightDrop(nn.LSTM(4, 6), 0.5)
    with torch.no_grad():
        wrapped.raw.copy_(rnn.weight_hh_l0)
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            wrapped.rnn.get_parameter(name).copy_(rnn.get_parameter(name))
    x = torch.randn(5, 3, 4)
    assert torch.equal(wrapped.eval()(x)[0], rnn(x)[0])
    out = wrapped.train()(x)[0]
    assert not torch.equal(out, rnn(x)[0])
    out.sum().backward()
    dropped = wrapped.rnn.weight_hh_l0 == 0
    assert dropped.any()
    assert wrapped.raw.grad is not None
    assert (wrapped.raw.grad[dropped] == 0).all()


def test_all_contenders_have_every_site_of_one_layer() -> None:
    ours = BY_NAME["all"].build("LSTM", SHAPE)
    assert dict.fromkeys(ours.sites) == dict.fromkeys(name for name in ours.sites if name in RATES)
    assert set(ours.sites) == set(RATES)


@pytest.mark.parametrize("task", ["train", "forward", "eval"])
@pytest.mark.parametrize("name", [c.name for c in CONTENDERS if not c.compiles and c.package is None])
def test_every_contender_runs(name: str, task: str) -> None:
    for cell in MODULES:
        runner(BY_NAME[name].build(cell, SHAPE), SHAPE, task)()


# --------------------------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------------------------


def test_paired_rounds_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = paired(runs, slow=["c"], rounds=FEWEST + 2)
    assert order[:6] == list("abcabc")  # first calls, then a warm-up
    rounds = order[6:]
    assert rounds[:6] == list("abccba")
    assert rounds[-4:] == ["b", "a", "a", "b"] if FEWEST % 2 else ["a", "b", "b", "a"]
    assert [len(timings.rounds[name]) for name in "abc"] == [FEWEST + 2, FEWEST + 2, FEWEST]


def test_a_contender_that_takes_long_takes_part_in_few_rounds() -> None:
    calls: list[str] = []
    runs = {"quick": lambda: calls.append("quick"), "long": lambda: torch.randn(200_000).sort()}
    timings = paired(runs, slow=["long"], rounds=6, budget=1e-6)
    assert [len(timings.rounds[name]) for name in runs] == [6, FEWEST_SLOW]


def test_ratio_of_medians() -> None:
    assert ratio_of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value == 2.0
    assert ratio_of([2.0, 4.0, 100.0], [1.0, 2.0]).value == 3.0 / 1.5  # only rounds in which both took part
    value = median_of([1.0, 2.0, 3.0, 4.0, 50.0])
    assert value.value == 3.0
    assert 1.0 <= value.low <= 3.0 <= value.high <= 50.0
    steady = ratio_of([2.0] * 9, [1.0] * 9)
    assert steady == (2.0, 2.0, 2.0)


def _results(train: dict[str, list[float]], shape: Shape, cell: str = "LSTM") -> dict:
    return {
        "shapes": [shape._asdict()],
        "timings": [{"cell": cell, "shape": shape.name, "task": "train", "first": train, "rounds": train}],
        "memory": [{"cell": cell, "shape": shape.name, "contender": name, "mib": 10.0} for name in train],
        "sgemm": {"best": 100.0},
    }


def test_criteria_say_what_is_missed_and_by_how_much() -> None:
    shape = next(s for s in SHAPES if s.name == "wide")
    found = {
        (v.criterion.meaning, v.cell): v
        for v in criteria.verdicts(_results({"all": [1.2] * 5, "torch": [1.0] * 5, "none": [1.0] * 5}, shape))
    }
    every = found["every site / nn.LSTM without, train", "LSTM"]
    assert not every.met
    assert str(every) == "missed by 0.100"
    assert found["ours without / nn.LSTM without, train", "LSTM"].met
    share = found["share of the sgemm rate, train", "LSTM"]
    assert share.value.value == pytest.approx(shape.flops("LSTM", "train") / 1.2 / 100e9)
    assert found["peak memory, every site / torch", "LSTM"].met


def test_flops_are_those_of_the_products() -> None:
    # 5 * 3 rows, (4 + 6) columns of each of 4 * 6 gates, a multiplication and an addition each.
    assert SHAPE.flops("LSTM", "eval") == 2 * 15 * 10 * 24
    assert SHAPE.flops("GRU", "train") == 3 * 2 * 15 * 10 * 18
    packed = next(s for s in SHAPES if s.kind == "packed")
    lengths = packed.lengths()
    assert lengths is not None
    assert lengths == sorted(lengths, reverse=True)
    assert packed.useful() == sum(lengths) / (packed.steps * packed.batch)


# --------------------------------------------------------------------------------------------------------------------
# Devices and dtypes
# --------------------------------------------------------------------------------------------------------------------


def test_contenders_of_a_device() -> None:
    assert contenders_of("cpu") == CONTENDERS
    on_gpu = {contender.name: contender for contender in contenders_of("cuda")}
    assert (
        set(on_gpu)
        == set(BY_NAME)
        == {c.name for c in CONTENDERS}
        | {f"triton-{name}" for name in ("none", "weights", "all", "recompute")}
        | {f"torch-{name}" for name in ("flattened", "unflattened", "float16")}
    )
    for name, backend in (("all", "cuda"), ("triton-all", "triton")):
        rnn = on_gpu[name].build("LSTM", SHAPE)
        assert (rnn.backend, set(rnn.sites)) == (backend, set(RATES))
    assert on_gpu["recompute"].build("GRU", SHAPE).recompute
    assert on_gpu["weights"].build("GRU", SHAPE).sites.keys() == {"input_dropout", "weight_dropout", "output_dropout"}
    assert not on_gpu["none"].build("LSTM", SHAPE).sites
    assert {name for name, contender in on_gpu.items() if contender.graph} >= {"torch", "all", "triton-all"}


def test_a_backend_that_is_not_there_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    every = next(contender for contender in contenders_of("cuda") if contender.name == "all")
    monkeypatch.setattr(library, "_no_cuda", "no kernels here")
    assert every.missing(False, "cpu") == 'backend="cuda": no kernels here'


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("command", [[], ["--quick", "--dtype", "bfloat16"]], ids=["all", "quick"])
def test_a_device_that_is_not_there(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "none.json"
    assert main([*command, "--device", "cuda", "--output", str(output)]) == 1
    assert capsys.readouterr().err.startswith("error: --device cuda: there is no CUDA device here")
    assert not output.exists()


def test_options_of_another_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--contenders", "all,triton-all"]) == 1
    assert "--contenders triton-all: not on --device cpu" in capsys.readouterr().err
    assert main(["--tf32"]) == 1
    assert "--tf32 is about float32 products on cuda" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_everybody_computes_in_the_dtype_that_is_asked_for(dtype: torch.dtype) -> None:
    seen = []
    for contender in CONTENDERS:
        if contender.missing(compiled=False) is None:
            module = contender.build("GRU", SHAPE)
            module.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out[0].dtype)))
            runner(module, SHAPE, "train", dtype=dtype)()
    assert len(seen) > 5 and set(seen) == {(dtype, dtype)}


def test_a_run_in_another_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "half.json"
    command = ["--quick", "--rounds", "2", "--dtype", "bfloat16", "--tasks", "train", "--contenders", "torch,all"]
    assert main([*command, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert (results["device"], results["dtype"]) == ("cpu", "bfloat16")
    assert not list(criteria.verdicts(results))
    assert "none is judged here" in capsys.readouterr().out
    assert "Products in bfloat16" in report.report(results)


def test_without_matplotlib_all_but_plots_is_there(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('made up')")
    found = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = tmp_path / "results.json"

    def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench", *arguments]
        env = {**os.environ, "PYTHONPATH": found}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    few = ("--rounds", "2", "--cells", "GRU", "--tasks", "train", "--contenders", "torch,all")
    done = bench("--quick", *few, "--no-memory", "--no-scaling", "--output", output)
    assert done.returncode == 0 and output.exists(), done.stderr
    assert bench("report", output).returncode == 0
    done = bench("report", output, "--plots", tmp_path / "plots")
    assert done.returncode == 1 and "error: plots need matplotlib: pip" in done.stderr


def test_a_contender_that_fails_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def fails() -> None:
        raise RuntimeError("no room\nfor more")

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    runs, first, failed = gpu.working({"good": lambda: int, "bad": lambda: fails, "unmade": fails}, lambda _: None)  # type: ignore[dict-item,return-value]
    assert list(runs) == list(first) == ["good"]
    assert failed == {"bad": "RuntimeError: no room", "unmade": "RuntimeError: no room"}

    def dead() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    monkeypatch.setattr(torch.accelerator, "synchronize", dead)
    with pytest.raises(gpu.DeviceLost, match="does not answer after good"):
        gpu.working({"good": lambda: int}, lambda _: None)  # type: ignore[dict-item,return-value]


def made_up_gpu_results() -> dict:
    """A result as a machine with a GPU would write it. Its numbers are round ones: nobody measured them."""
    results = _results({"torch": [1e-3] * 5, "all": [2e-3] * 5, "triton-all": [3e-3] * 5}, SHAPES[0])
    train = results["timings"][0]
    train |= {"first": dict.fromkeys(train["rounds"], 1e-3), "failed": {"recompute": "RuntimeError: no room"}}
    results["timings"].append({**train, "task": "graph", "rounds": {"all": [1e-3] * 5}, "failed": {}})
    results["timings"].append({**train, "cell": "GRU", "rounds": {}, "failed": {"torch": "RuntimeError: none"}})
    results |= {"device": "cuda", "dtype": "float32", "skipped": {"fastai": "the package fastai is not installed"}}
    results["limits"] = {"copy_gb_s": 1000.0, "launch_s": {"one by one": 4e-6, "in a graph": 2e-6}}
    results["environment"] = {
        "command": "python -m bench --device cuda", "processor": "made up", "cores": 1, "caches": {}, "threads": 1,
        "instruction_set": "none", "torch": "0", "python": "0", "fused_rnn_dropout": "0", "date": "2000-01-01",
        "gpu": {
            "name": "Made-up GPU", "capability": "0.0", "multiprocessors": 7, "memory_mib": 1, "l2_mib": 1.0,
            "cuda": "0", "cudnn": 0, "tf32": False, "backends": {"cuda": "there", "triton": "not installed"},
            "clocks.sm": "1 MHz", "driver_version": "0.0",
        },
    }  # fmt: skip
    return results


def test_report_of_a_gpu() -> None:
    text = report.report(made_up_gpu_results())
    for part in (
        "Made-up GPU, compute capability 0.0, 7 multiprocessors",
        "triton: not installed",
        "copies 1000 GB/s, a launch 4.0 us one by one and 2.0 us in a graph",
        "- LSTM awd train, recompute: RuntimeError: no room",
        "- GRU awd train, torch: RuntimeError: none",
        "Nobody ran.",
        "## Forward and backward, replayed as a CUDA graph",
        "| ours on Triton, every site",
        "none is judged here",
    ):
        assert part in text, part
    assert "none is judged here" in report.summary(made_up_gpu_results())


def test_the_way_of_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of the device: what is asked of whom, and what comes into the record."""
    made_up = made_up_gpu_results()
    graphs: list[Any] = []
    products: list[Any] = []

    def launched(call: Any) -> dict:
        call()
        return paths.count([event("RNN_blockPersist_fp_GRU"), event("nvjet_hsh"), event("nvjet_hsh")])

    def on_the_cpu(settings: run.Settings, contender: Any, cell: str, shape: Shape, task: str, **kwargs: Any) -> Any:
        if contender.name == "careful-loop":
            raise RuntimeError("no room")
        dtype = run.DTYPES[contender.dtype or settings.dtype]
        return runner(contender.build(cell, shape), shape, task, dtype=dtype, **kwargs)

    monkeypatch.setattr(run.Settings, "runner", on_the_cpu)
    monkeypatch.setattr(run.Settings, "module", lambda _, contender, cell, shape: contender.build(cell, shape))
    monkeypatch.setattr(run, "sgemm", lambda *_, **__: {"best": 1.0, "products": {}})
    monkeypatch.setattr(gpu, "check", lambda _: None)
    monkeypatch.setattr(gpu, "products", lambda *asked: products.append(asked))
    monkeypatch.setattr(paths, "launched", launched)
    monkeypatch.setattr(gpu, "environment", lambda: made_up["environment"]["gpu"])
    monkeypatch.setattr(gpu, "limits", lambda: made_up["limits"])
    monkeypatch.setattr(gpu, "graphed", lambda run: graphs.append(run) or run)
    monkeypatch.setattr(gpu, "peak_mib", lambda run: run() or 7.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(library, "obstacle", lambda backend, device: "not in this test")
    output = tmp_path / "gpu.json"
    command = ["--quick", "--rounds", "2", "--device", "cuda", "--dtype", "bfloat16", "--output", str(output)]
    assert main(command) == 0
    results = json.loads(output.read_text())
    assert {"all", "triton-all", "compiled"} <= set(results["skipped"])
    assert products == [("bfloat16", False)] and results["complete"]
    by_task = {(e["cell"], e["shape"], e["task"]): e for e in results["timings"]}
    assert {task for _, _, task in by_task} == {"train", "forward", "eval", "graph"}
    train, graph = (by_task["GRU", "quick", task] for task in ("train", "graph"))
    assert {"torch", "loop"} <= set(train["rounds"]) == set(train["first"])
    assert train["failed"] == graph["failed"] == {"careful-loop": "RuntimeError: no room"}
    torchs = {"torch", "torch-flattened", "torch-float16"}
    assert set(graph["rounds"]) == torchs and len(graphs) == len(torchs) * len(MODULES)  # the padded shape
    assert results["skipped"]["torch-unflattened"] == "torch never flattens weights in bfloat16"
    assert {(e["contender"], e["mib"]) for e in results["memory"]} == {("torch", 7.0)}
    text = report.report(results)
    assert "- GRU quick train, careful-loop: RuntimeError: no room" in text
    kernels = {(e["cell"], e["shape"], e["contender"]): e for e in results["kernels"]}
    assert kernels["LSTM", "quick", "torch"]["path"] == "cuDNN, persistent"
    assert kernels["LSTM", "quick", "torch"]["kernels"]["product"] == {"nvjet_hsh": 2}
    assert kernels["GRU", "quick", "careful-loop"]["unknown"] == "RuntimeError: no room"
    assert kernels["GRU", "quick-packed", "torch"]["one_piece"] is False  # as on any CPU
    assert "## Kernels of a forward and backward" in text and "cuDNN, persistent" in text and "apart" in text


def event(name: str, device: Any = torch.autograd.DeviceType.CUDA) -> Any:
    """As torch's profiler has them."""
    return SimpleNamespace(name=name, device_type=device)


NAMES = {
    "void RNN_blockPersist_fp_LSTM<__half, __half, float, 1, 2>(...)": "persistent",
    "PersistentRnnForward": "persistent",
    "cudnn::rnn::persistRNN_bp": "persistent",
    "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_persistent_kernel": "product",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>": "product",
    "nvjet_sm90_hsh_64x8_64x16_4x1_v_bz_TNT": "product",
    "void LSTM_elementWise_fp<float, float, float>(...)": "step",
    "void elemWiseRNNcell<__half, __half, float, (cudnnRNNMode_t)2>(...)": "step",
    "void frd::cuda::(anonymous namespace)::forward_step_kernel<frd::Lstm<...>, 4, float>(...)": "step",
    "void frd::cuda::(anonymous namespace)::project_step_kernel<4, float>(...)": "step",
    "void at::native::(anonymous namespace)::kernel::lstm_cell_forward<float, float, int, 1>(...)": "torch's own cell",
    "void at::native::(anonymous namespace)::kernel::gru_cell_backward<float, float, int, 1>(...)": "torch's own cell",
    "Memcpy DtoD (Device -> Device)": "copy",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_grouped_by_their_names(name: str) -> None:
    assert paths.count([event(name), event(name), event("aten::lstm", torch.autograd.DeviceType.CPU)]) == {
        NAMES[name]: {name: 2}
    }


def test_which_way_a_layer_of_torchs_took() -> None:
    product, step = event("sgemm"), event("LSTM_elementWise_fp")
    own = event("at::native::kernel::lstm_cell_forward")
    for events, path in (
        ([product, step, event("RNN_blockPersist_fp_LSTM")], "cuDNN, persistent"),
        ([product, step], "cuDNN, step by step"),
        ([product, own], "torch's own kernels, not cuDNN"),
        ([product], "no kernel of an RNN was seen"),
        ([], "no kernel of an RNN was seen"),
    ):
        assert paths.path_of(paths.count(events)) == path


def test_the_profilers_events_are_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: that the profiler runs, and that its events are of the kind that the fakes above are."""
    seen: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(paths, "count", lambda events: seen.extend(events) or {})
    rnn = nn.LSTM(4, 6)
    paths.launched(lambda: rnn(torch.randn(5, 3, 4)))
    of_the_host = [event.name for event in seen if event.device_type == torch.autograd.DeviceType.CPU]
    assert "aten::lstm" in of_the_host


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cudnn_is_kept_from_tf32_in_float32_alone(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", dtype == "float32")  # the wrong one
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32  # monkeypatch cannot put it back: it would delete what the object makes up
    try:
        gpu.products(dtype, False)
        assert torch.backends.cudnn.allow_tf32 == (dtype != "float32")
        assert not matmul.allow_tf32
        if dtype == "float32":
            gpu.products(dtype, True)
            assert torch.backends.cudnn.allow_tf32 and matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_baselines_of_torch_by_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone gets the one that torch does not give by itself; float16 stands beside bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torchs = [c for c in contenders_of("cuda") if c.name.startswith("torch")]
    assert [c.name for c in torchs][0] == "torch"
    for dtype, wanted in (
        ("float32", {"torch", "torch-unflattened"}),
        ("float16", {"torch", "torch-unflattened"}),
        ("bfloat16", {"torch", "torch-flattened", "torch-float16"}),
    ):
        assert {c.name for c in torchs if c.missing(False, "cuda", dtype) is None} == wanted
    assert all(c.missing(False, "cuda", "bfloat16") or c.name != "torch-unflattened" for c in torchs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj_size": 3, "bidirectional": True, "num_layers": 2}])
def test_flattening_asks_for_what_torchs_modules_ask_for(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    rnn = nn.LSTM(4, 6, **options)
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: calls.append(args))
    monkeypatch.setattr(baselines.cudnn_rnn, "get_cudnn_mode", {"LSTM": 2}.get)  # torch for a CPU has no numbers
    baselines.flatten(rnn)
    each = (4 if options.get("bias", True) else 2) + (1 if options.get("proj_size") else 0)
    ((weights, *others),) = calls
    assert all(given is own for given, own in zip(weights, rnn.parameters(), strict=True))
    layers, both = options.get("num_layers", 1), options.get("bidirectional", False)
    assert others == [each, 4, 2, 6, options.get("proj_size", 0), layers, False, both]  # 2: cuDNN's number of an LSTM


def test_weights_in_one_piece_or_apart() -> None:
    rnn = nn.GRU(4, 6)
    whole = torch.cat([weight.data.flatten() for weight in rnn.parameters()])
    for weight, piece in zip(rnn.parameters(), whole.split([w.numel() for w in rnn.parameters()]), strict=True):
        weight.data = piece.view_as(weight)
    x = torch.randn(5, 3, 4)
    before = rnn(x)[0]
    assert baselines.in_one_piece(rnn)
    arranged = baselines.Arranged(rnn, baselines.scatter)
    assert arranged.to(torch.float32)(x)[0].equal(before) and baselines.in_one_piece(rnn)  # only on a GPU
    baselines.scatter(rnn)
    assert not baselines.in_one_piece(rnn)
    assert arranged(x)[0].equal(before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quick_run_on_a_gpu(dtype: str, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert main(["--quick", "--rounds", "2", "--device", "cuda", "--dtype", dtype, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert not report.failures(results)
    assert {entry["task"] for entry in results["timings"]} == {"train", "forward", "eval", "graph"}
    assert all(min(seconds) > 0 for entry in results["timings"] for seconds in entry["rounds"].values())
    assert {"torch", "all"} <= set(results["timings"][0]["rounds"])
    assert all(entry["mib"] > 0 for entry in results["memory"]) and results["memory"]
    assert results["limits"]["copy_gb_s"] > 0
    assert results["environment"]["gpu"]["multiprocessors"] > 0
    pieces = {e["contender"]: e["one_piece"] for e in results["kernels"] if "one_piece" in e}
    assert pieces["torch"] == (dtype != "bfloat16") and not pieces.get("torch-unflattened")
    assert pieces.get("torch-flattened", True)


# --------------------------------------------------------------------------------------------------------------------
# All of it
# --------------------------------------------------------------------------------------------------------------------


def cells_of(page: Path) -> dict[tuple[str, str, str], str]:
    """What stands in a page's tables, by cell, shape and column."""
    found = {}
    inside = page.read_text("utf-8").split(report.BEGIN)[1].split(report.END)[0]
    for text in re.findall(r"(?:^\|.*\n)+", inside, re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
        found.update({(row[0], row[1], name): value for row in rows for name, value in zip(head, row, strict=True)})
    return found


def disagreements(readme: Path, page: Path) -> list[tuple[str, str, str]]:
    """Figures of the first page that the second has not, or has otherwise."""
    short, whole = cells_of(readme), cells_of(page)
    assert short
    return [place for place, value in short.items() if whole.get(place, "") != value]  # blank: not measured there


def test_the_readme_shows_figures_of_the_benchmarks():
    assert not disagreements(ROOT / "README.md", ROOT / "docs" / "benchmarks.md")


def test_quick_run_report_and_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output, readme, page = tmp_path / "results.json", tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"
    assert main(["--quick", "--rounds", "2", "--output", str(output)]) == 0
    capsys.readouterr()
    results = json.loads(output.read_text())
    assert {entry["task"] for entry in results["timings"]} == {"train", "forward", "eval", "scaling"}
    assert "compiled" in results["skipped"]
    rounds = results["timings"][0]["rounds"]
    assert all(len(rounds[name]) == 2 and min(rounds[name]) > 0 for name in ("torch", "all", "loop"))
    assert all(entry["mib"] > 0 for entry in results["memory"])

    # Resumed: what is there stays as it is, what is missing is measured.
    removed, kept = results["timings"].pop(), results["timings"]
    gone = results["memory"].pop()
    output.write_text(json.dumps(results))
    assert main(["--quick", "--rounds", "2", "--output", str(output), "--resume"]) == 0
    resumed = json.loads(output.read_text())
    assert resumed["timings"][:-1] == kept
    assert resumed["timings"][-1]["task"] == removed["task"]
    assert resumed["timings"][-1]["rounds"] != removed["rounds"]
    assert [entry["contender"] for entry in resumed["memory"]][-1] == gone["contender"]
    assert main(["--quick", "--threads", "1", "--output", str(output), "--resume"]) == 1
    assert "measured with threads 2, not 1" in capsys.readouterr().err

    assert main(["report", str(output), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert "packed / padded times useful fraction" in printed
    assert "that loop over x.unbind()" in printed
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"ratios.png", "memory.png"}

    page.parent.mkdir()
    for file in (readme, page):
        file.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert main(["pages", str(output), str(tmp_path)]) == 0
    for file in (readme, page):
        text = file.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert "| LSTM | quick" in text
    assert not disagreements(readme, page) and len(readme.read_text()) < len(page.read_text())
    page.write_text("no markers")
    assert main(["pages", str(output), str(tmp_path)]) == 1
    assert page.read_text() == "no markers"


@pytest.mark.parametrize("memory", [[], ["--no-memory"]])
def test_ctrl_c_keeps_what_was_measured(
    memory: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And --resume goes on from there: what was measured is not measured again."""
    output = tmp_path / "results.json"
    command = ["--quick", "--rounds", "2", "--cells", "GRU", "--tasks", "train,eval", "--contenders", "torch,all"]
    command += ["--output", str(output), "--no-scaling", *memory]
    measured, group = [], run._group

    def interrupted(at: int) -> None:
        def measure(settings: run.Settings, cell: str, shape: Shape, task: str, tick: Any) -> dict[str, Any]:
            if len(measured) == at:
                raise KeyboardInterrupt
            measured.append((shape.name, task))
            return group(settings, cell, shape, task, tick)

        monkeypatch.setattr(run, "_group", measure)

    interrupted(0)
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("python -m bench: interrupted; no group was done yet\n")
    assert not output.exists()
    interrupted(2)
    assert main(command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    count = 4 if memory else 6
    assert (
        f"interrupted; {2 if memory else 3} of {count} groups are in {output}, and the same command with --resume"
        in last
    )
    earlier = json.loads(output.read_text())
    interrupted(-1)
    assert main([*command, "--resume"]) == 0
    assert len(measured) == len(set(measured)) == 4
    assert json.loads(output.read_text())["timings"][:2] == earlier["timings"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_ctrl_c_while_it_writes_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "results.json"
    command = ["--quick", "--rounds", "2", "--cells", "GRU", "--tasks", "train", "--contenders", "torch,all"]
    command += ["--output", str(output), "--no-scaling", "--no-memory"]
    assert main(command) == 0
    before, write = output.read_text(), Path.write_text

    def half(path: Path, text: str) -> int:
        write(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    assert main(command) == 130
    assert output.read_text() == before


def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    """All processes of a terminal hear of it, in a run that has just begun to measure."""
    output = tmp_path / "results.json"
    command = ["-m", "bench", "--quick", "--budget", "60", "--rounds", "1000", "--output", str(output)]
    started = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    assert started.stderr is not None
    assert started.stderr.readline().startswith("[1/")
    os.killpg(started.pid, signal.SIGINT)
    printed = started.stderr.read()
    assert started.wait(60) == 130
    assert printed == "\npython -m bench: interrupted; no group was done yet\n"
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_an_error_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "sgemm", lambda *_, **__: pytest.fail("it has begun to measure"))
    for output in (tmp_path, tmp_path / "no" / "such.json"):
        assert main(["--quick", "--output", str(output)]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"fused_rnn_dropout {frd.__version__}\n"


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shapes", "huge"])
    assert "there is no shape huge; allowed are" in capsys.readouterr().err
    assert main(["--rounds", "1"]) == 1
    assert "--rounds at least 2" in capsys.readouterr().err


@pytest.mark.skipif(not memory.available(), reason="needs Linux's high-water mark of resident memory")
def test_memory_is_that_of_one_call() -> None:
    """The gates, cells and gradients of a layer whose sizes are known; nothing that does not depend on the steps."""
    shape = Shape("long", 400, 32, 64, 64, "small", "")
    rows = shape.steps * shape.batch
    least = 4 * rows * (4 + 1 + 1) * shape.units / 2**20  # gates, c, h
    found = memory.in_process("LSTM", shape, "none", 1)
    again = memory.in_process("LSTM", shape, "recompute", 1)
    assert least < found < 3 * least
    assert again < found


def row_of_sites(shape: Shape, one: float, every: float) -> sites.Row:
    over = {name: Interval(value, value - 0.01, value + 0.01) for name, value in (("a", one), ("every site", every))}
    return sites.Row("LSTM", shape, 9, Interval(0.5, 0.4, 0.6), over)


def test_what_sites_cost_has_a_bar_by_shape() -> None:
    large, small, other = (next(s for s in SHAPES if s.name == name) for name in ("zaremba", "small", "hydrology"))
    assert [bar and bar.most for bar in map(sites.Bar.of, (large, small, other))] == [1.04, 1.07, None]
    assert not list(row_of_sites(large, 1.034, 1.04).missed())
    assert list(row_of_sites(large, 1.03, 1.05).missed()) == ["LSTM zaremba, every site: 1.05 (1.04-1.06), above 1.04"]
    assert list(row_of_sites(small, 1.04, 1.07).missed()) == ["LSTM small, a: 1.04 (1.03-1.05), above 1.03"]
    assert not list(row_of_sites(other, 1.03, 9.0).missed())
    text = sites.text_of([row_of_sites(large, 1.03, 1.05)], 2, "the command")
    assert "| LSTM | zaremba | 35, 20, 650, 650 | 9      | 500         | 1.03 (1.02-1.04) | 1.05 (1.04-1.06)" in text
    assert "Missed:\n\n- LSTM zaremba, every site" in text and text.endswith("Made by `the command`.")
    assert "All are met." in sites.text_of([row_of_sites(large, 1.0, 1.0)], 2, "the command")


def test_what_sites_cost_is_measured_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_main, "SHAPES", (Shape("tiny", 5, 3, 4, 6, "small", ""),))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sites.BEGIN}\nold\n{sites.END}\nafter\n")
    command = ["sites", str(page), "--cells", "GRU", "--one", "zoneout_h", "--rounds", "2", "--threads", "1"]
    assert main(command) == 0, capsys.readouterr().err
    before, text, after = re.split(f"{sites.BEGIN}|{sites.END}", page.read_text())
    assert (before, after) == ("before\n", "\nafter\n") and "old" not in text
    head, _, row = [line for line in text.splitlines() if line.startswith("|")]
    assert head.split("|")[-3:-1] == [" zoneout_h / no site ", " every site / no site "] and " GRU | tiny " in row
    assert main(["sites", "--rounds", "1"]) == 1 and "--rounds at least 2" in capsys.readouterr().err


def row_of_dtypes(shape: Shape, train: float, eval: float, gain: float, memory: float | None) -> dtypes.Row:
    """With 0.5 seconds in float32."""
    ratios = (Interval(value, value - 0.01, value + 0.01) for value in (train, eval, gain))
    ours = {"float32": Interval(0.5, 0.4, 0.6), "bfloat16": Interval(0.5 / gain, 0.2, 0.3)}
    return dtypes.Row("GRU", shape, ours, *ratios, memory)


def test_what_bfloat16_reaches_has_bars() -> None:
    wide, small = (next(shape for shape in SHAPES if shape.name == name) for name in ("wide", "small"))
    # Half of what half a second of float32 takes, so that float32 is at 50 % of the peak and bfloat16 at 100 %.
    rates = {dtype: dtypes.Rates(2e-9 * wide.flops("GRU", "train") / 0.5, 100.0) for dtype in ("float32", "bfloat16")}
    fine = row_of_dtypes(wide, 0.80, 0.85, 2.0, 0.60)
    assert fine.share("float32", rates) == pytest.approx(0.5) and fine.share("bfloat16", rates) == pytest.approx(1.0)
    assert not list(fine.missed(rates))
    assert list(row_of_dtypes(wide, 0.81, 0.86, 1.44, 0.61).missed(rates)) == [
        "GRU wide, train / torch.nn: 0.81 (0.80-0.82), above 0.80",
        "GRU wide, eval / torch.nn: 0.86 (0.85-0.87), above 0.85",
        "GRU wide, float32 / bfloat16: 1.44 (1.43-1.45), below 1.45",
        "GRU wide, memory: 0.61, above 0.60",
        "GRU wide, share of the peak in bfloat16: 72 %, below 75 %",
    ]
    slow = row_of_dtypes(small, 0.5, 0.5, 1.0, None)  # of few units, which need not gain
    assert [text.split(":")[0] for text in slow.missed(rates)] == ["GRU small, share of the peak in float32"]
    unknown = {dtype: dtypes.Rates(None, 100.0) for dtype in rates}
    assert not list(slow.missed(unknown))
    text = dtypes.text_of([fine, slow], rates, 2, "the command")
    assert re.search(r"\| GRU \| wide .* 0\.80 \(0\.79-0\.81\) .* 50 % +\| 100 % +\| 0\.60 ", text)
    assert "Missed:\n\n- GRU small" in text and text.endswith("Made by `the command`.")
    assert re.search(r"\| float32 +\| +\| 100 ", dtypes.text_of([], unknown, 2, "the command"))


def test_dtypes_are_measured_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        bench_main, "SHAPES", (Shape("awd", 5, 3, 4, 6, "large", ""), Shape("other", 5, 3, 4, 6, "", ""))
    )
    page = tmp_path / "page.md"
    page.write_text(f"before\n{dtypes.BEGIN}\nold\n{dtypes.END}\nafter\n")
    command = ["dtypes", str(page), "--cells", "GRU", "--rounds", "2", "--threads", "1", "--no-memory"]
    assert main(command) == 0, capsys.readouterr().err
    before, text, after = re.split(f"{dtypes.BEGIN}|{dtypes.END}", page.read_text())
    assert (before, after) == ("before\n", "\nafter\n") and "old" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| GRU")]
    assert " awd " in row and re.search(r"\| float32 +\| \d+ +\| \d+ ", text)
    assert main(["dtypes", "--rounds", "1"]) == 1 and "--rounds at least 2" in capsys.readouterr().err


def test_the_peak_is_that_of_all_threads() -> None:
    """What a product reaches is below it; two threads do not wait for one another."""
    one, two = (machine.multiply_add_peak(torch.float32, threads, rounds=3) for threads in (1, 2))
    assert one is not None and two is not None and 0.1 < one < 10_000 and two > one / 2
    with pytest.raises(RuntimeError, match="rounds must be at least 1"):
        ops.cpu_multiply_adds(torch.float32, 0)
    with pytest.raises(RuntimeError, match="dtype must be float32 or"):
        ops.cpu_multiply_adds(torch.float64)


@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_multiply_adds_are_counted_and_none_is_left_out(isa: str) -> None:
    """Of twice as many rounds twice as many operations, in about twice the time."""
    in_use = ops.cpu_isa()
    try:
        ops.cpu_isa(isa)
        counts = []
        for rounds in (200_000, 400_000):
            operations, ns = min(
                (torch.ops.fused_rnn_dropout.cpu_multiply_adds(torch.float32, rounds) for _ in range(7)),
                key=lambda found: found[1],
            )
            counts.append(operations)
            assert operations % (2 * rounds) == 0
            # No core has more than 7 GHz and 64 of them a cycle: were products left out, it would seem so.
            assert operations / ns < 2 * 64 * 7
        assert counts[1] == 2 * counts[0]
    finally:
        ops.cpu_isa(in_use)


def one_step(units: int, ratio: float, onnx: float | None = None) -> call.Step:
    over, over_onnx = (found and Interval(found, found - 0.01, found + 0.01) for found in (ratio, onnx))
    times = Interval(3e-5, 0, 1), Interval(4e-5, 0, 1)
    return call.Step("GRU", "eval", call.one_step(units, 1), 9, *times, over, over_onnx)


def test_what_a_call_costs_has_a_bar() -> None:
    assert not list(one_step(32, 1.054).missed())
    assert list(one_step(32, 1.056).missed()) == ["GRU eval, H 32, B 1: 1.06 (1.05-1.07)"]
    assert not list(one_step(256, 1.0, 1.7).missed()) and not list(one_step(512, 1.0, 1.5).missed())
    assert list(one_step(512, 1.0, 1.7).missed()) == ["GRU eval, H 512, B 1, over ONNX Runtime: 1.70 (1.69-1.71)"]
    spent = {room: float(index) for index, room in enumerate((*call.ROOMS, "total", "torch.nn"))}
    text = call.text_of({("GRU", "train"): spent}, [one_step(32, 1.1), one_step(64, 0.9)], 1, "the command")
    assert re.search(r"\| GRU \| eval \| 32 \| 1 \| 30 +\| 40 +\| 1\.10 \(1\.09-1\.11\) \| +\|", text)
    assert "GRU forward, train" in text and text.endswith("Made by `the command`.")
    assert re.search(r"\| the whole call +\| 8.0 ", text)
    assert re.search(r"`csrc/cpu/`: arithmetic and masks +\| 7.0", text)
    assert "Missed:\n\n- GRU eval, H 32" in text and "H 64" not in text.split("Missed:")[1]
    assert "All are met." in call.text_of({}, [one_step(64, 0.9)], 1, "the command")


@pytest.mark.parametrize("task", call.TASKS)
def test_the_rooms_of_a_call_add_up(task: str) -> None:
    spent = call.rooms("GRU", task, rounds=20)
    assert list(spent) == [*call.ROOMS, "total", "torch.nn"]
    rooms = [spent[room] for room in call.ROOMS]
    assert sum(rooms) == pytest.approx(spent["total"], rel=1e-6)
    assert 0 < spent["kernel"] < spent["total"] / 3  # of 32 units
    assert spent["binding"] > 0


@pytest.mark.skipif(bool(onnx_runtime.missing()), reason=f"needs {', '.join(onnx_runtime.MODULES)}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_onnx_runtime_computes_the_step_that_is_timed_beside_ours(cell: str) -> None:
    rnn = getattr(frd, cell)(6, 5).eval()
    state = torch.randn(1, 2, 5)
    x, hx = torch.randn(1, 2, 6), (state, 2 * state) if cell == "LSTM" else state
    y, last = rnn(x, hx)
    want = y, *(last if cell == "LSTM" else (last,))
    for found, wanted in zip(onnx_runtime.call_of(rnn, x, hx)(), want, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted.detach(), rtol=1e-5, atol=1e-6)
    effort = Effort(threads=1, rounds=2)
    assert call.measure(cell, "train", call.one_step(8, 1), effort).over_onnx is None
    over = call.measure(cell, "eval", call.one_step(8, 1), effort).over_onnx
    assert over is not None and over.value > 0


def test_what_a_call_costs_is_measured_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{call.BEGIN}\nan old table\n{call.END}\nafter\n")
    command = ["call", str(page), "--cells", "GRU", "--units", "8", "--batches", "1,2", "--rounds", "3"]
    assert main(command) == 0, capsys.readouterr().err
    before, text, after = re.split(f"{call.BEGIN}|{call.END}", page.read_text())
    assert (before, after) == ("before\n", "\nafter\n") and "an old table" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| GRU")]
    assert rows == [["GRU", task, "8", batch] for task in call.TASKS for batch in ("1", "2")]
    assert main(["call", "--rounds", "1"]) == 1 and "--rounds at least 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["call", "--units", "0"])
    assert "argument --units: should be whole numbers from 1 on" in capsys.readouterr().err
    assert main(["profile", "--threads", "0"]) == 1 and "--threads should be at least 1" in capsys.readouterr().err


def test_profile_accounts_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ops.cpu_profile(True)
    rnn = BY_NAME["all"].build("LSTM", Shape("p", 20, 8, 64, 64, "small", ""))
    out = rnn(torch.randn(20, 8, 64, requires_grad=True))[0]
    out.sum().backward()
    phases = ops.cpu_profile(False)
    assert list(phases) == list(ops.PHASES)
    assert all(phases[name] > 0 for name in phases if name != "wait")
    assert all(seconds == 0 for seconds in ops.cpu_profile(False).values())  # read once
    rnn(torch.randn(20, 8, 64))
    assert all(seconds == 0 for seconds in ops.cpu_profile(False).values())  # off
    table = profile(("GRU",), QUICK[:1], "train", 1, rounds=1)
    assert "| GRU | quick | none " in table
    assert "recurrent product" in table
