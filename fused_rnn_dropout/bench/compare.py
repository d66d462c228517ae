"""``bench compare``: two results of the same measurements, and which of their differences are more than noise.

A difference is told only where the whole interval of the ratio of medians lies beyond a threshold. The intervals are
bootstrapped over rounds, at a level at which of all comparisons together one in twenty is wrong (Bonferroni). What
changes between two runs and not within one, such as another load or clock of the machine, no interval shows: where
both runs measured a layer of torch.nn's, times are taken as multiples of its, in which such a change cancels.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .measure import Interval, bootstrap
from .report import shapes_of, spread
from .run import load
from .tables import table

REGRESSION = 3
"""Exit status where something of the library's is slower."""

FEWEST_TO_COMPARE = 5
"""Rounds below which nothing is told of a contender."""

_TORCHS = ("nn", "torch")
_NONE = "none"


class Place(NamedTuple):
    """What was measured: the same in both results."""

    cell: str
    shape: str
    task: str
    contender: str


class Change(NamedTuple):
    """A contender's time in the second result over that in the first, and what that means."""

    place: Place
    ratio: Interval | None
    verdict: str


def rounds_of(results: dict[str, Any]) -> dict[Place, list[float]]:
    """Seconds of every round, by what was measured."""
    sizes = {shape.name: f"{shape.sizes}{', packed' * (shape.kind == 'packed')}" for shape in shapes_of(results)}
    return {
        Place(entry["cell"], sizes[entry["shape"]], entry["task"], name): seconds
        for entry in results["timings"]
        for name, seconds in entry["rounds"].items()
    }


def ratio(
    before: tuple[Sequence[float], Sequence[float]], after: tuple[Sequence[float], Sequence[float]], level: float
) -> Interval:
    """Of the second run's time to the first's.

    Args:
        before, after: seconds of a contender, and of what they are multiples of, in the same rounds.
        level: of the interval.
    """
    rounds = [list(zip(*run, strict=False)) for run in (before, after)]  # only those in which both took part

    def of(*chosen: Sequence[int]) -> float:
        first, last = (
            median(run[i][0] for i in picked) / median(run[i][1] for i in picked)
            for run, picked in zip(rounds, chosen, strict=True)
        )
        return last / first

    counts = [len(run) for run in rounds]
    return Interval(of(*map(range, counts)), *bootstrap(of, *counts, draws=2000, level=level))


def verdict(found: Interval, threshold: float) -> str:
    if found.low > 1 + threshold:
        return "slower"
    if found.high < 1 - threshold:
        return "faster"
    return "the same" if found.low > 1 - threshold and found.high < 1 + threshold else "cannot be told"


def changes(
    before: dict[Place, list[float]], after: dict[Place, list[float]], reference: str | None, threshold: float
) -> Iterator[Change]:
    """Every contender that both have.

    Args:
        reference: the contender whose times the others' are multiples of; None for seconds.
        threshold: the smallest change that is told, as a share.
    """
    common = [place for place in before if place in after and place.contender != reference]
    level = 1 - 0.05 / max(1, len(common))
    for place in common:
        pair = []
        for run in (before, after):
            seconds = run[place]
            beside = run.get(place._replace(contender=reference)) if reference else [1.0] * len(seconds)
            pair.append((seconds, beside or []))
        if min(len(seconds) for run in pair for seconds in run) < FEWEST_TO_COMPARE:
            yield Change(place, None, f"fewer than {FEWEST_TO_COMPARE} rounds")
            continue
        found = ratio(pair[0], pair[1], level)
        yield Change(place, found, verdict(found, threshold))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the two were measured on, where it is not the same."""
    found = []
    for name in ("processor", "cores", "threads", "torch", "python", "fused_rnn_dropout", "instruction_set", "gpu"):
        first, last = (results["environment"].get(name) for results in (before, after))
        if name == "gpu":
            first, last = (gpu and gpu["name"] for gpu in (first, last))
        if first != last:
            found.append(f"{name}: {first}, then {last}")
    return found


def _reference(asked: str | None, before: dict[Place, list[float]], after: dict[Place, list[float]]) -> str | None:
    both = {place.contender for place in before} & {place.contender for place in after}
    if asked is None:
        return next((name for name in _TORCHS if name in both), None)
    if asked == _NONE:
        return None
    if asked not in both:
        raise ValueError(f"--relative-to {asked}: allowed are {', '.join([*sorted(both), _NONE])}")
    return asked


def _comparable(options: argparse.Namespace, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises ``ValueError`` where no measurement of the two is the same."""
    for part in ("device", "dtype", "sites"):
        first, last = (results.get(part, "") for results in (before, after))
        if first != last:
            raise ValueError(
                f"{options.before} and {options.after} have no measurement in common: {part} is {first or 'none'}, "
                f"then {last or 'none'}"
            )


def compare(options: argparse.Namespace) -> int:
    """Prints what changed; returns the exit status.

    Raises:
        ValueError: the two have nothing in common, or an option is out of range.
    """
    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold should be a share from 0 to 1, got {options.threshold}")
    results = [load(path) for path in (options.before, options.after)]
    _comparable(options, *results)
    before, after = map(rounds_of, results)
    if not before.keys() & after.keys():
        raise ValueError(f"{options.before} and {options.after} have no cell, shape, task and contender in common")
    for text in differences(*results):
        print(f"note: measured with another {text}", file=sys.stderr)
    reference = _reference(options.relative_to, before, after)
    found = list(changes(before, after, reference, options.threshold))
    if reference:
        print(f"As multiples of the time of {reference}, whose own changed by these factors:\n")
        itself = [
            change for change in changes(before, after, None, options.threshold) if change.place.contender == reference
        ]
        print(_table(itself, verdicts=False), end="\n\n")
    print(_table(found))
    ours = {name for one in results for name in one.get("ours", ())}
    slower = [change for change in found if change.verdict == "slower"]
    worse = [change for change in slower if change.place.contender in ours or not ours]
    counts = Counter(change.verdict for change in found)
    print(
        f"\n{', '.join(f'{what}: {count}' for what, count in sorted(counts.items()))}, at a threshold of "
        f"{100 * options.threshold:g} %. {f'{len(worse)} of ours slower.' if worse else 'Nothing of ours is slower.'}"
    )
    return REGRESSION if worse else 0


def _table(found: Sequence[Change], verdicts: bool = True) -> str:
    head = ("", "T, B, I, H", "task", "", "after / before", "")
    rows = [(*change.place, spread(change.ratio), change.verdict) for change in found]
    return table(head, rows) if verdicts else table(head[:-1], [row[:-1] for row in rows])


def add(commands: Any) -> None:
    """Adds ``compare`` to the bench's commands."""
    parser = commands.add_parser(
        "compare",
        help="tell regressions between two results from noise",
        description="Compares two results, of run or of the bench as a whole. Exit status 0 where nothing of this "
        f"library is slower, {REGRESSION} where something is, 1 where they cannot be compared.",
    )
    parser.add_argument("before", type=Path, help="the JSON of the first result")
    parser.add_argument("after", type=Path, help="the JSON of the second")
    parser.add_argument(
        "--threshold", type=float, default=0.03, metavar="SHARE", help="the smallest change told (default: 0.03)"
    )
    parser.add_argument(
        "--relative-to",
        metavar="NAME",
        help=f"the contender whose times the others' are multiples of; {_NONE} for seconds (default: torch.nn's layer "
        "where both have it, else seconds)",
    )
