"""Where the tests of the kernels run: each :class:`Target` is a backend, a device, and what of the backend is chosen.

A test that takes the fixture ``target`` of ``conftest.py`` runs once on each target that :func:`on` names. What differs
between targets is said here: what they cannot do, how exact they are, and, for Triton's interpreter, which takes a
second for what the others do in milliseconds, how much they are given to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import grids
import host_run
import pytest
import torch
from grids import TOLERANCE, assert_equal
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library, library, ops

HAS_DEVICE = torch.cuda.is_available()
IDS = torch.tensor([7, 0, 2**32 - 2, 31])
LOW = (torch.bfloat16, torch.float16)


def _has_bf16() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRD_CPU_BF16", "native")
        try:
            return library.cpu_bf16() == "native"
        except RuntimeError:
            return False


HAS_BF16 = _has_bf16()
"""Whether this processor has dot products of bfloat16."""


class Shape(NamedTuple):
    """``lengths``: of a packed batch of that many steps and rows."""

    steps: int
    batch: int
    lengths: list[int]


@dataclass(frozen=True)
class Target:
    """One place where kernels run.

    Attributes:
        name: the part of a test's name.
        backend: of the modules that :meth:`module` makes.
        device: of their tensors. With ``on_host`` that is the CPU, and the GPU's kernels run there by the shim.
        isa: of the CPU's kernels.
        bf16: how these run bfloat16, ``FRD_CPU_BF16``; "" leaves the choice to the library.
        schedule: the one that is asked for; "" leaves the choice to the library.
        slow: Triton, whose interpreter and compiler are given smaller layers and fewer cases.
    """

    name: str
    backend: str
    device: str = "cpu"
    isa: str = ""
    bf16: str = ""
    schedule: str = ""
    on_host: bool = False

    @property
    def slow(self) -> bool:
        return self.backend == "triton"

    @property
    def widths(self) -> tuple[int, int, int]:
        """I, H, and P for ``LSTM_proj``."""
        return (5, 6, 4) if self.slow else (6, 19, 7)

    @property
    def shape(self) -> Shape:
        return Shape(3, 4, [2, 3, 1, 3]) if self.slow else Shape(5, 4, [3, 5, 1, 4])

    @property
    def brief(self) -> Shape:
        """For tests with many cases."""
        return Shape(2, 3, [1, 2, 1]) if self.slow else Shape(3, 3, [1, 3, 2])

    def cannot(self, cell: str = "LSTM", dtype: torch.dtype = torch.float64) -> str | None:
        """Why it runs no layer of this cell and dtype; None where it does."""
        if self.schedule == "persistent":
            if cell == "LSTM_proj":
                return "a projection: h has not the width of c"
            if dtype == torch.float64:
                return "float64: tensor cores have no products of it here"
        if self.schedule == "sequence":
            if cell == "LSTM_proj":
                return "a projection needs a product of its own within each step"
            if dtype == torch.float64 and self.device == "cuda":
                return "float64 sums of a block take more registers than a thread has"
        return None

    def keeps(self, dtype: torch.dtype) -> bool:
        """Whether the CPU's kernels read and keep numbers of this dtype of 16 bits as they are, as a GPU's do."""
        return self.backend == "cpu" and dtype == torch.bfloat16 and library.cpu_bf16() != "exact"

    def tolerance(self, dtype: torch.dtype, steps: int) -> float:
        """Of the largest element of a tensor that a layer's kernels compute in ``steps`` steps."""
        if dtype in TOLERANCE or self.backend == "cuda" or self.keeps(dtype):
            return grids.tolerance(dtype, steps)
        # Else the CPU rounds the outputs of layers and the sums of two directions, and nothing more. Triton rounds what
        # a product reads. Its interpreter truncates to bfloat16, twice as far, the same way each time: errors add up.
        return (4 if self.backend == "cpu" else 2 * steps) * torch.finfo(dtype).eps

    def passes(self, cell: str) -> list[tuple[bool, tuple[bool, ...]]]:
        """Whether the batch is packed, and the values of ``recompute``: the passes of a case with many relatives."""
        if not self.slow:
            return [(False, (False, True)), (True, (False, True))]
        # Padded with all gates kept, and packed with none: one of them under each schedule, where there are two.
        padded, packed = (False, (False,)), (True, (True,))
        if self.schedule == "sequence":
            return [packed]
        return [padded, packed] if SEQUENCE.cannot(cell) else [padded]

    def all_sites(self, cell: str) -> dict[str, Any]:
        """All sites on: where it is slow, those of one layer."""
        return grids.inner_sites(cell) if self.slow else grids.all_sites(cell)

    def module(
        self, cell: str, sites: dict[str, Any], widths: tuple[int, int, int] | None = None, **kwargs: Any
    ) -> nn.Module:
        """As :func:`grids.module`: two layers unless ``layers`` says, or where it is slow as few as the sites need."""
        if self.slow:
            between = {"dropout", "inter_layer_dropout"} & sites.keys()
            kwargs = {"layers": 2 if between else 1, **kwargs}
        kwargs = {"backend": self.backend, "device": self.device, **kwargs}
        return grids.module(cell, sites, widths or self.widths, **kwargs)

    def rng(self) -> Tensor:
        """The randomness of a call: the same bits on each device."""
        return frd.draw_rng("cpu").to(self.device)

    def draw(self) -> dict[str, Tensor]:
        return {"rng": self.rng()}

    def drawn(self, batch: int) -> dict[str, Any]:
        """The randomness, and counters that do not start at 0."""
        ids = IDS[:batch].to(self.device) if batch <= len(IDS) else None
        return {**self.draw(), "example_ids": ids, "step_offset": 1000}

    def masks(self, rnn: nn.Module, x: Any, **given: Any) -> dict[str, Tensor]:
        """As the kernels make them. Those of Triton are held to the bits that PyTorch makes."""
        masks = frd.export_masks(rnn, x, **given)
        if self.backend == "triton":
            rnn.backend = "reference"
            assert_equal(masks, frd.export_masks(rnn, x, **given))
            rnn.backend = self.backend
        return masks

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """Within it modules of this target run where it says."""
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            if self.isa:
                stack.callback(ops.cpu_isa, ops.cpu_isa())
                ops.cpu_isa(self.isa)
            if self.bf16:
                patch.setenv("FRD_CPU_BF16", self.bf16)
            else:
                patch.delenv("FRD_CPU_BF16", raising=False)
            if self.on_host:
                stack.enter_context(host_run.run_on_host())
                stack.callback(host_run.host_module().set_seed, 0)
            if self.backend == "cuda":
                patch.delenv("FRD_CUDA_SCHEDULE", raising=False)
            if self.schedule == "persistent":
                patch.setenv("FRD_CUDA_SCHEDULE", self.schedule)
            elif self.schedule and self.backend == "cuda":
                patch.setattr(cudnn_library, "obstacle", lambda *_: "the test keeps it away")
            if self.backend == "triton":
                patch.setenv("FRD_TRITON_SCHEDULE", self.schedule)
                patch.setenv("FRD_TRITON_PRECISION", "ieee")  # products as exact as their dtype
            yield


_ISAS = ops.cpu_isas()
_TRITON_DEVICE = "cuda" if HAS_DEVICE else "cpu"

CPUS = tuple(Target(f"cpu-{isa}", "cpu", isa=isa) for isa in _ISAS)
"""The CPU's kernels, with each instruction set that this processor has."""
CPU = (CPUS[_ISAS.index(ops.cpu_isa())],)
"""With the one that is taken without asking."""
CPU_EXACT = (Target("cpu-exact", "cpu", bf16="exact"),)
"""The same, with bfloat16 converted to float32."""
CPU_BF16 = tuple(Target(f"cpu-{how}", "cpu", bf16=how) for how in ("emulated", "native")[: 1 + HAS_BF16])
"""The same, with products of bfloat16: those that every processor has, and its own."""
CUDA_HOST = (Target("cuda-host", "cuda", schedule="alternating", on_host=True),)
CUDA_DEVICE = (Target("cuda", "cuda", "cuda", schedule="alternating"),)
CUDA = CUDA_HOST + CUDA_DEVICE
"""The GPU's kernels under their alternating schedule, on the host and, with the marker ``gpu``, on a GPU."""
PERSISTENT = (
    Target("cuda-host-persistent", "cuda", schedule="persistent", on_host=True),
    Target("cuda-persistent", "cuda", "cuda", schedule="persistent"),
)
"""The same under their persistent schedule."""
CUDA_DEVICE_FREE = (Target("cuda-free", "cuda", "cuda"),)
CUDA_FREE = (Target("cuda-host-free", "cuda", on_host=True), *CUDA_DEVICE_FREE)
"""The same, with the schedule that the library chooses: cuDNN, or what stands in for it, where it can."""
ALTERNATING = Target("triton-alternating", "triton", _TRITON_DEVICE, schedule="alternating")
SEQUENCE = Target("triton-sequence", "triton", _TRITON_DEVICE, schedule="sequence")
TRITON = (ALTERNATING, SEQUENCE)
"""Triton's kernels: on a GPU, with the marker ``gpu``, where there is one, and in the interpreter otherwise."""
REFERENCE = (Target("reference", "reference"),)


def on(*groups: tuple[Target, ...]) -> pytest.MarkDecorator:
    """Has a test take the fixture ``target``, once for each of these."""
    params = []
    for target in (target for group in groups for target in group):
        marks = [pytest.mark.gpu] if target.device == "cuda" else []
        marks += [getattr(pytest.mark, target.backend)] if target.backend in ("cuda", "triton") else []
        params.append(pytest.param(target, marks=marks, id=target.name))
    return pytest.mark.parametrize("target", params, indirect=True)


def left_out(target: Target, params: dict[str, Any]) -> bool:
    """Whether a combination of a test's parameters is no case, since ``target`` cannot run it."""
    asked = {name: params[name] for name in ("cell", "dtype") if name in params}
    return target.cannot(**asked) is not None


Sites = dict[str, dict[str, Any]]


def cases(*groups: Callable[[str], Sites]) -> list[Any]:
    """Parameters ``cell`` and ``sites``."""
    return [
        pytest.param(cell, sites, id=f"{cell}-{name}")
        for group in groups
        for cell in grids.CELLS
        for name, sites in group(cell).items()
    ]
