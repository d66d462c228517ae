"""Who is measured: the library in several configurations, torch, and what people write today."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library, library
from fused_rnn_dropout.cells import ONE_OF_TORCHS
from fused_rnn_dropout.sites import SITE

from . import baselines
from .loops import Loop, WeightDrop
from .shapes import Shape, cell_of

TASKS = ("train", "forward", "eval")
"""Forward and backward; forward that keeps what backward needs; eval under no_grad."""

RATES = {
    "input_dropout": 0.2,
    "weight_dropout": 0.3,
    "hidden_dropout": 0.2,
    "update_dropout": 0.2,
    "zoneout_c": 0.1,
    "zoneout_h": 0.1,
    "output_dropout": 0.2,
}
"""Every site that one layer has and that can be on beside the others; not every cell has ``zoneout_c``."""

ONLY_LINEAR = ("input_dropout", "weight_dropout", "output_dropout")


def rates_of(cell: str) -> dict[str, float]:
    return {name: rate for name, rate in RATES.items() if SITE[name].fits(cell_of(cell).name)}


def layer(library: Any, cell: str, shape: Shape, **options: Any) -> Any:
    """What ``library``, ``torch.nn`` or this one, has for a cell and a shape."""
    row = cell_of(cell)
    return getattr(library, row.module)(
        shape.inputs, shape.units, shape.layers, bidirectional=shape.directions == 2, **row.settings, **options
    )


def _ours(cell: str, shape: Shape, names: tuple[str, ...] | None = (), **options: Any) -> nn.Module:
    rates = rates_of(cell)
    sites: dict[str, Any] = {name: rate for name, rate in rates.items() if names is None or name in names}
    return layer(frd, cell, shape, **sites, **options)


def _torch(cell: str, shape: Shape) -> nn.RNNBase:
    return layer(nn, cell, shape)


def _fastai(cell: str, shape: Shape) -> nn.Module:
    from fastai.text.models.awdlstm import WeightDropout

    return WeightDropout(_torch(cell, shape), RATES["weight_dropout"])


class Contender(NamedTuple):
    """``slow``: takes part in few rounds. ``kinds``: of shapes that it is measured on. ``package``: what it needs.

    ``ours``: whether it is the library. ``backend``: of it, that it asks for. ``graph``: on a GPU, also timed as
    the replay of a CUDA graph, and its kernels are counted. ``dtype``: its own, whatever the others compute in.
    ``obstacle``: by the dtype of the run, why it does not take part.
    """

    name: str
    meaning: str
    build: Callable[[str, Shape], nn.Module]
    tasks: tuple[str, ...] = TASKS
    slow: bool = False
    kinds: tuple[str, ...] = ("large", "small", "other")
    package: str | None = None
    compiles: bool = False
    ours: bool = False
    backend: str | None = None
    graph: bool = False
    dtype: str | None = None
    obstacle: Callable[[str], str | None] | None = None

    def missing(self, compiled: bool, device: str = "cpu", dtype: str = "float32") -> str | None:
        """Why it cannot take part, or None."""
        if self.obstacle is not None and (why := self.obstacle(dtype)) is not None:
            return why
        if self.backend is not None and (why := library.obstacle(self.backend, device)) is not None:
            return f'backend="{self.backend}": {why}'
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return "left out without --compiled" if self.compiles and not compiled else None


_ALL = ("large", "small", "other", "packed")

CONTENDERS = (
    Contender("torch", f"{ONE_OF_TORCHS}, no dropout", _torch, kinds=_ALL, graph=True),
    Contender("none", "ours, no site", _ours, ours=True),
    Contender("weights", "ours, sites on weights, input and output", lambda c, s: _ours(c, s, ONLY_LINEAR), ours=True),
    Contender("all", "ours, every site", lambda c, s: _ours(c, s, None), kinds=_ALL, ours=True),
    Contender(
        "recompute",
        "ours, every site, recompute=True",
        lambda c, s: _ours(c, s, None, recompute=True),
        ("train",),
        ours=True,
    ),
    Contender(
        "weight-drop", "a weight-drop wrapper around torch's", lambda c, s: WeightDrop(_torch(c, s), 0.3), ("train",)
    ),
    Contender("fastai", "fastai's WeightDropout around torch's", _fastai, ("train",), package="fastai"),
    Contender(
        "loop",
        "every site in a Python loop over x[t]",
        lambda c, s: Loop(c, s.inputs, s.units, rates_of(c)),
        ("train",),
        True,
        ("large", "small"),  # a year of steps takes it minutes
    ),
    Contender(
        "careful-loop",
        "that loop over x.unbind()",
        lambda c, s: Loop(c, s.inputs, s.units, rates_of(c), careful=True),
        ("train",),
        True,
        graph=True,
    ),
    Contender(
        "compiled",
        "the careful loop, its step compiled",
        lambda c, s: Loop(c, s.inputs, s.units, rates_of(c), careful=True, compiled=True),
        ("train",),
        True,
        compiles=True,
    ),
)


def _on_gpu(backend: str) -> tuple[Contender, ...]:
    """The library's contenders on one of its backends for a GPU."""
    prefix, meaning = ("", "ours") if backend == "cuda" else (f"{backend}-", f"ours on {backend.capitalize()}")

    def ours(
        name: str, what: str, names: tuple[str, ...] | None, tasks: tuple[str, ...] = TASKS, **options: Any
    ) -> Any:
        def build(cell: str, shape: Shape) -> nn.Module:
            return _ours(cell, shape, names, backend=backend, **options)

        kinds = _ALL if name == "all" else _ALL[:3]
        return Contender(
            f"{prefix}{name}", f"{meaning}, {what}", build, tasks, kinds=kinds, ours=True, backend=backend, graph=True
        )

    return (
        ours("none", "no site", ()),
        ours("weights", "sites on weights, input and output", ONLY_LINEAR),
        ours("all", "every site", None),
        ours("recompute", "every site, recompute=True", None, ("train",), recompute=True),
    )


def _flattened_needless(dtype: str) -> str | None:
    kind = getattr(torch, dtype)
    if baselines.flattens_itself(kind):
        return f"torch flattens weights in {dtype} itself"
    if not torch.cuda.is_available():
        return None  # whoever measures there says so
    return cudnn_library.obstacle(torch.empty(1, dtype=kind, device="cuda"), kind, steps=1, parts=())


def _never_flattened(dtype: str) -> str | None:
    return None if baselines.flattens_itself(getattr(torch, dtype)) else f"torch never flattens weights in {dtype}"


def _float16_elsewhere(dtype: str) -> str | None:
    return None if dtype == "bfloat16" else "it stands beside bfloat16, the other dtype of 16 bits"


_TORCH_ON_GPU = (
    Contender(
        "torch-flattened",
        "that, its weights in one piece",
        lambda c, s: baselines.Arranged(_torch(c, s), baselines.flatten),
        graph=True,
        obstacle=_flattened_needless,
    ),
    Contender(
        "torch-unflattened",
        "that, each weight in a piece of its own",
        lambda c, s: baselines.Arranged(_torch(c, s), baselines.scatter),
        graph=True,
        obstacle=_never_flattened,
    ),
    Contender(
        "torch-float16",
        f"{ONE_OF_TORCHS} in float16, for which cuDNN has persistent kernels",
        _torch,
        graph=True,
        dtype="float16",
        obstacle=_float16_elsewhere,
    ),
)
"""Baselines of a GPU beside nn.LSTM and nn.GRU as users get them. torch asks cuDNN for persistent kernels in float16
where I and H are multiples of 128 and the layer is alone and has one direction."""


def contenders_of(device: str) -> tuple[Contender, ...]:
    """Who is measured on a device. On a GPU nn.LSTM and nn.GRU are cuDNN's, and the library has two backends."""
    if device == "cpu":
        return CONTENDERS
    ours = {contender.name: contender for contender in _on_gpu("cuda")}
    torchs, *others = (ours.get(contender.name, contender) for contender in CONTENDERS)
    return (torchs, *_TORCH_ON_GPU, *others, *_on_gpu("triton"))


BY_NAME = {contender.name: contender for contender in (*CONTENDERS, *_TORCH_ON_GPU, *_on_gpu("triton"))}
"""Of all devices; those that several devices have as the CPU has them."""


def runner(
    module: nn.Module,
    shape: Shape,
    task: str,
    device: str = "cpu",
    padded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], None]:
    """A call of ``task``, ready to be timed. ``padded``: feed a packed shape as a padded batch."""
    module = module.to(device, dtype).train(task != "eval")
    leaf = torch.randn(
        shape.steps, shape.batch, shape.inputs, device=device, dtype=dtype, requires_grad=task == "train"
    )
    lengths = None if padded else shape.lengths()
    x: Any = leaf if lengths is None else pack_padded_sequence(leaf, lengths)
    if lengths is None:
        grad = torch.randn(shape.steps, shape.batch, shape.width, device=device, dtype=dtype)
    else:
        # Packing is the caller's, and the same for everyone: the leaf is the packed data.
        leaf = x.data.detach().requires_grad_(task == "train")
        x = x._replace(data=leaf)
        grad = torch.randn(len(leaf), shape.width, device=device, dtype=dtype)

    def train() -> None:
        out = module(x)[0]
        (out if isinstance(out, torch.Tensor) else out.data).backward(grad)
        module.zero_grad(set_to_none=True)
        leaf.grad = None

    def forward() -> None:
        module(x)

    def evaluate() -> None:
        with torch.no_grad():
            module(x)

    return {"train": train, "forward": forward, "eval": evaluate}[task]
