"""What every test file shares: fixed seeds, torch's global settings put back, and the ``gpu`` marker."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

# Examples are the same in every run unless one asks for others: HYPOTHESIS_PROFILE=explore pytest ...
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Without a device Triton's kernels run in its interpreter, which must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header(config: pytest.Config) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gpu}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


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


@pytest.fixture(autouse=True)
def warnings_given_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that is given once per process is given once per test instead."""
    if sites := sys.modules.get("fused_rnn_dropout.sites"):
        monkeypatch.setattr(sites, "_warned", set())
