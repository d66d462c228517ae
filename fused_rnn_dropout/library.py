"""The compiled libraries: loads them, and says what is there and what is not."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .diagnosis import older, why

try:
    if older(torch.__version__):
        raise ImportError("torch is too old")
    _spec = importlib.util.find_spec(f"{__package__}._C")
    # An editable install of another checkout offers its own library for every package of this name.
    if _spec is None or Path(str(_spec.origin)).parent.resolve() != Path(__file__).parent.resolve():
        raise ImportError("no library beside the sources")
    _C = importlib.import_module(f"{__package__}._C")
except ImportError as error:
    raise ImportError(why(error, Path(__file__).parent, torch.__version__)) from error

NAMESPACE = "fused_rnn_dropout"
lib = torch.library.Library(NAMESPACE, "FRAGMENT")
compiler: str = _C.compiler
_loaded = [_C]


def _load_cuda() -> str | None:
    """Loads the CUDA kernels that fit this torch; returns why there are none, or None where they are."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    name = f"_cuda{torch.version.cuda.split('.')[0]}"
    if importlib.util.find_spec(f"{__package__}.{name}") is None:
        return f"this build of fused_rnn_dropout has no kernels for CUDA {torch.version.cuda} ({name})"
    try:
        _loaded.append(importlib.import_module(f"{__package__}.{name}"))
    except ImportError as error:
        return f"its library {name} cannot be loaded ({error})"
    return None


_no_cuda = _load_cuda()


def library_paths() -> tuple[Path, ...]:
    """The compiled libraries that are loaded here, in the order in which another process has to load them.

    Loading them makes the operators known to torch, in a C++ program as well: ``dlopen`` each with ``RTLD_LAZY``, which
    needs no Python. What is written in Python stays behind: gradients, fakes, the drawing of a pair of random
    numbers and the Triton backend. ``docs/deploy.md`` shows such a program.

    Returns:
        Absolute paths: first the one that has the schemas and the CPU kernels, then, where its kernels fit this torch,
        the one for CUDA.
    """
    return tuple(Path(str(module.__file__)).resolve() for module in _loaded)


_CPU_BF16 = ("exact", "native", "emulated")  # csrc/cpu/layer.h's Bf16


def cpu_bf16() -> str:
    """How the CPU's kernels run layers whose results are bfloat16, as the environment variable ``FRD_CPU_BF16`` says.

    Returns:
        ``"native"``: products of rounded numbers, with the processor's dot products; so where it has them and nothing
        is set. ``"exact"``: everything in float32, rounded once at the end; so elsewhere. ``"emulated"``: what native
        computes, by instructions that every processor has, for tests.

    Raises:
        RuntimeError: the variable is set to something else, or to ``native`` where the processor cannot.
    """
    return _CPU_BF16[torch.ops.fused_rnn_dropout.cpu_bf16()]


gpu_devices = {"cuda"}
"""The kinds of devices whose tensors the GPU's kernels take. The tests add the CPU, where they run the same sources."""


def triton_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def setting(name: str, allowed: Sequence[str]) -> str | None:
    """What an environment variable chooses by hand; None where it is not set.

    Raises:
        ValueError: it is set to something else than what is allowed.
    """
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise ValueError(f"the environment variable {name} should be one of {', '.join(allowed)}, got {value!r}")
    return value


def obstacle(backend: str, device_type: str) -> str | None:
    """Why the kernels of a fused backend are not there, or cannot take tensors of ``device_type``; None where they can.

    ``meta`` tensors have no kernels, but every backend can say what it would return for them.
    """
    if backend == "cuda" and device_type not in gpu_devices - {"cuda"} and _no_cuda is not None:
        return _no_cuda
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    devices = sorted(gpu_devices) if backend == "cuda" else ["cpu" if backend == "cpu" else "cuda"]
    if backend == "triton" and triton_interpreted():
        devices.append("cpu")
    if device_type not in (*devices, "meta"):
        return f"it computes on {' and '.join(devices)} tensors, the input is on {device_type}"
    return None


def argument_names(op: Any) -> list[str]:
    """The names in the schema of an operator, ``torch.ops.NAMESPACE.NAME``, in their order."""
    return [argument.name for argument in op.default._schema.arguments]


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a fake that checks that all tensors but ``batch_sizes``, which is on the CPU, share a device.

    One tensor on the meta device sends a whole call to its fake, whose empty results would pass for real ones.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        names = argument_names(getattr(getattr(torch.ops, NAMESPACE), name))
        elsewhere = {index for index, argument in enumerate(names) if argument == "batch_sizes"}

        def checked(*args: Any) -> Any:
            given = [arg for index, arg in enumerate(args) if index not in elsewhere]
            flat = [part for arg in given for part in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            tensors = [part for part in flat if isinstance(part, Tensor)]
            devices = sorted({str(tensor.device) for tensor in tensors})
            if len(devices) > 1:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{devices[0]} and {devices[1]}!"
                )
            return fake(*args)

        return torch.library.register_fake(f"{NAMESPACE}::{name}", checked, lib=lib)

    return register
