"""What the library sets out to reach, as data, and whether a measurement reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

from fused_rnn_dropout.cells import MODULES

from .measure import Interval, ratio_of
from .run import find
from .shapes import Shape

Measure = Callable[[dict[str, Any], str, Shape], "Interval | None"]


def ratio(task: str, ours: str, theirs: str) -> Measure:
    """Of the medians of two contenders."""

    def measure(results: dict[str, Any], cell: str, shape: Shape) -> Interval | None:
        rounds = find(results, cell, shape.name, task)
        if rounds is None or ours not in rounds or theirs not in rounds:
            return None
        return ratio_of(rounds[ours], rounds[theirs])

    return measure


def packed(results: dict[str, Any], cell: str, shape: Shape) -> Interval | None:
    """A packed batch over the padded one, times the fraction of it that is useful."""
    found = ratio("train", "all", "all, padded")(results, cell, shape)
    return None if found is None else Interval(*(value / shape.useful() for value in found))


def sgemm_share(results: dict[str, Any], cell: str, shape: Shape) -> Interval | None:
    """GFLOP/s of the layer's products, all other work included, over the best rate of sgemm."""
    rounds = find(results, cell, shape.name, "train")
    if rounds is None or "all" not in rounds:
        return None
    best = 1e9 * results["sgemm"]["best"]
    shares = sorted(shape.flops(cell, "train") / seconds / best for seconds in rounds["all"])
    return Interval(median(shares), shares[0], shares[-1])


def scaling(results: dict[str, Any], cell: str, shape: Shape) -> Interval | None:
    """One thread over two."""
    return ratio("scaling", "1 thread", "2 threads")(results, cell, shape)


def peak(ours: str) -> Measure:
    """Of peak memories."""

    def measure(results: dict[str, Any], cell: str, shape: Shape) -> Interval | None:
        mib = {e["contender"]: e["mib"] for e in results["memory"] if (e["cell"], e["shape"]) == (cell, shape.name)}
        if ours not in mib or "torch" not in mib:
            return None
        value = mib[ours] / mib["torch"]
        return Interval(value, value, value)

    return measure


class Criterion(NamedTuple):
    """``at_least``: the bar is from below. ``kinds``: of shapes; ``names``: only these shapes, where given."""

    meaning: str
    cells: tuple[str, ...]
    kinds: tuple[str, ...]
    measure: Measure
    bar: float
    at_least: bool = False
    names: tuple[str, ...] = ()

    def applies(self, cell: str, shape: Shape) -> bool:
        return cell in self.cells and shape.kind in self.kinds and (not self.names or shape.name in self.names)

    def met(self, value: float) -> bool:
        return value >= self.bar if self.at_least else value <= self.bar


_EACH, _LSTM, _GRU = MODULES, ("LSTM",), ("GRU",)
_ANY = ("large", "small", "other")

CRITERIA = (
    Criterion("every site / nn.LSTM without, train", _LSTM, ("large",), ratio("train", "all", "torch"), 1.10),
    Criterion("every site / nn.LSTM without, train", _LSTM, ("small",), ratio("train", "all", "torch"), 1.00),
    Criterion(
        "weight, input, output sites / nn.LSTM, train", _LSTM, ("large",), ratio("train", "weights", "torch"), 1.05
    ),
    Criterion("every site / nn.GRU without, train", _GRU, _ANY, ratio("train", "all", "torch"), 0.80),
    Criterion("every site / ours without, train", _EACH, _ANY, ratio("train", "all", "none"), 1.06),
    Criterion("ours without / nn.LSTM without, train", _LSTM, _ANY, ratio("train", "none", "torch"), 1.03),
    Criterion("Python loop / ours, train", _EACH, ("large",), ratio("train", "loop", "all"), 2.5, True),
    Criterion(
        "Python loop / ours, train", _EACH, ("small",), ratio("train", "loop", "all"), 6.0, True, ("small", "latency")
    ),
    Criterion("Python loop / ours, train", _EACH, ("small",), ratio("train", "loop", "all"), 50.0, True, ("pixels",)),
    Criterion("packed / padded times useful fraction, train", _EACH, ("packed",), packed, 1.15),
    Criterion("share of the sgemm rate, train", _LSTM, ("large",), sgemm_share, 0.80, True, ("awd-wide", "wide")),
    Criterion("two threads over one, train", _EACH, ("large",), scaling, 1.75, True),
    Criterion("peak memory, every site / torch", _EACH, ("large",), peak("all"), 1.0),
    Criterion("peak memory, recompute / torch", _EACH, ("large",), peak("recompute"), 0.5),
    Criterion("every site / nn.LSTM, eval", _LSTM, ("large",), ratio("eval", "all", "torch"), 1.05),
    Criterion("every site / nn.LSTM, eval", _LSTM, ("small",), ratio("eval", "all", "torch"), 0.80),
)


class Verdict(NamedTuple):
    """One criterion on one shape."""

    criterion: Criterion
    cell: str
    shape: str
    value: Interval

    @property
    def met(self) -> bool:
        return self.criterion.met(self.value.value)

    def __str__(self) -> str:
        if self.met:
            return "met"
        return f"missed by {abs(self.value.value - self.criterion.bar):.3f}"


def judged(results: dict[str, Any]) -> bool:
    """Whether the criteria are about such a measurement: float32 on a CPU."""
    return (results.get("device", "cpu"), results.get("dtype", "float32")) == ("cpu", "float32")


def verdicts(results: dict[str, Any]) -> Iterator[Verdict]:
    """Every criterion on every shape on which it was measured."""
    if not judged(results):
        return
    shapes = [Shape(**shape) for shape in results["shapes"]]
    for criterion in CRITERIA:
        for cell in criterion.cells:
            for shape in shapes:
                if criterion.applies(cell, shape):
                    value = criterion.measure(results, cell, shape)
                    if value is not None:
                        yield Verdict(criterion, cell, shape.name, value)
