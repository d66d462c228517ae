"""Which kernels a call launches on a GPU, and so which way cuDNN took: the profiler's names, grouped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

GROUPS = (
    # cuDNN's persistent kernels keep the recurrent weights on chip for all steps. Products have persistent kernels too,
    # with other names.
    ("persistent", re.compile(r"persist\w*_?(rnn|lstm|gru)|(rnn|lstm|gru)\w*persist", re.IGNORECASE)),
    ("product", re.compile(r"gemm|gemv|nvjet|cutlass|xmma|splitkreduce|dot_kernel", re.IGNORECASE)),
    ("torch's own cell", re.compile(r"at::native::.*(lstm|gru)_cell", re.IGNORECASE)),
    ("step", re.compile(r"lstm|gru|rnn|_step_kernel", re.IGNORECASE)),
    ("copy", re.compile(r"memcpy|memset|copy|catarray", re.IGNORECASE)),
)
"""Groups of kernels in the order in which they are tried; what fits none is ``other``."""


def group_of(kernel: str) -> str:
    return next((name for name, pattern in GROUPS if pattern.search(kernel)), "other")


def count(events: Iterable[Any]) -> dict[str, dict[str, int]]:
    """Launches by group and name of kernel.

    Args:
        events: of torch's profiler; those of the host are left out.
    """
    found: dict[str, Counter[str]] = {}
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(group_of(event.name), Counter())[event.name] += 1
    return {
        name: dict(found[name].most_common()) for name in (*[group for group, _ in GROUPS], "other") if name in found
    }


def path_of(counts: dict[str, dict[str, int]]) -> str:
    """What the names say of a layer of torch's."""
    if "persistent" in counts:
        return "cuDNN, persistent"
    if "torch's own cell" in counts:
        return "torch's own kernels, not cuDNN"
    if "step" in counts:
        return "cuDNN, step by step"
    return "no kernel of an RNN was seen"


def launched(run: Callable[[], None]) -> dict[str, dict[str, int]]:
    """What one call launches; it should have been called before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        run()
        torch.accelerator.synchronize()
    return count(profile.events() or ())
