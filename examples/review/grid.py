"""The grid: which rows there are, how many seeds each has, and which rows make a sweep of a rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fused_rnn_dropout import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout

from .training import Settings

RATES = (0.1, 0.25, 0.5, 0.75)
"""Of every sweep, beside 0, which is its base."""

FORWARD = {"input_dropout": 0.2, "output_dropout": 0.5}
"""The forward dropout that recurrent sites are combined with."""

AWD = {"input_dropout": 0.2, "weight_dropout": 0.5, "output_dropout": 0.4}
AWD_EXTRAS = {"embedding_dropout": 0.1, "ar": 2.0, "tar": 1.0}

NONE = "none"

Sites = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One configuration; with a seed it is a cell.

    Attributes:
        name: how results call it.
        settings: a :class:`records.CellSettings`, of the kind of its task.
        seeds: how many.
    """

    name: str
    settings: Any
    seeds: int


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one rate.

    Attributes:
        name: what tables and plots call it.
        base: the row at rate 0.
        rows: the others by rate.
    """

    name: str
    base: str
    rows: Mapping[float, str]


@dataclass(frozen=True)
class Grid:
    """Rows in the order in which they are run: the named ones first."""

    named: tuple[Row, ...]
    others: tuple[Row, ...]
    sweeps: tuple[Sweep, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.named + self.others

    def only(self, text: str) -> Grid:
        """The rows whose names have ``text`` in them, in the same order."""
        named, others = (tuple(row for row in part if text in row.name) for part in (self.named, self.others))
        return Grid(named, others, ())

    def cells(self) -> Iterator[tuple[Row, int]]:
        """What is to be run, in order: a whole round of rows with one seed before the next seed."""
        for part in (self.named, self.others):
            for seed in range(1, max((row.seeds for row in part), default=0) + 1):
                yield from ((row, seed) for row in part if seed <= row.seeds)


def _without(sites: Sites, site: str) -> Sites:
    return {name: rate for name, rate in sites.items() if name != site}


class Builder:
    """Collects rows, changed settings of one base; one that two sweeps share stands once."""

    def __init__(self, base: Any) -> None:
        self.base, self.rows, self.sweeps = base, dict[str, Row](), list[Sweep]()

    def row(self, name: str, sites: Sites, seeds: int, **changes: Any) -> str:
        row = Row(name, dataclasses.replace(self.base, sites=sites, **changes), seeds)
        known = self.rows.setdefault(name, row)
        if known.settings != row.settings:
            raise ValueError(f"two rows are called {name!r}")
        return name

    def grid(self, named: int | None = None) -> Grid:
        """What it has, of which the first ``named`` rows are the named ones; all if None."""
        rows = tuple(self.rows.values())
        return Grid(rows[:named], rows[len(rows) if named is None else named :], tuple(self.sweeps))

    def sweep(
        self,
        name: str,
        sites: Callable[[float], Sites],
        base: str = NONE,
        rates: Sequence[float] = RATES,
        extras: Callable[[float], Mapping[str, float]] = lambda rate: {},
        **changes: Any,
    ) -> None:
        rows = {rate: self.row(f"{name} {rate:g}", sites(rate), 3, extras=extras(rate), **changes) for rate in rates}
        self.sweeps.append(Sweep(name, base, rows))


def _named(made: Builder) -> None:
    """The rows that the review's techniques are compared by, at the rates of a first, coarser comparison."""
    row, seeds = made.row, 5
    row(NONE, {}, seeds)
    row("weight_dropout 0.5", {"weight_dropout": 0.5}, seeds)
    row("awd sites", AWD, seeds)
    row("cell_dropout 0.3", {"cell_dropout": 0.3}, seeds)
    row("locked in 0.2, out 0.5", FORWARD, seeds)
    row("update_dropout 0.25", {"update_dropout": 0.25}, seeds)
    row("hidden_dropout 0.3", {"hidden_dropout": 0.3}, seeds)
    row("hidden_dropout untied 0.3", {"hidden_dropout": HiddenDropout(0.3, tied=False)}, seeds, backend="reference")
    row("zoneout c 0.15, h 0.15", {"zoneout_c": 0.15, "zoneout_h": 0.15}, seeds)
    row("zoneout c 0.5, h 0.05", {"zoneout_c": 0.5, "zoneout_h": 0.05}, seeds)
    row("output per step 0.5", {"output_dropout": LockedDropout(0.5, per="step")}, seeds)
    row("update_dropout 0.5", {"update_dropout": 0.5}, seeds)
    row("update_dropout per sequence 0.5", {"update_dropout": UpdateDropout(0.5, per="sequence")}, seeds)
    row("cell_dropout per step, paper 0.25", {"cell_dropout": CellDropout(0.25, per="step", scale="paper")}, seeds)


def _site_sweeps(made: Builder) -> None:
    """A sweep of each site alone, and of its other form where it has one."""

    def forward(p: float, per: str) -> Sites:
        return {name: LockedDropout(p, per=per) for name in ("input_dropout", "output_dropout")}

    made.sweep("input_dropout", lambda p: {"input_dropout": p})
    made.sweep("output_dropout", lambda p: {"output_dropout": p})
    made.sweep("input, output locked", lambda p: forward(p, "sequence"))
    made.sweep("input, output per step", lambda p: forward(p, "step"))
    made.sweep("hidden_dropout", lambda p: {"hidden_dropout": p})
    made.sweep("weight_dropout", lambda p: {"weight_dropout": p})
    made.sweep("weight_dropout by row", lambda p: {"weight_dropout": WeightDropout(p, mode="row")})
    made.sweep("update_dropout", lambda p: {"update_dropout": p})
    made.sweep("update_dropout per sequence", lambda p: {"update_dropout": UpdateDropout(p, per="sequence")})
    made.sweep("cell_dropout", lambda p: {"cell_dropout": p})
    made.sweep("cell_dropout per step", lambda p: {"cell_dropout": CellDropout(p, per="step")})
    made.sweep("zoneout_c", lambda z: {"zoneout_c": z})
    made.sweep("zoneout_h", lambda z: {"zoneout_h": z})
    for c, h in ((0.25, 0.025), (0.5, 0.5)):  # of the grid's pairs; the others are among the rows above
        made.row(f"zoneout c {c:g}, h {h:g}", {"zoneout_c": c, "zoneout_h": h}, 3)
    for site in AWD:
        made.row(f"awd sites without {site}", _without(AWD, site), 3)
    shared = {"zoneout_c": 0.15, "zoneout_h": Zoneout(0.15, shared=True)}
    made.row("zoneout shared 0.15", shared, 3)


def _with_forward(site: str) -> Callable[[float], Sites]:
    return lambda p: FORWARD | {site: p}


def _other_sweeps(made: Builder) -> None:
    """What moves the best rate: forward dropout, width, depth; then the other cell, and Adam's learning rate."""
    forward = "locked in 0.2, out 0.5"
    for site in ("weight_dropout", "hidden_dropout", "update_dropout", "cell_dropout"):
        made.sweep(f"{site} with {forward}", _with_forward(site), base=forward)
    for hidden in (128, 512):
        base = made.row(f"none, H {hidden}", {}, 3, hidden=hidden)
        made.sweep(f"weight_dropout, H {hidden}", lambda p: {"weight_dropout": p}, base, hidden=hidden)
    made.row("none, 2 layers", {}, 3, layers=2)
    for per in ("sequence", "step"):
        for p in (0.25, 0.5):
            places = ("input_dropout", "inter_layer_dropout", "output_dropout")
            sites = {place: LockedDropout(p, per=per) for place in places}
            made.row(f"all places per {per} {p:g}, 2 layers", sites, 3, layers=2)
    made.row("none, GRU", {}, 3, cell="GRU")
    for site, rate in (("weight_dropout", 0.5), ("hidden_dropout", 0.25), ("update_dropout", 0.25),
                       ("cell_dropout", 0.25), ("zoneout_h", 0.1)):  # fmt: skip
        made.row(f"{site} {rate:g}, GRU", {site: rate}, 3, cell="GRU")
    for rate in (2e-3, 8e-3):
        made.row(f"none, Adam {rate:g}", {}, 3, rate=rate)


def _with_extras(made: Builder) -> None:
    """What :mod:`recipe` adds to the sites: AWD-LSTM and what it is made of, losses of two passes, changing rates."""
    weight = {"weight_dropout": 0.5}

    def no_sites(rate: float) -> Sites:
        return {}

    made.sweep("embedding_dropout", no_sites, extras=lambda p: {"embedding_dropout": p})
    made.sweep("AR, TAR", no_sites, rates=(1, 2, 4), extras=lambda alpha: {"ar": alpha, "tar": alpha / 2})
    made.sweep("fraternal", lambda kappa: weight, base="weight_dropout 0.5", rates=(0.1, 0.15, 0.3),
               extras=lambda kappa: {"fraternal": kappa})  # fmt: skip
    made.row("weight_dropout 0.5, curriculum", weight, 3, extras={"curriculum": 10.0})
    made.row("awd", AWD, 5, extras=AWD_EXTRAS)
    made.row("awd, NT-ASGD", AWD, 5, extras=AWD_EXTRAS | {"nt_asgd": 5})
    for extra in AWD_EXTRAS:
        made.row(f"awd without {extra}", AWD, 5, extras={name: x for name, x in AWD_EXTRAS.items() if name != extra})
    made.row("awd without weight_dropout", _without(AWD, "weight_dropout"), 5, extras=AWD_EXTRAS)
    made.row("weight_dropout 0.5, annealed", weight, 3, extras={"annealed": 10.0})
    for variant, kappa in (("pi", 0.15), ("eld", 0.25), ("rdrop", 1.0)):
        made.row(f"{variant} {kappa:g}", weight, 3, extras={variant: kappa})
    for name in ("word_dropout", "data_noising"):
        for rate in (0.1, 0.25):
            made.row(f"{name} {rate:g}", {}, 3, extras={name: rate})
    made.row("random lengths", {}, 3, extras={"random_bptt": 0.05})
    made.row("awd, random lengths", AWD, 3, extras=AWD_EXTRAS | {"random_bptt": 0.05})
    never = made.base.epochs  # too many epochs that do not count for the average to begin
    made.row("none, SGD", {}, 3, extras={"nt_asgd": never})
    made.row("none, NT-ASGD", {}, 3, extras={"nt_asgd": 5})
    made.row("awd, SGD", AWD, 3, extras=AWD_EXTRAS | {"nt_asgd": never})


def study() -> Grid:
    """The whole grid of the character model."""
    made = Builder(Settings())
    _named(made)
    count = len(made.rows)
    _site_sweeps(made)
    _other_sweeps(made)
    _with_extras(made)
    return made.grid(count)


def tiny() -> Grid:
    """A grid of three small rows and two seeds, for a test: it shows that everything runs, not what is good."""
    made = Builder(Settings(hidden=64, characters=20_000, valid_characters=5_000, epochs=6, passes=2))
    made.row(NONE, {}, 2)
    for rate in (0.25, 0.5):
        made.row(f"weight_dropout {rate:g}", {"weight_dropout": rate}, 2)
    rows = tuple(made.rows.values())
    sweep = Sweep("weight_dropout", NONE, {0.25: "weight_dropout 0.25", 0.5: "weight_dropout 0.5"})
    return Grid(rows[:2], rows[2:], (sweep,))
