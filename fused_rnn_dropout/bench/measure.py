"""Paired timing, and the statistics of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

_LIMITS = "--threads should be at least 1, --rounds at least 2 and --budget above 0"
FEWEST, FEWEST_SLOW = 5, 2
"""Rounds in which a contender takes part at least, and one of which a single call takes a quarter of the budget."""


class Interval(NamedTuple):
    """A median, or a ratio of two, with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def synchronize(device: str) -> None:
    """Waits for what was launched; a CPU has nothing to wait for."""
    if device != "cpu":
        torch.accelerator.synchronize()


Clock = Callable[[], float]


class Effort(NamedTuple):
    """On how many threads to measure, and how long: paired rounds, or seconds that the rounds may take."""

    threads: int = 2
    rounds: int | None = None
    budget: float = 10.0

    def check(self) -> None:
        """Raises ValueError for numbers with which nothing can be measured."""
        if self.threads < 1 or (self.rounds is not None and self.rounds < 2) or self.budget <= 0:
            raise ValueError(_LIMITS)

    def begin(self) -> None:
        """Sets torch's threads and random numbers.

        Raises:
            ValueError: as :meth:`check`.
        """
        self.check()
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)

    def paired(self, runs: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Seconds of each run in each round; of one thread its own, which stop while others have the processor."""
        clock = time.thread_time if self.threads == 1 else time.perf_counter
        return paired(runs, rounds=self.rounds, budget=self.budget, clock=clock).rounds


def timed(run: Callable[[], None], device: str = "cpu", clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


class Timings(NamedTuple):
    """Seconds by contender: of the first call, which compiles and warms up, and of each round.

    Round i is the same moment for everyone who took part in it; slow contenders take part in the first ones only.
    """

    first: dict[str, float]
    rounds: dict[str, list[float]]


def paired(
    runs: Mapping[str, Callable[[], None]],
    *,
    slow: Sequence[str] = (),
    rounds: int | None = None,
    budget: float = 10.0,
    device: str = "cpu",
    tick: Callable[[str], None] = lambda _: None,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Times every run in every round, in one order and then in the other.

    Args:
        runs: what to call, by name.
        slow: names that take part in :data:`FEWEST` rounds only, or :data:`FEWEST_SLOW`.
        rounds: how many rounds; by default as many as ``budget`` allows, from :data:`FEWEST` to 101.
        budget: seconds to spend, roughly.
        device: what to wait for.
        tick: called with a name before each call.
        clock: what tells seconds.
    """
    first = {}
    for name, run in runs.items():
        tick(name)
        first[name] = timed(run, device, clock)
    # A call that long is warm enough by its end.
    few = {name: FEWEST_SLOW if first[name] > budget / 4 else FEWEST for name in slow}
    warm = {}
    for name, run in runs.items():
        if few.get(name) == FEWEST_SLOW:
            warm[name] = 0.0
            continue
        tick(name)
        warm[name] = timed(run, device, clock)
    if rounds is None:
        spent = sum(warm.values())
        usual = sum(seconds for name, seconds in warm.items() if name not in slow)
        rounds = FEWEST + max(0, min(96, int((budget - FEWEST * spent) / max(usual, 1e-9))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            if index < few.get(name, rounds):
                tick(name)
                found[name].append(timed(runs[name], device, clock))
    return Timings(first, found)


def bootstrap(
    statistic: Callable[..., float], *counts: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The middle of a statistic over rounds drawn with replacement, from a fixed seed.

    Args:
        statistic: of the numbers of the rounds that were drawn: a list for each run.
        counts: how many rounds each run has.
        draws: how often.
        level: the share of the draws that lies in the middle.
    """
    generator = random.Random(0)
    values = sorted(statistic(*(generator.choices(range(n), k=n) for n in counts)) for _ in range(draws))
    outside = round(draws * (1 - level) / 2)
    return values[outside], values[draws - outside - 1]


def median_of(seconds: Sequence[float]) -> Interval:
    """Median seconds."""
    return Interval(median(seconds), *bootstrap(lambda chosen: median(seconds[i] for i in chosen), len(seconds)))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Ratio of the medians over the rounds in which both took part; rounds are resampled in pairs."""
    count = min(len(ours), len(theirs))

    def ratio(chosen: Sequence[int]) -> float:
        return median(ours[i] for i in chosen) / median(theirs[i] for i in chosen)

    return Interval(ratio(range(count)), *bootstrap(ratio, count))
