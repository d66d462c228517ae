"""Builds the package with its GPU library against a CUDA build of torch, and checks all of it that needs no GPU.

    python tools/check_cuda_build.py [--torch VERSION]

A virtual environment with that torch is kept in build/cuda/, with the wheel (5.5 GB). In it, the library must load,
leave no C++ symbol of torch undefined, and have a kernel for every operator; whole modules must run forward on
FakeTensors of device cuda, and their operators backward, with the right shapes and dtypes; `explain` and `doctor` must
say what is there.
The CPU's results must be those of the interpreter that runs this script, which needs a torch and the dependencies.

Needs nvcc of torch's CUDA (CUDA_HOME or the PATH), a C++ compiler and nm.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from check_compat import ROOT, make_environment, run

FOLDER = ROOT / "build/cuda"
GIGABYTES = 9  # of the environment, and while pip unpacks it


# --------------------------------------------------------------------------------------------------------------------
# In the environment
# --------------------------------------------------------------------------------------------------------------------


def check_library() -> str:
    """Loads the GPU's library and looks at its operators; returns its file."""
    import torch

    import fused_rnn_dropout
    from fused_rnn_dropout import library

    assert torch.version.cuda is not None, f"torch {torch.__version__} is built without CUDA"
    assert library._no_cuda is None, library._no_cuda
    major = torch.version.cuda.split(".")[0]
    file = sys.modules[f"fused_rnn_dropout._cuda{major}"].__file__
    assert file and Path(file).parent == Path(fused_rnn_dropout.__file__).parent
    names = re.findall(r'^    "(\w+)\(', (ROOT / "csrc/bind/schemas.h").read_text(), re.MULTILINE)
    assert {"words", "dropout", "layer", "layer_forward", "layer_backward"} < set(names), names
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_rnn_dropout::{name}", "CUDA"), name
    print(f"{Path(file).name}: {len(names)} operators have a CUDA kernel: {', '.join(names)}")
    return file


def check_symbols(file: str) -> None:
    symbols = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", file], capture_output=True, text=True, check=True
    ).stdout
    torchs = [line.strip() for line in symbols.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
    assert "aoti_torch_" in symbols and not torchs, f"undefined C++ symbols of torch: {torchs}"
    print(f"{Path(file).name}: {Path(file).stat().st_size / 2**20:.2f} MiB, no C++ symbol of torch undefined")


STEPS, BATCH, INPUT, HIDDEN, LAYERS = 7, 3, 5, 8, 2
LENGTHS = (7, 4, 2)
EVERY_SITE = {
    "input_dropout": 0.4, "inter_layer_dropout": 0.3, "output_dropout": 0.2, "hidden_dropout": 0.25,
    "weight_dropout": 0.5, "update_dropout": 0.15, "zoneout_h": 0.05,
}  # fmt: skip
AROUND = {"weight_dropout": 0.5, "output_dropout": 0.2}


def check_fake(cell: str, dtype: Any, sites: dict[str, float], **options: Any) -> None:
    """One module, forward and backward: what a GPU would return, in shapes, dtypes and devices."""
    import torch

    import fused_rnn_dropout as frd

    rnn = getattr(frd, cell)(INPUT, HIDDEN, LAYERS, device="cuda", dtype=dtype, **sites, **options)
    x = torch.empty(STEPS, BATCH, INPUT, device="cuda", dtype=dtype, requires_grad=True)
    calls = record_calls()
    with calls:
        out, state = rnn(x)
    directions = 2 if options.get("bidirectional") else 1
    width = options.get("proj_size") or HIDDEN
    wanted = [(STEPS, BATCH, directions * width), (directions * LAYERS, BATCH, width)]
    results = [out, *(state if cell == "LSTM" else (state,))]
    if cell == "LSTM":
        wanted.append((directions * LAYERS, BATCH, HIDDEN))
    for result, shape in zip(results, wanted, strict=True):
        assert (tuple(result.shape), result.dtype, result.device.type) == (shape, dtype, "cuda"), (result, shape)
    assert len(calls.found) == LAYERS, calls.found
    for arguments, found in calls.found:
        check_fake_backward(arguments, found)
        check_fake_packed(arguments, found)


def check_fake_packed(arguments: tuple, padded: tuple) -> None:
    """The same call for a packed batch. A whole module would read the number of examples out of ``batch_sizes``, which
    hold no numbers here.
    """
    import torch

    from fused_rnn_dropout.layer_call import LayerCall

    call = LayerCall(*arguments)
    assert call.batch_sizes is None
    rows = sum(LENGTHS)
    call = call._replace(x=call.x.new_empty(rows, call.x.shape[-1]), batch_sizes=torch.empty(STEPS, dtype=torch.int64))
    found = torch.ops.fused_rnn_dropout.layer_forward(*call)
    (y, last, kept), (of_steps, last_padded, kept_padded) = found, padded
    assert (tuple(y.shape), y.dtype) == ((rows, of_steps.shape[-1]), of_steps.dtype), y
    assert [state.shape for state in last] == [state.shape for state in last_padded]
    for part, other in zip(kept, kept_padded, strict=True):
        shape = (rows, *other.shape[1:]) if other.dim() == 2 else tuple(other.shape)
        assert (tuple(part.shape), part.dtype) == (shape, other.dtype), part
    check_fake_backward(tuple(call), found)


def record_calls() -> Any:
    """A context that notes calls of the layers' forward in ``found``: arguments and results."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        found: list[tuple[tuple, tuple]]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func._schema.name.partition("::")[2] == "layer_forward":
                self.found.append((args, result))
            return result

    recorder = Recorder()
    recorder.found = []
    return recorder


def check_fake_backward(arguments: tuple, found: tuple) -> None:
    """The operator that a backward pass would call. autograd itself asks the driver for the device of a gradient, also
    of a FakeTensor's, so that it can run no backward here.
    """
    import torch

    from fused_rnn_dropout.layer_call import Kept, LayerCall

    call = LayerCall(*arguments)
    y, last, kept = found
    h_apart = Kept.of_each(kept)[0].states.dim() == 2
    dx, dstates, dweights = torch.ops.fused_rnn_dropout.layer_backward(
        torch.empty_like(y), [torch.empty_like(state) for state in last], *call, None if h_apart else y, kept,
        call.needs(True, [True] * len(call.weights)),
    )  # fmt: skip
    names = ("x", *["state"] * len(call.states), *call.weight_names * call.num_directions)
    for name, like, gradient in zip(names, call.differentiable, (dx, *dstates, *dweights), strict=True):
        assert gradient.device.type == "cuda", gradient
        shared = name == "b_hh" and not call.row.apart  # both biases have the gradient of b_ih
        shape = (0,) if shared else like.shape
        assert (gradient.shape, gradient.dtype) == (shape, like.dtype), (like, gradient)


def check_fakes() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    count = 0
    for cell in ("LSTM", "GRU", "RNN"):
        more: list[dict[str, Any]] = [{}, {"bidirectional": True}, {"recompute": True}, {"bias": False}]
        if cell == "LSTM":
            more += [{"proj_size": 4}, {"proj_size": 4, "bidirectional": True}]
        for options in more:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                for sites in (EVERY_SITE, AROUND):
                    with FakeTensorMode():
                        check_fake(cell, dtype, sites, **options)
                    count += 1
    print(f"{count} modules on FakeTensors of device cuda, and their layers' backward, padded and packed")


def check_words() -> None:
    """What the package says about itself."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    import fused_rnn_dropout as frd

    with FakeTensorMode():
        rnn = frd.LSTM(INPUT, HIDDEN, device="cuda", zoneout_h=0.1)
        told = frd.explain(rnn, torch.empty(STEPS, BATCH, INPUT, device="cuda"))
    assert told.backend == "cuda" and told.schedule.startswith("alternating"), told
    on_cpu = frd.explain(frd.LSTM(INPUT, HIDDEN, zoneout_h=0.1), torch.zeros(STEPS, BATCH, INPUT))
    assert on_cpu.backend == "cpu" and "cuda" in on_cpu.others["cuda"], on_cpu
    refusal = ""
    try:
        frd.LSTM(INPUT, HIDDEN, zoneout_h=0.1, backend="cuda")(torch.zeros(STEPS, BATCH, INPUT))
    except (ValueError, RuntimeError) as error:
        refusal = str(error)
    assert "cuda tensors" in refusal, refusal or "backend='cuda' took a CPU tensor"
    doctor = subprocess.run([sys.executable, "-m", "fused_rnn_dropout", "doctor"], capture_output=True, text=True)
    (line,) = re.findall(r"^backend cuda +(.*)$", doctor.stdout, re.MULTILINE)
    assert doctor.returncode == 0 and line.startswith("there") == torch.cuda.is_available(), doctor
    assert torch.cuda.is_available() or "no GPU" in line, line
    print(f"explain: {told.backend}, {told.schedule}\ndoctor: backend cuda {line}")


def check() -> None:
    file = check_library()
    check_symbols(file)
    check_fakes()
    check_words()


# --------------------------------------------------------------------------------------------------------------------
# Outside it
# --------------------------------------------------------------------------------------------------------------------


def environment(torch_version: str) -> Path:
    """The interpreter of an environment with that torch, made where it is not there yet."""
    folder = FOLDER / f"torch-{torch_version}"
    finished = folder / "finished"  # an installation that was cut off is made anew
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(FOLDER).free / 1e9
        if free < GIGABYTES:
            raise SystemExit(f"{FOLDER} has {free:.1f} GB left, an environment with torch needs {GIGABYTES}")
        make_environment(folder, torch_version, "setuptools>=77", "wheel", "ninja")
        finished.touch()
    return folder / "bin/python"


def build_wheel(python: Path) -> Path:
    """The wheel with the GPU's library. It has a build folder of its own: its parts must not get into other wheels."""
    wheels = FOLDER / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    shutil.rmtree(FOLDER / "bdist", ignore_errors=True)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # where torch looks for ninja
    command = (python, "setup.py", "-q", "build", "--build-base", FOLDER / "build", "bdist_wheel")
    options = ("--dist-dir", wheels, "--bdist-dir", FOLDER / "bdist")
    log = FOLDER / "build.log"
    with log.open("w") as output:
        try:
            run(*command, *options, cwd=ROOT, env={**os.environ, "FRD_CUDA": "1", "PATH": path},
                stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
        except subprocess.CalledProcessError:
            raise SystemExit(log.read_text()[-8000:]) from None
    (wheel,) = wheels.glob("*-cp310-abi3-*.whl")
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="2.14.1", metavar="VERSION", help="a CUDA build (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        check()
        return 0
    importlib.import_module("torch")  # the CPU's results are compared with this one's: say at once if it lacks

    def timed(what: str, start: float) -> None:
        print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

    start = time.monotonic()
    python = environment(options.torch)
    timed("environment", start)
    start = time.monotonic()
    wheel = build_wheel(python)
    timed("build", start)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(python, Path(__file__).resolve(), "--check", cwd=FOLDER, env=without)
    run(sys.executable, ROOT / "tools/check_compat.py", "--wheel", wheel, "--python", python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
