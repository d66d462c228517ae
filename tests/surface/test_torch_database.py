"""torch's own database of module inputs for nn.LSTM, nn.GRU and nn.RNN, run against ours with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import MODULES

pytest.importorskip("expecttest", reason="the package expecttest, which torch's own tests import, is not installed")

with pytest.MonkeyPatch.context() as patch:
    # torch's tests forbid their process to set the flags of torch.backends, which conftest.py and the bench set here.
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    from torch.testing._internal.common_modules import ModuleInput, module_db

BACKENDS = ("cpu", "reference")
TORCHS = [getattr(nn, name) for name in MODULES]
_INFOS = {info.module_cls: info for info in module_db if info.module_cls in TORCHS}


def samples(module_cls: type, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    info = _INFOS[module_cls]
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)


def leaves_of(value: Any) -> list[Tensor]:
    """Every tensor inside nested tuples, a PackedSequence being its data."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [leaf for part in value for leaf in leaves_of(part)] if isinstance(value, (tuple, list)) else []


def run(module: nn.Module, sample: ModuleInput) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of the sum of their squares by inputs, states and parameters."""
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    results = leaves_of(module(*args, **kwargs))
    inputs = [leaf for leaf in leaves_of([*args, *kwargs.values()]) if leaf.requires_grad]
    loss = sum((result * result).sum() for result in results)
    return results, list(torch.autograd.grad(loss, [*inputs, *module.parameters()], retain_graph=True))


def test_the_database_has_each_module() -> None:
    assert set(_INFOS) == set(TORCHS)
    assert all(len(samples(cls, torch.float64, True)) >= 8 for cls in _INFOS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("module_cls", TORCHS, ids=MODULES)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_samples(module_cls: type, dtype: torch.dtype, training: bool, backend: str) -> None:
    for sample in samples(module_cls, dtype, training):
        args, kwargs = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
        theirs = module_cls(*args, **kwargs, dtype=dtype).train(training)
        ours = getattr(frd, module_cls.__name__)(*args, **kwargs, dtype=dtype, backend=backend).train(training)
        ours.load_state_dict(theirs.state_dict())
        mine, expected = run(ours, sample), run(theirs, sample)
        tolerance = 1e3 * torch.finfo(dtype).eps if dtype == torch.float64 else 1e-4
        for got, want in zip(mine, expected, strict=True):
            for value, reference in zip(got, want, strict=True):
                torch.testing.assert_close(
                    value, reference, rtol=tolerance, atol=tolerance, msg=lambda m, s=sample: f"{s}: {m}"
                )


@pytest.mark.parametrize("module_cls", TORCHS, ids=MODULES)
def test_samples_with_sites_agree_across_backends(module_cls: type) -> None:
    """The same samples with every fused site on: the fused backend against the reference."""
    sites: dict[str, Any] = {"hidden_dropout": 0.25, "weight_dropout": 0.5, "update_dropout": 0.2, "zoneout_h": 0.15,
                             "input_dropout": 0.2, "output_dropout": 0.1}  # fmt: skip
    for sample in samples(module_cls, torch.float64, True):
        args, kwargs = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
        rng = frd.draw_rng("cpu")
        sample.forward_input.kwargs["rng"] = rng
        modules = [getattr(frd, module_cls.__name__)(*args, **kwargs, dtype=torch.float64, backend=backend, **sites)
                   for backend in BACKENDS]  # fmt: skip
        modules[1].load_state_dict(modules[0].state_dict())
        for got, want in zip(*(run(module, sample) for module in modules), strict=True):
            for value, reference in zip(got, want, strict=True):
                torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-11)
