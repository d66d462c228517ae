"""What a site is: its row in the table, the counters its masks are a function of, and what may be combined with it.

A *site* is a place in a layer where a mask applies. This file holds every table that the kernels share with
Python: the order of the thresholds, the bits of ``flags``, and the kinds of counters. ``csrc/core/counters.h`` and
``csrc/core/flags.h`` repeat them for C++, and a test compares the two.

``docs/semantics.md`` says what each site computes; ``docs/design.md`` how a site is added.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .cells import CELLS, Cell
from .options import (
    CellDropout,
    HiddenDropout,
    LockedDropout,
    Spec,
    StepDropout,
    UpdateDropout,
    WeightDropout,
    Zoneout,
    check_rate,
    with_rate,
)

# --------------------------------------------------------------------------------------------------------------------
# Counters
# --------------------------------------------------------------------------------------------------------------------

SEQ = 0xFFFFFFFF
"""The step of a mask that is drawn once per sequence, and the example of a mask that the whole batch shares."""

DOMAIN = 0x46524431
"""Separates the key derivation from every other use of Philox with the same pair of seeds ("FRD1")."""


class Kind(NamedTuple):
    """One row of the counter table: what sits in the counter words a, b, c and what the four words of a call serve."""

    number: int
    name: str
    a: str
    b: str
    c: str
    words: tuple[str, ...]


_STATE_WORDS = ("zoneout_c", "zoneout_h", "update_dropout", "cell_dropout")
_GATES = ("i/r", "f/z", "g/n", "o")
_UNITS = ("unit % 4 = 0", "unit % 4 = 1", "unit % 4 = 2", "unit % 4 = 3")
_COLUMNS = ("column % 4 = 0", "column % 4 = 1", "column % 4 = 2", "column % 4 = 3")
_ROWS = ("row % 4 = 0", "row % 4 = 1", "row % 4 = 2", "row % 4 = 3")

KINDS: tuple[Kind, ...] = (
    Kind(0, "STATE", "unit", "example", "step", _STATE_WORDS),
    Kind(1, "STATE_SEQUENCE", "unit", "example", "SEQ", _STATE_WORDS),
    Kind(2, "HIDDEN", "unit", "example", "SEQ", _GATES),
    Kind(3, "INPUT", "unit/4", "example", "step or SEQ", _UNITS),
    Kind(4, "INTER_LAYER", "unit/4", "example", "step or SEQ", _UNITS),
    Kind(5, "OUTPUT", "unit/4", "example", "step or SEQ", _UNITS),
    Kind(6, "INPUT_UNTIED", "unit", "example", "SEQ", _GATES),
    Kind(7, "WEIGHT_HH", "column/4", "row", "SEQ or example", _COLUMNS),
    Kind(8, "WEIGHT_IH", "column/4", "row", "SEQ or example", _COLUMNS),
    Kind(9, "WEIGHT_HR", "column/4", "row", "SEQ or example", _COLUMNS),
    Kind(10, "WEIGHT_ROW", "row/4", "0 W_hh, 1 W_ih, 2 W_hr", "SEQ", _ROWS),
    Kind(11, "EMBEDDING", "word/4", "0 or example", "SEQ or step", _ROWS),
    Kind(12, "WORD", "0", "example", "step", ("whether a word is dropped", "", "", "")),
    Kind(13, "NOISING", "0", "example", "step", ("whether a word is replaced", "by which word", "", "")),
)
"""The counter table. ``counter = (a, b, c, stream)`` with ``stream = kind | direction << 8 | layer << 16``."""

KIND: dict[str, int] = {kind.name: kind.number for kind in KINDS}


def stream(kind: int, layer: int, direction: int = 0) -> int:
    """The fourth counter word: ``kind | direction << 8 | layer << 16``.

    ``layer`` is the layer that reads the masked tensor: 0 for the input, ``num_layers`` for the output.
    """
    return kind | direction << 8 | layer << 16


# --------------------------------------------------------------------------------------------------------------------
# The table of sites
# --------------------------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """One row of the table of sites: its argument, its options, the rng group it draws from, and the field of a cell's
    row without which a cell does not have it.
    """

    name: str
    spec: type
    group: str
    meaning: str
    needs: str = ""

    def fits(self, cell: str) -> bool:
        """Whether ``cell``, a name of :data:`cells.CELLS`, has it."""
        return not self.needs or getattr(CELLS[cell], self.needs)


_DROP = "an element being zeroed"

SITES: tuple[Site, ...] = (
    Site("dropout", StepDropout, "inter_layer", _DROP),
    Site("input_dropout", LockedDropout, "input", _DROP),
    Site("inter_layer_dropout", LockedDropout, "inter_layer", _DROP),
    Site("output_dropout", LockedDropout, "output", _DROP),
    Site("hidden_dropout", HiddenDropout, "hidden", "a unit being zeroed"),
    Site("weight_dropout", WeightDropout, "weight", "a weight being zeroed"),
    Site("update_dropout", UpdateDropout, "state", "a candidate unit being zeroed"),
    Site("cell_dropout", CellDropout, "state", "a memory unit being zeroed", "carries"),
    Site("zoneout_c", Zoneout, "state", "a unit keeping its old value", "has_c"),
    Site("zoneout_h", Zoneout, "state", "a unit keeping its old value"),
)
"""Every site, in the order of the thresholds tensor."""

SITE: dict[str, Site] = {site.name: site for site in SITES}
SITE_INDEX: dict[str, int] = {site.name: index for index, site in enumerate(SITES)}
SITE_NAMES: tuple[str, ...] = tuple(SITE)


def sites_of(cell: str) -> tuple[str, ...]:
    """The names of the sites that ``cell`` has."""
    return tuple(site.name for site in SITES if site.fits(cell))


GROUPS: tuple[str, ...] = ("input", "inter_layer", "output", "hidden", "weight", "state")
"""The keys that ``rng={"weight": r1, None: r2}`` takes: sites that draw from one pair of seeds."""


def make_spec(name: str, value: Any) -> Spec:
    """The options object of site ``name`` from what the user gave: a rate, or the object itself.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that this site does not have.
        TypeError: an options object of another site.
    """
    site = SITE[name]
    if not isinstance(value, site.spec):
        if dataclasses.is_dataclass(value):
            raise TypeError(f"{name} should be a number or a {site.spec.__name__}, got {type(value).__name__}")
        value = site.spec(check_rate(name, value, site.meaning))
    if isinstance(value, LockedDropout) and not value.tied and name != "input_dropout":
        raise ValueError(f"{name} has no tied=False: only input_dropout has one mask per gate")
    if isinstance(value, Zoneout):
        if name == "zoneout_c" and (value.shared or value.output != "zoned"):
            option = "shared=True" if value.shared else "output='unzoned'"
            raise ValueError(f"zoneout_c has no {option}: give it to zoneout_h")
        if name == "zoneout_h" and value.gate_shared:
            raise ValueError("zoneout_h has no gate_shared=True: give it to zoneout_c")
    return value


# --------------------------------------------------------------------------------------------------------------------
# Thresholds
# --------------------------------------------------------------------------------------------------------------------


def threshold(rate: float) -> int:
    """P = round(rate * 2**32): an element is dropped (zoneout: keeps its old value) iff its 32-bit word < P."""
    return round(rate * 2**32)


def bad_threshold(thresholds: Sequence[int]) -> str | None:
    """What is wrong with the numbers of a tensor of thresholds, by site; None where nothing is."""
    for name, value in zip(SITE_NAMES, thresholds, strict=True):
        if not 0 <= value <= 2**32:
            return f"thresholds must be in [0, 2^32], got {value} for {name}, whose rate must be in [0, 1]"
    return None


def keep_scale(p_threshold: int) -> float:
    """The inverted scale 2**32 / (2**32 - P) in double precision; 0 where everything is dropped."""
    return 2**32 / (2**32 - p_threshold) if p_threshold < 2**32 else 0.0


# --------------------------------------------------------------------------------------------------------------------
# Flags: the static half of a configuration, as the operators take it
# --------------------------------------------------------------------------------------------------------------------

FLAG: dict[str, int] = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "HIDDEN",
            "HIDDEN_BATCH_SHARED",
            "WEIGHT_HH",
            "WEIGHT_IH",
            "WEIGHT_HR",
            "WEIGHT_ROW",
            "UPDATE",
            "UPDATE_SEQUENCE",
            "UPDATE_PAPER",
            "CELL",
            "CELL_STEP",
            "CELL_PAPER",
            "ZONEOUT_C",
            "ZONEOUT_C_SEQUENCE",
            "ZONEOUT_H",
            "ZONEOUT_H_SEQUENCE",
            "ZONEOUT_H_SHARED",
            "UNZONED",
            "MASKS_ON",
        )
    )
}
"""Bits of the ``flags`` argument of the layer operators. Without MASKS_ON they compute what eval computes."""


def output_differs(cell: Cell, flags: int) -> bool:
    """Whether the output of a layer has other numbers than the h that its backward reads."""
    return bool(flags & (FLAG["UNZONED"] | (FLAG["CELL"] if cell.scaled else 0)))


@dataclass(frozen=True)
class Plan:
    """Which sites are configured and with which options: all of a configuration but its rates.

    Each field holds the site's options (their rate set to 0, so that plans compare equal whatever the rates are), or
    None where the site is not configured. A plan never changes when a rate does, which is why compiled graphs survive.
    """

    cell: str
    dropout: StepDropout | None = None
    input_dropout: LockedDropout | None = None
    inter_layer_dropout: LockedDropout | None = None
    output_dropout: LockedDropout | None = None
    hidden_dropout: HiddenDropout | None = None
    weight_dropout: WeightDropout | None = None
    update_dropout: UpdateDropout | None = None
    cell_dropout: CellDropout | None = None
    zoneout_c: Zoneout | None = None
    zoneout_h: Zoneout | None = None
    reset_after: bool = True

    @staticmethod
    def make(cell: str, specs: dict[str, Spec], reset_after: bool = True) -> Plan:
        """The plan of the configured ``specs`` (site name to options) for ``cell``, a name of ``cells.CELLS``."""
        return Plan(cell, reset_after=reset_after, **{name: with_rate(spec, 0.0) for name, spec in specs.items()})  # type: ignore[arg-type]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The configured sites, in the order of the table."""
        return tuple(name for name in SITE_NAMES if getattr(self, name) is not None)

    @cached_property
    def eval_flags(self) -> int:
        """The ``flags`` of the layer operators with masks off."""
        chosen = {
            "HIDDEN": self.hidden_dropout is not None,
            "WEIGHT_HH": self.weight_dropout is not None,
            "UPDATE": self.update_dropout is not None,
            "CELL": self.cell_dropout is not None,
            "ZONEOUT_C": self.zoneout_c is not None,
            "ZONEOUT_H": self.zoneout_h is not None,
        }
        if hidden := self.hidden_dropout:
            chosen["HIDDEN_BATCH_SHARED"] = hidden.batch_shared
        if weight := self.weight_dropout:
            chosen["WEIGHT_IH"] = weight.inputs
            chosen["WEIGHT_HR"] = weight.projection
            chosen["WEIGHT_ROW"] = weight.mode == "row"
        if update := self.update_dropout:
            chosen["UPDATE_SEQUENCE"] = update.per == "sequence"
            chosen["UPDATE_PAPER"] = update.scale == "paper"
        if cell := self.cell_dropout:
            chosen["CELL_STEP"] = cell.per == "step"
            chosen["CELL_PAPER"] = cell.scale == "paper"
        if zoneout := self.zoneout_c:
            chosen["ZONEOUT_C_SEQUENCE"] = zoneout.per == "sequence"
        if zoneout := self.zoneout_h:
            chosen["ZONEOUT_H_SEQUENCE"] = zoneout.per == "sequence"
            chosen["ZONEOUT_H_SHARED"] = zoneout.shared
            chosen["UNZONED"] = zoneout.output == "unzoned"
        return sum(FLAG[name] for name, on in chosen.items() if on)

    @cached_property
    def train_flags(self) -> int:
        """The ``flags`` of the layer operators with masks on."""
        return self.eval_flags | FLAG["MASKS_ON"]

    @cached_property
    def reference_only(self) -> tuple[str, ...]:
        """The options asked for that only ``backend="reference"`` computes, as the user spelled them."""
        found = []
        if self.input_dropout and not self.input_dropout.tied:
            found.append("input_dropout=LockedDropout(tied=False)")
        if self.hidden_dropout and not self.hidden_dropout.tied:
            found.append("hidden_dropout=HiddenDropout(tied=False)")
        if self.weight_dropout and self.weight_dropout.per_example:
            found.append("weight_dropout=WeightDropout(per_example=True)")
        if self.zoneout_c and self.zoneout_c.gate_shared:
            found.append("zoneout_c=Zoneout(gate_shared=True)")
        if not self.reset_after:
            found.append("reset_after=False")
        return tuple(found)


def acting_in_eval(plan: Plan) -> tuple[str, ...]:
    """The configured sites that change what eval computes, so that torch.nn's layer would not compute the same.

    Zoneout leaves its expectation there, and ``scale="paper"`` its scale, each at every step. Rates are no part of a
    plan: at rate 0 such a site changes nothing yet, until ``set_rate`` says otherwise. With masks on (training,
    ``mc``) every site acts.
    """

    def acts(name: str) -> bool:
        spec = getattr(plan, name)
        return isinstance(spec, Zoneout) or getattr(spec, "scale", None) == "paper"

    return tuple(name for name in plan.names if acts(name))


_warned: set[str] = set()


def check_combination(
    cell: str, specs: dict[str, Spec], *, num_layers: int, proj_size: int, stacklevel: int = 2
) -> None:
    """Refuses what cannot be combined and warns, once, of what is seldom meant.

    Raises:
        ValueError: a site that ``cell`` does not have, ``dropout`` together with ``inter_layer_dropout``, a projection
            mask without a projection, or gate-shared zoneout together with another site on the cell.
    """
    for name in specs:
        if not SITE[name].fits(cell):
            raise ValueError(
                f"{name} is not a site of {CELLS[cell].called}: it has no cell state; allowed sites are "
                f"{', '.join(sites_of(cell))}"
            )
    if "dropout" in specs and "inter_layer_dropout" in specs:
        raise ValueError("dropout and inter_layer_dropout are the same site, between layers: give one of them")
    weight = specs.get("weight_dropout")
    if isinstance(weight, WeightDropout) and weight.projection and not proj_size:
        raise ValueError("weight_dropout has projection=True, but proj_size is 0: there is no projection to drop")
    zoneout = specs.get("zoneout_c")
    if isinstance(zoneout, Zoneout) and zoneout.gate_shared:
        others = [name for name in ("zoneout_h", "cell_dropout", "update_dropout") if name in specs]
        if others:
            raise ValueError(f"zoneout_c with gate_shared=True cannot be combined with {', '.join(others)}")
    if "inter_layer_dropout" in specs and num_layers == 1:
        warnings.warn(
            "inter_layer_dropout sits between layers, so it expects num_layers greater than 1, but got "
            "num_layers=1: it does nothing",
            stacklevel=stacklevel + 1,
        )
    if "zoneout_c" in specs and "cell_dropout" in specs and "zoneout_c+cell_dropout" not in _warned:
        _warned.add("zoneout_c+cell_dropout")
        warnings.warn(
            "zoneout_c with cell_dropout: the mask is applied first, then zoneout; with per='step' a dropped "
            "unit can be kept alive by its old value",
            stacklevel=stacklevel + 1,
        )
