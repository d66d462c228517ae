"""What a site is: the options of each regulariser, the counters its masks are a function of, and what may be combined.

A *site* is a place in an LSTM or GRU where a mask applies. This file holds every table that the kernels share with
Python: the order of the thresholds, the bits of ``flags``, and the kinds of counters. ``csrc/core/counters.h`` and
``csrc/core/sites.h`` repeat them for C++, and a test compares the two.

``docs/semantics.md`` says what each site computes; ``docs/design.md`` how a site is added.
"""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

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
    Kind(11, "EMBEDDING", "word/4", "0 or example", "SEQ", _ROWS),
)
"""The counter table. ``counter = (a, b, c, stream)`` with ``stream = kind | direction << 8 | layer << 16``."""

KIND: dict[str, int] = {kind.name: kind.number for kind in KINDS}


def stream(kind: int, layer: int, direction: int = 0) -> int:
    """The fourth counter word: ``kind | direction << 8 | layer << 16``.

    ``layer`` is the layer that reads the masked tensor: 0 for the input, ``num_layers`` for the output.
    """
    return kind | direction << 8 | layer << 16


# --------------------------------------------------------------------------------------------------------------------
# Options of each site
# --------------------------------------------------------------------------------------------------------------------


def _check_rate(name: str, rate: Any, meaning: str) -> float:
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= float(rate) <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of {meaning}, got {rate!r}"
        )
    return float(rate)


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
        raise ValueError(f"{name} should be one of {', '.join(map(repr, allowed))}, got {value!r}")


_BOOL = (True, False)
_PER = ("sequence", "step")


@dataclass(frozen=True)
class LockedDropout:
    """Dropout of a layer's input, of the tensor between two layers, or of the last output.

    Args:
        p: probability to drop an element, in [0, 1].
        per: ``"sequence"`` draws one mask for all steps (Gal & Ghahramani 2016; AWD-LSTM's locked dropout), ``"step"``
            a fresh one at each step (Srivastava et al. 2014; Zaremba et al. 2014).
        batch_shared: one mask for the whole batch instead of one per example.
        tied: ``False`` gives each gate a mask of its own (Gal's untied variant); input only, ``per="sequence"`` only,
            computed by ``backend="reference"``.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    per: str = "sequence"
    batch_shared: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("LockedDropout p", self.p, "an element being zeroed"))
        _check_choice("LockedDropout per", self.per, _PER)
        _check_choice("LockedDropout batch_shared", self.batch_shared, _BOOL)
        _check_choice("LockedDropout tied", self.tied, _BOOL)
        if not self.tied and self.per != "sequence":
            raise ValueError("LockedDropout tied=False needs per='sequence', got per='step'")


@dataclass(frozen=True)
class HiddenDropout:
    """Dropout of h before the recurrent product U h, one mask per sequence (Gal & Ghahramani 2016).

    Args:
        p: probability to drop a unit, in [0, 1].
        tied: one mask for all gates; ``False`` one per gate, computed by ``backend="reference"``.
        batch_shared: one mask for the whole batch instead of one per example.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    tied: bool = True
    batch_shared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("HiddenDropout p", self.p, "a unit being zeroed"))
        _check_choice("HiddenDropout tied", self.tied, _BOOL)
        _check_choice("HiddenDropout batch_shared", self.batch_shared, _BOOL)


@dataclass(frozen=True)
class WeightDropout:
    """Dropout of the recurrent weights of every layer and direction, one mask per forward (Wan 2013; Merity 2017).

    Args:
        p: probability to drop a weight, in [0, 1].
        mode: ``"element"`` drops single weights, ``"row"`` a gate unit's whole row.
        inputs: drop the input weights W_ih too.
        projection: drop the projection W_hr too (LSTM with ``proj_size``).
        per_example: a mask per example, as in the DropConnect paper; computed by ``backend="reference"``.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    mode: str = "element"
    inputs: bool = False
    projection: bool = False
    per_example: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("WeightDropout p", self.p, "a weight being zeroed"))
        _check_choice("WeightDropout mode", self.mode, ("element", "row"))
        for field in ("inputs", "projection", "per_example"):
            _check_choice(f"WeightDropout {field}", getattr(self, field), _BOOL)
        if self.per_example and self.mode != "element":
            raise ValueError(f"WeightDropout per_example=True needs mode='element', got mode={self.mode!r}")


@dataclass(frozen=True)
class UpdateDropout:
    """Dropout of the candidate g (LSTM) or n (GRU): recurrent dropout without memory loss (Semeniuta 2016).

    Args:
        p: probability to drop a candidate unit, in [0, 1].
        per: ``"step"`` a fresh mask each step, ``"sequence"`` one for all steps.
        scale: ``"inverted"`` scales by 1/(1-p) in training; ``"paper"`` does not, and scales by 1-p in eval.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    per: str = "step"
    scale: str = "inverted"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("UpdateDropout p", self.p, "a candidate unit being zeroed"))
        _check_choice("UpdateDropout per", self.per, _PER)
        _check_choice("UpdateDropout scale", self.scale, ("inverted", "paper"))


@dataclass(frozen=True)
class CellDropout:
    """Binary dropout of the memory: c of an LSTM, h of a GRU (Moon et al. 2015, RNNDrop).

    Args:
        p: probability to drop a unit's memory, in [0, 1].
        per: ``"sequence"`` one mask for all steps, ``"step"`` a fresh one each step.
        scale: ``"output"`` scales what reads the memory by 1/(1-p) in training; ``"paper"`` does not, and multiplies
            the memory by 1-p at each step in eval.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    per: str = "sequence"
    scale: str = "output"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("CellDropout p", self.p, "a memory unit being zeroed"))
        _check_choice("CellDropout per", self.per, _PER)
        _check_choice("CellDropout scale", self.scale, ("output", "paper"))


@dataclass(frozen=True)
class Zoneout:
    """Zoneout: keep the old value of a state unit with probability z (Krueger et al. 2017); the expectation in eval.

    Args:
        z: probability to keep the old value, in [0, 1].
        per: ``"step"`` a fresh mask each step, ``"sequence"`` one for all steps.
        shared: ``zoneout_h`` only: read the random words of ``zoneout_c``, so that equal rates give equal masks.
        output: ``zoneout_h`` only: what the layer returns, the ``"zoned"`` h or the ``"unzoned"`` new value; the
            zoned h recurs in both cases.
        gate_shared: ``zoneout_c`` only: the paper's variant with one mask on the input gate and the output gate;
            computed by ``backend="reference"``.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    z: float
    per: str = "step"
    shared: bool = False
    output: str = "zoned"
    gate_shared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", _check_rate("Zoneout z", self.z, "a unit keeping its old value"))
        _check_choice("Zoneout per", self.per, _PER)
        _check_choice("Zoneout shared", self.shared, _BOOL)
        _check_choice("Zoneout output", self.output, ("zoned", "unzoned"))
        _check_choice("Zoneout gate_shared", self.gate_shared, _BOOL)


@dataclass(frozen=True)
class StepDropout:
    """What ``dropout=`` of torch.nn means: dropout between layers, a fresh mask at each step. Has no options."""

    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_rate("dropout", self.p, "an element being zeroed"))


Spec: TypeAlias = StepDropout | LockedDropout | HiddenDropout | WeightDropout | UpdateDropout | CellDropout | Zoneout


def rate_of(spec: Spec) -> float:
    """The probability of a spec: ``z`` of a :class:`Zoneout`, ``p`` of every other."""
    return spec.z if isinstance(spec, Zoneout) else spec.p


def with_rate(spec: Spec, rate: float) -> Spec:
    """The same options with another probability. Raises ``ValueError`` outside [0, 1]."""
    return dataclasses.replace(spec, **{"z" if isinstance(spec, Zoneout) else "p": rate})


# --------------------------------------------------------------------------------------------------------------------
# The table of sites
# --------------------------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """One row of the table of sites: its argument, its options, the rng group it draws from, the cells that have it."""

    name: str
    spec: type
    group: str
    meaning: str
    cells: tuple[str, ...] = ("LSTM", "GRU")


_DROP = "an element being zeroed"

SITES: tuple[Site, ...] = (
    Site("dropout", StepDropout, "inter_layer", _DROP),
    Site("input_dropout", LockedDropout, "input", _DROP),
    Site("inter_layer_dropout", LockedDropout, "inter_layer", _DROP),
    Site("output_dropout", LockedDropout, "output", _DROP),
    Site("hidden_dropout", HiddenDropout, "hidden", "a unit being zeroed"),
    Site("weight_dropout", WeightDropout, "weight", "a weight being zeroed"),
    Site("update_dropout", UpdateDropout, "state", "a candidate unit being zeroed"),
    Site("cell_dropout", CellDropout, "state", "a memory unit being zeroed"),
    Site("zoneout_c", Zoneout, "state", "a unit keeping its old value", ("LSTM",)),
    Site("zoneout_h", Zoneout, "state", "a unit keeping its old value"),
)
"""Every site, in the order of the thresholds tensor."""

SITE: dict[str, Site] = {site.name: site for site in SITES}
SITE_INDEX: dict[str, int] = {site.name: index for index, site in enumerate(SITES)}
SITE_NAMES: tuple[str, ...] = tuple(SITE)
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
        value = site.spec(_check_rate(name, value, site.meaning))
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
        """The plan of the configured ``specs`` (site name to options) for ``cell`` ("LSTM" or "GRU")."""
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
        if cell not in SITE[name].cells:
            raise ValueError(
                f"{name} is not a site of a {cell}: it has no cell state; allowed sites are "
                f"{', '.join(site.name for site in SITES if cell in site.cells)}"
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
