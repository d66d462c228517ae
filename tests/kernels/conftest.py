"""The fixture ``target``, and what every test of the kernels has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from targets import Target, left_out

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out the combinations of a test's parameters that their target cannot run: they are no cases."""
    kept = []
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"))
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if isinstance(params.get("target"), Target):
                if left_out(params["target"], params):
                    continue
                if config.option.on_host:
                    item.add_marker(pytest.mark.skip(reason="it names its target itself, with --on-host or without"))
        kept.append(item)
    items[:] = kept


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One of the targets that ``targets.on`` names; within the test its kernels run where it says."""
    target: Target = request.param
    if target.backend == "triton":
        pytest.importorskip("triton", reason="the package triton is not installed")
    torch.set_num_threads(1)  # test_geometry.py is about threads
    with target.chosen():
        yield target
