"""What every test file shares: fixed seeds, torch's global settings put back, and the ``gpu`` marker."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from types import ModuleType

import host_run
import numpy as np
import pytest
import sampled
import torch

try:
    import hypothesis
except ImportError:  # test_properties.py, which needs it, is skipped and says so
    hypothesis = None  # type: ignore[assignment]

# Examples are the same in every run unless one asks for others: HYPOTHESIS_PROFILE=explore pytest ...
if hypothesis is not None:
    hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, print_blob=True)
    hypothesis.settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True, database=None)
    # For --sample, whose seed chooses the examples.
    hypothesis.settings.register_profile("sample", deadline=None, max_examples=20, print_blob=True, database=None)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Without a device Triton's kernels run in its interpreter, which must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


os.environ.pop("FRD_SCHEDULE_TABLE", None)  # a test that is about a table gives its own


def pytest_addoption(parser: pytest.Parser) -> None:
    sampled.add_options(parser)
    parser.addoption(
        "--on-host",
        action="store_true",
        help="has CUDA's kernels take the place of the CPU's, on the host, in every test that names no target itself",
    )


def pytest_configure(config: pytest.Config) -> None:
    if sampled.configure(config) and hypothesis is not None and "HYPOTHESIS_PROFILE" not in os.environ:
        hypothesis.settings.load_profile("sample")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell starts what runs in the background deaf to Ctrl-C, and the commands under test would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.on_host:
        host_run.install()
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")  # without it cuDNN's layers may add in any order
        # By default products in 16 bits may add up in 16 bits. For cuDNN see cudnn_rounds_by_dtype.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def pytest_report_header(config: pytest.Config) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    on_host = ", operators run CUDA launchers on the host" if config.option.on_host else ""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gpu}{on_host}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("cpu_kernels") and config.option.on_host:
            item.add_marker(pytest.mark.skip(reason="not a promise of the GPU's kernels"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the global state is what code under test may use
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def torch_settings_restored() -> Iterator[None]:
    """Puts torch's process-wide settings back as they were, so that no test changes what the next one sees."""
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    grad = torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    torch.set_grad_enabled(grad)


LOW_PRECISION = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def cudnn_rounds_by_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """By default cuDNN rounds float32 to TF32. Told not to, it does without tensor cores in bfloat16 too, which nobody
    does: so it is told in tests of float32 and float64 alone.
    """
    callspec = getattr(request.node, "callspec", None)
    low = callspec is not None and any(value in LOW_PRECISION for value in callspec.params.values()
                                       if isinstance(value, torch.dtype))  # fmt: skip
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = low
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def warnings_given_anew() -> Iterator[None]:
    """A warning that is given once per process is given once per test instead.

    With a patch of its own: the test's would be made here, and undone after the fixtures that the test names. It would
    then put back what these had set.
    """
    with pytest.MonkeyPatch.context() as patch:
        if sites := sys.modules.get("fused_rnn_dropout.sites"):
            patch.setattr(sites, "_warned", set())
        yield


@pytest.fixture(scope="session")
def cuda_host_module() -> ModuleType:
    """CUDA's kernels and launchers, run on the host by the shim in tests/cuda; compiled when first asked for."""
    return host_run.host_module()


@pytest.fixture
def cuda_host(cuda_host_module: ModuleType) -> Iterator[ModuleType]:
    """The same, for one test, which starts with everything in order: no seed."""
    cuda_host_module.set_seed(0)
    yield cuda_host_module
    cuda_host_module.set_seed(0)
