"""How far bfloat16 is off on the CPU: this library's layers and torch.nn's beside one in float64, without sites."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import library

from .machine import processor
from .tables import table

BEGIN, END = "<!-- rounding:begin -->", "<!-- rounding:end -->"
SEEDS = range(5)
STEPS, BATCH, INPUTS, UNITS = 40, 16, 64, 96
_TORCH = "torch.nn"


@contextmanager
def _running(how: str) -> Iterator[None]:
    """Within it ``FRD_CPU_BF16`` is ``how``."""
    before = os.environ.get("FRD_CPU_BF16")
    os.environ["FRD_CPU_BF16"] = how
    try:
        yield
    finally:
        del os.environ["FRD_CPU_BF16"]
        if before is not None:
            os.environ["FRD_CPU_BF16"] = before


def results(rnn: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of a module, and the gradients of a weighted sum of it, by name."""
    leaf = x.clone().requires_grad_()
    out, _ = rnn(leaf)
    (out * torch.linspace(-1, 1, out.shape[-1], dtype=x.dtype)).sum().backward()
    gradients = {f"d {name.removesuffix('_l0')}": weight.grad for name, weight in rnn.named_parameters()}
    return {name: value.detach().double() for name, value in {"out": out, "d x": leaf.grad, **gradients}.items()}


def errors(cell: str, ways: Sequence[str]) -> dict[str, dict[str, float]]:
    """Root mean squares of what each way of running a layer is off, over all elements of five seeds.

    Args:
        cell: a name that torch.nn and this library both have.
        ways: values of ``FRD_CPU_BF16``.

    Returns:
        By result, and by way; ``torch.nn`` is one of them.

    Raises:
        ValueError: torch's layer cannot run here.
        RuntimeError: one of ``ways`` cannot.
    """
    squares: dict[str, dict[str, float]] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        x = torch.randn(STEPS, BATCH, INPUTS).bfloat16()
        theirs, ours = (getattr(package, cell)(INPUTS, UNITS, dtype=torch.bfloat16) for package in (nn, frd))
        exact = getattr(nn, cell)(INPUTS, UNITS, dtype=torch.float64)
        for other in (ours, exact):
            other.load_state_dict(theirs.state_dict())
        want = results(exact, x.double())
        try:
            found = {_TORCH: results(theirs, x)}
        except RuntimeError as error:
            raise ValueError(f"torch.nn.{cell} cannot run in bfloat16 here: {error}") from error
        for way in ways:
            ours.zero_grad()
            with _running(way):
                found[way] = results(ours, x)
        for way, values in found.items():
            for name, value in values.items():
                by_way = squares.setdefault(name, {})
                by_way[way] = by_way.get(way, 0.0) + (value - want[name]).square().mean().item() / len(SEEDS)
    return {name: {way: square**0.5 for way, square in by_way.items()} for name, by_way in squares.items()}


def rounding(cells: Sequence[str], command: str) -> str:
    """The errors of every cell in a table, in markdown."""
    ways = [library.cpu_bf16(), *(way for way in ("exact",) if way != library.cpu_bf16())]
    lines = []
    for cell in cells:
        for name, by_way in errors(cell, ways).items():
            own = [f"{by_way[way]:.3g} ({by_way[way] / by_way[_TORCH]:.2f})" for way in ways]
            lines.append((cell, name, f"{by_way[_TORCH]:.3g}", *own))
    return "\n\n".join([
        f"Root mean squares over {len(SEEDS)} seeds, in brackets over torch's. T, B, I, H are {STEPS}, {BATCH}, "
        f"{INPUTS}, {UNITS}; {processor()}, torch {torch.__version__}.",
        table(("", "of", _TORCH, *(f"ours, {way}" for way in ways)), lines),
        f"Made by `{command}`.",
    ])  # fmt: skip
