"""Checks that one built wheel gives the same results under other versions of torch and Python, without a rebuild.

    python tools/check_compat.py --torch 2.10.0 --torch 2.14.1     # a new virtual environment for each
    python tools/check_compat.py --python other/bin/python         # an environment that has a torch already

The interpreter that runs this script must have torch: its results are what the others are compared with. Masks must be
equal bit for bit, outputs, states and gradients within a tolerance derived from the dtype. Without --wheel, a wheel is
built first. Nothing is installed into the environments given: the wheel goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0x0123456789ABCDEF, -0x0FEDCBA987654321)
INPUT_SIZE, HIDDEN_SIZE, STEPS, BATCH = 11, 13, 9, 5  # odd, so that every vector loop has a rest
LENGTHS = (4, 9, 1, 7, 7)

SITES = {
    "input_dropout": 0.4,
    "inter_layer_dropout": 0.3,
    "output_dropout": 0.2,
    "hidden_dropout": 0.25,
    "weight_dropout": 0.5,
    "update_dropout": 0.15,
    "cell_dropout": 0.1,
    "zoneout_c": 0.1,
    "zoneout_h": 0.05,
}

# name: cell, dtype, constructor arguments, packed, training
CASES: dict[str, tuple[str, str, dict[str, Any], bool, bool]] = {
    "lstm fp32": ("LSTM", "float32", {"bidirectional": True}, False, True),
    "lstm fp32 packed": ("LSTM", "float32", {"bidirectional": True}, True, True),
    "lstm fp32 eval": ("LSTM", "float32", {}, False, False),
    "lstm fp64 proj": ("LSTM", "float64", {"proj_size": 6}, False, True),
    "lstm bf16": ("LSTM", "bfloat16", {}, False, True),
    "gru fp32": ("GRU", "float32", {"bidirectional": True}, False, True),
    "gru fp32 packed": ("GRU", "float32", {"bidirectional": True}, True, True),
    "gru fp64 eval": ("GRU", "float64", {}, False, False),
    "gru fp64": ("GRU", "float64", {"bias": False}, False, True),
    "gru fp16": ("GRU", "float16", {}, False, True),
}

# What a result may differ by, relative to the largest element of its tensor. fp32 and fp64: the rounding of some dozens
# of dependent operations, as the matrix products come from torch. Halves are computed in fp32 and rounded at the end of
# each layer, where a value near a tie may go either way and be carried on through the layers.
TOLERANCE = {
    "float64": 256 * 2.0**-53,
    "float32": 256 * 2.0**-24,
    "bfloat16": 8 * 2.0**-8,
    "float16": 8 * 2.0**-11,
}


# --------------------------------------------------------------------------------------------------------------------
# The computation: runs in each environment
# --------------------------------------------------------------------------------------------------------------------


def values(shape: tuple[int, ...], dtype: torch.dtype, salt: int) -> torch.Tensor:
    """Numbers in (-1/4, 1/4) that are exact in every dtype, so that no version's random numbers or sine can differ."""
    import torch

    count = int(np.prod(shape))
    numbers = (np.arange(count) * (2 * salt + 37) % 127 - 63) / 256
    return torch.from_numpy(numbers).reshape(shape).to(dtype)


def run_case(cell: str, dtype_name: str, options: dict[str, Any], packed: bool, training: bool) -> tuple[dict, dict]:
    """Masks and results (outputs, states, gradients) of one case, by name."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    import fused_rnn_dropout as frd

    dtype = getattr(torch, dtype_name)
    sites = {name: rate for name, rate in SITES.items() if cell == "LSTM" or name != "zoneout_c"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that zoneout_c and cell_dropout are seldom used together
        rnn = getattr(frd, cell)(INPUT_SIZE, HIDDEN_SIZE, num_layers=2, dtype=dtype, **sites, **options)
    rnn.train(training)
    with torch.no_grad():
        for salt, parameter in enumerate(rnn.parameters()):
            parameter.copy_(values(tuple(parameter.shape), dtype, salt))

    x = values((STEPS, BATCH, INPUT_SIZE), dtype, salt=101).requires_grad_()
    given = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False) if packed else x
    rng = torch.tensor(SEEDS)
    out, state = rnn(given, rng=rng)
    results = [out.data if packed else out, *(state if isinstance(state, tuple) else (state,))]
    torch.autograd.backward(results, [values(tuple(r.shape), r.dtype, salt=201 + i) for i, r in enumerate(results)])

    arrays = {name: tensor.detach() for name, tensor in zip(("out", "h_n", "c_n"), results, strict=False)}
    arrays["grad of x"] = x.grad
    arrays |= {f"grad of {name}": parameter.grad for name, parameter in rnn.named_parameters()}
    masks = frd.export_masks(rnn, given, rng=rng) if training else {}
    return (
        {name: tensor.to(torch.float64).numpy() for name, tensor in masks.items()},
        {name: tensor.to(torch.float64).numpy() for name, tensor in arrays.items()},
    )


def compute(folder: Path) -> None:
    """Runs every case and writes results.npz and about.json to ``folder``."""
    import platform

    import torch

    import fused_rnn_dropout._C as library

    about: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": library.__file__,
        "masks": {},
    }
    arrays = {}
    for case, arguments in CASES.items():
        masks, results = run_case(*arguments)
        for name, mask in masks.items():
            digest = hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()
            about["masks"][f"{case}: {name} {tuple(mask.shape)}"] = digest
        arrays |= {f"{case}: {name}": result for name, result in results.items()}
    np.savez(folder / "results.npz", **arrays)
    (folder / "about.json").write_text(json.dumps(about))


# --------------------------------------------------------------------------------------------------------------------
# The comparison
# --------------------------------------------------------------------------------------------------------------------


def run(*command: str | Path, **keywords: Any) -> None:
    print("  $", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True, stdin=subprocess.DEVNULL, **keywords)


def build_wheel(folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, torch_version: str, *more: str) -> Path:
    """A virtual environment with that torch; returns its interpreter."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"torch=={torch_version}", "numpy", *more)
    return python


@contextmanager
def new_environment(torch_version: str) -> Iterator[tuple[Path, Path]]:
    """A new interpreter with that torch, and a folder beside it; both go when done with: they take gigabytes."""
    with tempfile.TemporaryDirectory(prefix="frd-torch-") as name:
        yield make_environment(Path(name, "environment"), torch_version), Path(name, "results")


def results_under(python: Path, wheel: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the wheel computes under another interpreter and its torch."""
    package = folder / "package"
    package.mkdir(parents=True)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--target", package, wheel)
    run(
        python,
        Path(__file__).resolve(),
        "--compute",
        folder,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    about = json.loads((folder / "about.json").read_text())
    if not Path(about["library"]).is_relative_to(package):
        raise SystemExit(f"{python} imported {about['library']} instead of the wheel's library in {package}")
    with np.load(folder / "results.npz") as arrays:
        return about, dict(arrays)


def compare(about: dict, arrays: dict, other_about: dict, other_arrays: dict) -> tuple[float, list[str]]:
    """The largest difference of a result, in tolerances, and one sentence for all that is not what it should be."""
    masks, other_masks = about["masks"], other_about["masks"]
    found = [f"masks of one alone: {name}" for name in sorted(masks.keys() ^ other_masks.keys())]
    found += [f"results of one alone: {name}" for name in sorted(arrays.keys() ^ other_arrays.keys())]
    for name in sorted(masks.keys() & other_masks.keys()):
        if masks[name] != other_masks[name]:
            found.append(f"mask {name}: other bits")
    parts = {
        name: relative_difference(arrays[name], other_arrays[name]) / tolerance_of(name)
        for name in sorted(arrays.keys() & other_arrays.keys())
    }
    found += [f"{name}: off by {part:.3g} tolerances" for name, part in parts.items() if not part <= 1]  # or NaN
    return max(parts.values(), default=float("nan")), found


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(ours).max()) if np.abs(ours).max() > 0 else float(theirs.any())


def tolerance_of(name: str) -> float:
    return TOLERANCE[CASES[name.split(": ")[0]][1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--wheel", type=Path, help="the wheel to check; built from this checkout if absent")
    add("--torch", action="append", default=[], metavar="VERSION", help="check under this torch, newly installed")
    add("--python", action="append", default=[], type=Path, metavar="PATH", help="check under this interpreter")
    add("--compute", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        compute(options.compute)
        return 0
    if not options.torch and not options.python:
        parser.error("nothing to compare with: give --torch VERSION or --python PATH")

    with tempfile.TemporaryDirectory(prefix="frd-compat-") as name:
        folder = Path(name)
        wheel = options.wheel.resolve() if options.wheel else build_wheel(folder)
        print(f"checking {wheel.name}", flush=True)
        about, arrays = results_under(Path(sys.executable), wheel, folder / "here")
        if not about["masks"] or not arrays:
            raise SystemExit("no masks or no results were computed: nothing would be compared")
        rows = [(about["torch"], about["python"], 0.0, "compared with", [])]

        def check(python: Path, place: Path) -> None:
            other_about, other_arrays = results_under(python, wheel, place)
            largest, found = compare(about, arrays, other_about, other_arrays)
            rows.append((other_about["torch"], other_about["python"], largest, "FAILED" if found else "ok", found))

        for index, python in enumerate(options.python):
            check(python.absolute(), folder / f"python-{index}")
        for version in options.torch:
            with new_environment(version) as (python, place):
                check(python, place)

    print(f"\n{wheel.name}: {len(about['masks'])} masks and {len(arrays)} results of {len(CASES)} cases")
    print(f"{'torch':<16} {'python':<8} {'largest difference':<20} result")
    for torch_version, python_version, largest, verdict, found in rows:
        print(f"{torch_version:<16} {python_version:<8} {f'{largest:.2g} tolerances':<20} {verdict}")
        for sentence in found:
            print(f"    {sentence}")
    return 1 if any(found for *_, found in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
