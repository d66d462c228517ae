"""tests/cuda/standalone.cu: the kernels in a program without torch or Python, from a file to a file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import host_run
import numpy as np
import pytest
import torch
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import FLAG, KIND, SITE_INDEX, keep_scale, stream, threshold

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"f32": np.float32, "i64": np.int64}
B, H, T = 5, 36, 3
RATES = {"hidden_dropout": 0.3, "weight_dropout": 0.4, "update_dropout": 0.25, "cell_dropout": 0.2, "zoneout_h": 0.15}
RNG = torch.tensor([11, -12])


def write(path: Path, records: list[tuple[str, Tensor | None]]) -> None:
    with open(path, "wb") as file:
        for name, value in records:
            numbers = np.empty(0, np.float32) if value is None else value.detach().numpy().ravel()
            kind = "i64" if numbers.dtype == np.int64 else "f32"
            file.write(f"{name} {kind} {numbers.size}\n".encode() + numbers.astype(TYPES[kind]).tobytes())


def read(path: Path) -> dict[str, Tensor]:
    data, found = path.read_bytes(), {}
    while data:
        header, data = data.split(b"\n", 1)
        name, kind, count = header.decode().split()
        size = int(count) * np.dtype(TYPES[kind]).itemsize
        found[name] = torch.from_numpy(np.frombuffer(data[:size], TYPES[kind]).copy())
        data = data[size:]
    return found


@pytest.fixture(scope="module", params=["host", pytest.param("nvcc", marks=pytest.mark.gpu)])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built by a C++ compiler for the host or by nvcc for this machine's GPU."""
    target = tmp_path_factory.mktemp("standalone") / "standalone"
    source = ROOT / "tests/cuda/standalone.cu"
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    if request.param == "nvcc":
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip("needs nvcc")
        flags = ["-std=c++20", "-arch=native", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda'}"]
        subprocess.run([nvcc, *flags, source, *kernels, "-o", target], check=True)
        return target
    host_run.host_module()  # leaves the kernels' objects in its folder, each under its name and a fingerprint
    build = host_run.build_module()
    objects = [next(build.FOLDER.glob(f"{kernel.stem}-*.o")) for kernel in kernels]
    compiled = target.with_suffix(".o")
    subprocess.run([*build.compile_command(source), "-o", str(compiled)], check=True)
    subprocess.run([*build.compiler(), str(compiled), *map(str, objects), "-o", str(target)], check=True)
    return target


def run(program: Path, folder: Path, records: list[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    write(folder / "input", records)
    subprocess.run([program, folder / "input", folder / "output"], check=True)
    return read(folder / "output")


def one(value: int) -> Tensor:
    return torch.tensor([value])


def thresholds() -> Tensor:
    found = torch.zeros(10, dtype=torch.int64)
    for name, rate in RATES.items():
        found[SITE_INDEX[name]] = threshold(rate)
    return found


def prepared(cell: str) -> list[tuple[str, Tensor | None]]:
    names = ["HIDDEN", "WEIGHT_HH", "UPDATE", "CELL", "CELL_SEQUENCE", "ZONEOUT_H", "MASKS_ON"]
    flags = sum(FLAG[name] for name in names)
    return [
        ("flags", one(flags)), ("rng", RNG), ("thresholds", thresholds()), ("batch", one(B)), ("units", one(H)),
        ("steps", one(T)), ("cell", one(frd.cells.CELLS[cell].number)),
        ("kernel=prepare", None), ("kernel=sequence_masks", None),
    ]  # fmt: skip


def of_layer(cell: str, steps: int = 1) -> dict[str, Tensor]:
    rnn = getattr(frd, cell)(H, H, **RATES)
    return masks.layer(
        rnn._plan, cell, dict.fromkeys(("state", "hidden", "weight"), RNG), thresholds(), layer=0, reverse=False,
        input_size=H, hidden_size=H, proj_size=0, example_ids=torch.arange(B), steps=torch.arange(steps),
        dtype=torch.float64, masks_on=True,
    )  # fmt: skip


def close(got: Tensor, want: Tensor) -> bool:
    want = want.detach()
    return bool((got.view(want.shape).double() - want).abs().max() <= 1e-5 * want.abs().max())


def test_words_dropout_sums_and_weights(program: Path, tmp_path: Path) -> None:
    row, step = torch.tensor([0, 3]), torch.tensor([2, 9])
    x, weight = torch.randn(T, B, H), torch.randn(4 * H, H)
    found = run(program, tmp_path, [
        *prepared("LSTM"), ("row", row), ("step", step), ("stream", one(stream(KIND["UPDATE"], 1))),
        ("kernel=read_words", None),
        ("x", x), ("per_step", one(1)), ("site", one(SITE_INDEX["update_dropout"])),
        ("stream", one(stream(KIND["INPUT"], 0))), ("kernel=drop_rows", None),
        ("columns", one(H)), ("kernel=column_sums", None),
        ("rows", one(4 * H)), ("weight", weight), ("kernel=masked_weight", None),
    ])  # fmt: skip
    assert torch.equal(found["words"].view(2, 2, H), masks.words(RNG, row, step, H, stream(KIND["UPDATE"], 1)))
    words = masks.words(RNG, torch.arange(B), torch.arange(T), H, stream(KIND["INPUT"], 0))
    p = threshold(RATES["update_dropout"])
    scale = torch.tensor(keep_scale(p), dtype=torch.float32)
    assert torch.equal(found["dropped"].view_as(x), torch.where(words >= p, scale * x, torch.zeros(())))
    assert close(found["sums"], x.double().sum((0, 1)))
    assert close(found["masked"], of_layer("LSTM")["weight_hh"] * weight)


def test_the_operand_of_the_recurrent_products(program: Path, tmp_path: Path) -> None:
    states, h0 = torch.randn(T, B, H), torch.randn(B, H)
    found = run(program, tmp_path, [*prepared("LSTM"), ("states", states), ("h0", h0), ("kernel=operand", None)])
    before = torch.cat([h0[None], states[:-1]])
    assert close(found["operand"], before * of_layer("LSTM")["hidden"])


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_step_forward_and_backward(program: Path, tmp_path: Path, cell: str) -> None:
    """One step, against the reference with the identity for W and nothing for U, so that x is what the gates get."""
    count = 4 if cell == "LSTM" else 3
    gates = torch.randn(B, count * H, dtype=torch.float64)
    recurrent = torch.randn(B, count * H, dtype=torch.float64)
    h0, c0, dout = (torch.randn(B, H, dtype=torch.float64) for _ in range(3))
    found = run(program, tmp_path, [
        *prepared(cell), ("gates", gates.float()), ("recurrent", recurrent.float()), ("h0", h0.float()),
        ("c0", c0.float()), ("dout", dout.float()), ("kernel=forward_step", None), ("kernel=backward_step", None),
    ])  # fmt: skip
    own = {key: value for key, value in of_layer(cell).items() if key not in ("hidden", "weight_hh")}
    x, u = gates.clone().requires_grad_(), recurrent.clone().requires_grad_()
    c = c0.clone().requires_grad_()
    # The recurrent part comes as a bias of its own row: one call of a batch of one for each row.
    outs, last = [], []
    eye, nothing = torch.eye(count * H, dtype=torch.float64), torch.zeros(count * H, H, dtype=torch.float64)
    for row in range(B):
        own_of = {3: lambda value, row: value[:, row : row + 1], 2: lambda value, row: value[row : row + 1]}
        of_row = {key: own_of[value.dim()](value, row) if value.dim() else value for key, value in own.items()}
        weights = [eye, nothing, torch.zeros(count * H, dtype=torch.float64), u[row], None][
            : 5 if cell == "LSTM" else 4
        ]
        if cell == "LSTM":
            out, (_, c_n) = frd.reference.lstm(
                x[None, row : row + 1], (h0[row : row + 1], c[row : row + 1]), weights, of_row
            )
            last.append(c_n)
        else:
            out, _ = frd.reference.gru(x[None, row : row + 1], h0[row : row + 1], weights, of_row)
        outs.append(out[0])
    out = torch.cat(outs)
    assert close(found["out"], out)
    if cell == "LSTM":
        assert close(found["c_n"], torch.cat(last))
        dx, dc = torch.autograd.grad(out, (x, c), dout)
        assert close(found["dgates"], dx) and close(found["dc0"], dc)
    else:
        dx, du = torch.autograd.grad(out, (x, u), dout)
        n, r, z, un = found["dgates"].view(B, 4, H).unbind(1)
        assert close(torch.cat([r, z, n], 1), dx) and close(torch.cat([r, z, un], 1), du)


def test_errors_are_said(program: Path, tmp_path: Path) -> None:
    write(tmp_path / "input", [("kernel=no_such", None)])
    done = subprocess.run([program, tmp_path / "input", tmp_path / "output"], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no kernel no_such" in done.stderr
