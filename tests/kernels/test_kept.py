"""What a forward pass keeps for backward, and what it leaves where there are no gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grids import CELLS, all_sites, assert_equal, call, fits, inner_sites, inputs_for, row_of
from targets import CPU, CUDA, CUDA_HOST, Target, on
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn_dropout as frd


@contextlib.contextmanager
def tensors_kept() -> Iterator[dict[int, Tensor]]:
    """Collects what autograd keeps for backward, once for each storage."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def kept_bytes(rnn: nn.Module, x: Any, states: tuple[Tensor, ...], **given: Any) -> int:
    """Bytes that are kept besides the parameters, the caller's states and results, and a few integers."""
    with tensors_kept() as found:
        results = call(rnn, x, states, **given)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*rnn.parameters(), *states, *results.values())}
    kept = [value for key, value in found.items() if key not in known and value.is_floating_point()]
    integers = [value for key, value in found.items() if not value.is_floating_point()]
    assert all(value.numel() <= 12 for value in integers), "nothing but rng, rates, ids and batch sizes"
    return sum(value.untyped_storage().nbytes() for value in kept)


KEPT = {
    "nothing": lambda cell: {},
    "cell": lambda cell: {"cell_dropout": 0.2},
    "unzoned": lambda cell: {"zoneout_h": frd.Zoneout(0.2, output="unzoned")},
    "output": lambda cell: {"output_dropout": 0.2},
    "everything": all_sites,
}


@on(CPU, CUDA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize(
    ("cell", "sites"), [(cell, sites) for cell in CELLS for sites in KEPT if fits(cell, KEPT[sites](cell))]
)
def test_bytes_kept_are_those_that_explain_names(
    target: Target, cell: str, sites: str, bidirectional: bool, recompute: bool, dtype: torch.dtype
) -> None:
    rnn = target.module(
        cell, KEPT[sites](cell), (16, 32, 8), bidirectional=bidirectional, dtype=dtype, recompute=recompute
    )
    x, states = inputs_for(rnn, 10, 4)
    assert kept_bytes(rnn, x, states) == frd.explain(rnn, x).bytes_for_backward


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_no_mask_is_kept_and_recompute_keeps_less(target: Target, cell: str) -> None:
    sizes = (16, 32, 8)
    layout: dict[str, Any] = {"layers": 1, "bidirectional": False, "dtype": torch.float32}
    plain = target.module(cell, {}, sizes, **layout)
    dropped = target.module(cell, inner_sites(cell), sizes, **layout)
    x, states = inputs_for(plain, 10, 4)
    # The dropped input is kept instead of x. Where h is not the output any more, it is kept beside it.
    extra = 10 * 4 * (plain.proj_size or plain.hidden_size) * 4
    assert kept_bytes(dropped, x, states) - kept_bytes(plain, x, states) in (0, extra)
    full = kept_bytes(plain, x, states)
    plain.recompute = True
    row = row_of(cell)
    gates = 10 * 4 * plain.hidden_size * (row.gates + row.apart) * 4  # (N, H) of each, four bytes a number
    assert full - kept_bytes(plain, x, states) == gates


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_kept_without_gradients(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell))
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    want = {name: value.detach() for name, value in call(rnn, x, states, **given).items()}
    for mode in (torch.no_grad, torch.inference_mode):
        with tensors_kept() as found, mode():
            got = call(rnn, x, states, **given)
        assert not found and all(value.grad_fn is None and not value.requires_grad for value in got.values())
        assert_equal(got, want)
    rnn.requires_grad_(False)
    frozen = tuple(state.detach() for state in states)
    with tensors_kept() as found:
        got = call(rnn, x.detach(), frozen, **given)
    assert not found and not any(value.requires_grad for value in got.values())
    assert frd.explain(rnn, x.detach()).bytes_for_backward == 0


class OperatorNames(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_activations_are_written_only_where_backward_needs_them(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell))
    x, states = inputs_for(rnn, *target.shape[:2])
    plain = "fused_rnn_dropout::layer"
    for grad in (True, False):
        with torch.set_grad_enabled(grad), OperatorNames() as seen:
            call(rnn, x, states)
        assert (f"{plain}_forward" in seen.names, plain in seen.names) == (grad, not grad)


@on(CPU, CUDA_HOST)
@pytest.mark.parametrize("cell", CELLS)
def test_memory_is_given_back_without_gradients(target: Target, cell: str) -> None:
    """What stays allocated after a forward pass under no_grad is its results. test_gpu.py asks a GPU's allocator."""
    rnn = target.module(cell, all_sites(cell), (16, 32, 8), dtype=torch.float32)
    x, states = inputs_for(rnn, 20, 8)
    given = target.draw()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        results = call(rnn, x, states, **given)
    alive = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    own = sum(value.untyped_storage().nbytes() for value in results.values())
    assert own <= alive <= own + 4096
