"""Statistics that the numbers of any backend, and the masks made of them, must satisfy.

Each ``check_*`` takes a :class:`Source` and raises ``AssertionError`` where a statistic is more than :data:`LIMIT`
standard deviations from what independent numbers would give. All seeds are fixed, so a pass is a pass for good; there
are under three thousand statistics, so that other seeds would raise a false alarm about once in five hundred runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import KIND, KINDS, SEQ, stream, threshold

LIMIT = 5.0
RATES = (0.01, 0.1, 0.15, 0.3, 0.5, 0.65, 0.9)
EDGES = (1, 2**15, 2**16 - 1, 2**16, 2**16 + 1, 3 * 2**15, 2**32 - 2**16, 2**32 - 1)
"""Thresholds at which the halves of a number meet; by the largest, at most one element in 2**32 is kept."""
AXES = ("steps", "rows", "elements")
LAGS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 256)
RNG = (0x9E3779B97F4A7C15 - 2**64, 0x2545F4914F6CDD1D)


def _dropped(numbers: Tensor, p: float) -> Tensor:
    return masks.zoned(numbers, torch.tensor(threshold(p)), torch.float32) == 1


def _factor(numbers: Tensor, p: float) -> Tensor:
    return masks.factor(numbers, torch.tensor(threshold(p)), torch.float32)


def _draw() -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (2,))


@dataclass(frozen=True)
class Source:
    """What is checked: where numbers come from, how they become masks, and how each call gets its ``rng``."""

    words: Callable[[Tensor, Tensor, Tensor, int, int], Tensor] = masks.words
    dropped: Callable[[Tensor, float], Tensor] = _dropped
    factor: Callable[[Tensor, float], Tensor] = _factor
    draw: Callable[[], Tensor] = _draw

    def block(
        self,
        kind: str,
        shape: tuple[int, int, int],
        rng: tuple[int, int] = RNG,
        layer: int = 1,
        direction: int = 0,
        gate: int = 0,
    ) -> Tensor:
        """Numbers (steps, rows, n) of one kind, steps and rows from 0; the step is SEQ where ``shape[0]`` is 0."""
        steps = torch.arange(shape[0]) if shape[0] else torch.tensor([SEQ])
        of_kind = stream(KIND[kind], layer, direction, gate)
        return self.words(torch.tensor(rng), torch.arange(shape[1]), steps, shape[2], of_kind)

    def replace(self, **changes: Callable) -> Source:
        return dataclasses.replace(self, **changes)


def assert_small(name: str, z: float) -> None:
    if not abs(z) < LIMIT:
        raise AssertionError(f"{name}: z = {z:.1f}, more than {LIMIT} standard deviations from chance")


def rate_z(count: int, total: int, probability: float) -> float:
    """Of a count against the binomial distribution."""
    return (count - total * probability) / (total * probability * (1 - probability)) ** 0.5


def correlation_z(one: Tensor, two: Tensor, p: float) -> float:
    """Of two masks that should be independent, each true with probability p."""
    both, total = int((one & two).sum()), one.numel()
    covariance = both - p * (int(one.sum()) + int(two.sum())) + p * p * total
    return covariance / (total**0.5 * p * (1 - p))


def chi_square_z(statistic: float, freedom: int) -> float:
    """Of a chi-square statistic (Wilson and Hilferty's cube root)."""
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


def _large_blocks(source: Source) -> Iterator[tuple[str, Tensor]]:
    """2**22 numbers of every kind, in shapes that occur: per step where the kind has steps, else per sequence."""
    for kind in KINDS:
        steps = 16 if "step" in kind.step else 0
        yield kind.name, source.block(kind.name, (steps, 2**11 // (steps or 1), 2**11))


def check_rate(source: Source) -> None:
    """Each kind, and all together (6e7 numbers), drop with probability p; exactly never and always at the ends."""
    counts = dict.fromkeys(RATES, 0)
    total = 0
    for name, numbers in _large_blocks(source):
        total += numbers.numel()
        for p in RATES:
            count = int(source.dropped(numbers, p).sum())
            assert_small(f"rate of {name} at p={p}", rate_z(count, numbers.numel(), p))
            counts[p] += count
        assert not source.dropped(numbers, 0.0).any()
        assert source.dropped(numbers, 1.0).all()
    for p, count in counts.items():
        assert_small(f"rate of all kinds at p={p}", rate_z(count, total, p))


def check_edges(source: Source) -> None:
    """Rates that both halves of a number decide, or the lower one alone, which takes the second call."""
    for name, numbers in _large_blocks(source):
        for p_threshold in EDGES:
            p = p_threshold / 2**32
            count, expected = int(source.dropped(numbers, p).sum()), numbers.numel() * p
            if min(expected, numbers.numel() - expected) < 20:  # seldom one at all
                assert min(count, numbers.numel() - count) <= 2, f"{name}: {count} dropped at P = {p_threshold}"
            else:
                assert_small(f"rate of {name} at P = {p_threshold}", rate_z(count, numbers.numel(), p))


def check_halves(source: Source) -> None:
    """The lower half of a number is as random as the upper one, and independent of it."""
    for name, numbers in _large_blocks(source):
        lower = numbers << 16 & 0xFFFFFFFF  # in the upper half's place
        for p in (0.5, 0.1):
            one, two = source.dropped(numbers, p), source.dropped(lower, p)
            assert_small(f"lower halves of {name} at p={p}", rate_z(int(two.sum()), numbers.numel(), p))
            assert_small(f"halves of {name} at p={p}", correlation_z(one, two, p))


def check_mean(source: Source) -> None:
    """The mean of a factor is 1, so that a mask leaves expectations alone."""
    for name, numbers in _large_blocks(source):
        if name in ("UPDATE", "HIDDEN", "INPUT", "WEIGHT_HH"):
            for p in RATES:
                mean = float(source.factor(numbers, p).double().mean())
                assert_small(f"mean factor of {name} at p={p}", (mean - 1) / (p / (1 - p) / numbers.numel()) ** 0.5)


def check_lags(source: Source) -> None:
    """Masks at a distance along units, examples, steps, and along the rows and columns of a weight."""
    grids = (
        ("UPDATE", (8, 128, 4096), 2),
        ("UPDATE", (8, 8192, 64), 1),
        ("UPDATE", (4096, 16, 64), 0),
        ("HIDDEN", (0, 256, 4096), 2),
        ("HIDDEN", (0, 4096, 256), 1),
        ("INPUT", (8, 128, 4096), 2),
        ("INPUT", (8, 8192, 64), 1),
        ("INPUT", (4096, 16, 64), 0),
        ("WEIGHT_HH", (0, 1024, 4096), 2),
        ("WEIGHT_HH", (0, 4096, 1024), 1),
    )
    for kind, shape, axis in grids:
        numbers = source.block(kind, shape)
        for p in (0.5, 0.1):
            dropped = source.dropped(numbers, p)
            size = dropped.shape[axis]
            for lag in LAGS:
                one, two = dropped.narrow(axis, 0, size - lag), dropped.narrow(axis, lag, size - lag)
                assert_small(f"{kind} at lag {lag} along {AXES[axis]}, p={p}", correlation_z(one, two, p))


def check_pairs(source: Source) -> None:
    """Masks of two gates, kinds, layers, directions, calls and seeds, and those of a call's fields, are independent."""
    low, high = RNG[0] & 0xFFFFFFFF, RNG[0] >> 32
    base = source.block("UPDATE", (16, 128, 256))
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for kind in ("INPUT", "HIDDEN"):
        of_gate = [source.block(kind, (0, 1024, 512), gate=gate) for gate in range(4)]
        for one, two in itertools.combinations(range(4), 2):
            pairs[f"gates {one} and {two} of {kind}"] = of_gate[one], of_gate[two]
    for one, two in itertools.combinations(range(8), 2):
        pairs[f"fields {one} and {two}"] = base[..., one::8], base[..., two::8]
    of_kind = {kind.name: source.block(kind.name, (8, 128, 512)) for kind in KINDS}
    for one, two in itertools.combinations(of_kind, 2):
        pairs[f"kinds {one} and {two}"] = of_kind[one], of_kind[two]
    for layer in (0, 2, 3, 257):
        pairs[f"layers 1 and {layer}"] = base, source.block("UPDATE", (16, 128, 256), layer=layer)
    pairs["directions"] = base, source.block("UPDATE", (16, 128, 256), direction=1)
    others = {"swapped halves of the seed": (low << 32 | high & 0xFFFFFFFF, RNG[1]), "swapped pair": (RNG[1], RNG[0])}
    for name, step in (("next", 1), ("previous", -1), ("next but 2**32", 2**32)):
        others[f"{name} offset"] = RNG[0], RNG[1] + step
        others[f"{name} seed"] = RNG[0] + step, RNG[1]
    for bit in range(64):
        others[f"seed with bit {bit} flipped"] = RNG[0] ^ 1 << bit, RNG[1]
        others[f"offset with bit {bit} flipped"] = RNG[0], RNG[1] ^ 1 << bit
    for name, rng in others.items():
        signed = tuple((number + 2**63) % 2**64 - 2**63 for number in rng)
        pairs[name] = base, source.block("UPDATE", (16, 128, 256), rng=signed)
    for name, (one, two) in pairs.items():
        for p in (0.5, 0.1):
            assert_small(f"{name}, p={p}", correlation_z(source.dropped(one, p), source.dropped(two, p), p))


def check_joint(source: Source) -> None:
    """All 256 combinations of a call's eight fields are as frequent as independence makes them."""
    for kind in KINDS:
        fields = source.block(kind.name, (8, 256, 2048)).reshape(-1, 8)
        for p in (0.3, 0.5):
            cell = (source.dropped(fields, p).long() << torch.arange(8)).sum(-1)
            counts = torch.bincount(cell, minlength=256).double()
            ones = torch.tensor([index.bit_count() for index in range(256)], dtype=torch.float64)
            expected = len(cell) * p**ones * (1 - p) ** (8 - ones)
            statistic = float(((counts - expected) ** 2 / expected).sum())
            assert_small(f"eight fields of {kind.name}, p={p}", chi_square_z(statistic, 255))


def check_sums(source: Source) -> None:
    """Sums over units, examples or steps vary as binomial sums do: masks are not correlated in blocks."""
    for kind in KINDS:
        steps = 64 if kind.step != "SEQ" else 0
        numbers = source.block(kind.name, (steps, 64 if steps else 1024, 64))
        for axis, p in itertools.product((0, 1, 2) if steps else (1, 2), (0.1, 0.5)):
            sums = source.dropped(numbers, p).sum(axis).double().flatten()
            n, variance = numbers.shape[axis], p * (1 - p)
            ratio = float(((sums - n * p) ** 2).sum()) / (n * variance)
            spread = (len(sums) * (2 + (1 - 6 * variance) / (n * variance))) ** 0.5
            assert_small(f"sums of {kind.name} over {AXES[axis]}, p={p}", (ratio - len(sums)) / spread)


def check_birthday(source: Source) -> None:
    """Of 2**16 or more masks of 64 units no two are equal: chance makes a pair about once in 2**31 runs."""
    for kind, shape in (("INPUT", (32, 4096, 64)), ("WEIGHT_HH", (0, 2**17, 64)), ("UPDATE", (16, 4096, 64))):
        dropped = source.dropped(source.block(kind, shape), 0.5).reshape(-1, 64)
        patterns = (dropped.long() << torch.arange(64)).sum(-1)
        repeated = len(patterns) - len(patterns.unique())
        assert repeated == 0, f"{repeated} of {len(patterns)} masks of {kind} occur twice"


def check_calls(source: Source) -> None:
    """Successive calls draw other, independent masks."""
    torch.manual_seed(3)
    blocks = [source.block("UPDATE", (8, 128, 64), rng=tuple(source.draw().tolist())) for _ in range(8)]
    for (i, one), (j, two) in itertools.combinations(enumerate(blocks), 2):
        for p in (0.5, 0.1):
            z = correlation_z(source.dropped(one, p), source.dropped(two, p), p)
            assert_small(f"calls {i} and {j}, p={p}", z)


CHECKS = (
    check_rate,
    check_edges,
    check_halves,
    check_mean,
    check_lags,
    check_pairs,
    check_joint,
    check_sums,
    check_birthday,
    check_calls,
)
