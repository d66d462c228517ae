"""pytest's option ``--sample``: a share of the cases of every test that has many, another one for each commit."""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Iterator

import pytest
import sampling

FEW = 4
"""A test with no more cases than this keeps all of them, one with more at least as many."""
SMALL = 8
"""Of a parameter with no more values than this, a sample has every value."""


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"should be above 0 and at most 1, got {text}")
    return value


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("sample")
    group.addoption(
        "--sample", type=_share, metavar="SHARE", help="of the cases of each test that has many, this share"
    )
    group.addoption("--sample-seed", metavar="TEXT", help="what chooses them (default: the hash of the commit)")


def _test(item: pytest.Item) -> tuple[str, bool]:
    """The test that it is a case of. Cases that are skipped here do not stand in for others."""
    return item.nodeid.partition("[")[0], item.get_closest_marker("skip") is not None


def _of_small_parameters(cases: list[pytest.Item]) -> dict[pytest.Item, set[tuple[str, int]]]:
    """By case, the value of each parameter that has few."""
    places = {case: dict(case.callspec.indices) if hasattr(case, "callspec") else {} for case in cases}
    values = defaultdict(set)
    for indices in places.values():
        for name, index in indices.items():
            values[name].add(index)
    return {
        case: {(name, index) for name, index in indices.items() if len(values[name]) <= SMALL}
        for case, indices in places.items()
    }


class Sample:
    """The plugin of one run with ``--sample``."""

    def __init__(self, share: float, seed: str) -> None:
        self.share, self.seed = share, seed

    def pytest_report_header(self) -> str:
        again = f"--sample {self.share:g} --sample-seed {self.seed}"
        return f"a sample of the cases of large tests: {again}; without --sample all of them run"

    def kept(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        tests = defaultdict(list)
        for item in items:
            tests[_test(item)].append(item)
        for (name, _), cases in tests.items():
            traits = _of_small_parameters(cases)
            whole = cases[0].get_closest_marker("whole") is not None
            count = len(cases) if whole else max(FEW, math.ceil(self.share * len(cases)))
            yield from sampling.sample(cases, count, f"{self.seed} {name}", traits.__getitem__)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Takes the other cases out, after ``-k`` and ``-m`` chose; pytest's summary counts them as deselected."""
        kept = set(self.kept(items))
        left_out = [item for item in items if item not in kept]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item in kept]


def configure(config: pytest.Config) -> bool:
    """Makes the run a sample where ``--sample`` asks for it; returns whether it did.

    The seed is looked up once: the workers of pytest-xdist are given it, and so choose the same cases. It is
    hypothesis' too.
    """
    options = config.option
    if options.sample is None:
        return False
    options.sample_seed = options.sample_seed or sampling.commit()
    if getattr(options, "hypothesis_seed", 0) is None:
        options.hypothesis_seed = str(random.Random(options.sample_seed).getrandbits(32))
    config.pluginmanager.register(Sample(options.sample, options.sample_seed), "sample")
    return True
