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


LOW = 1 << 15
"""The bit of the fourth counter word whose call has the low halves of the 32-bit numbers."""


class Kind(NamedTuple):
    """One row of the table of kinds: what the elements, the rows and the steps of such masks are."""

    number: int
    name: str
    element: str
    row: str
    step: str


KINDS: tuple[Kind, ...] = (
    Kind(0, "ZONEOUT_C", "unit", "example", "step or SEQ"),
    Kind(1, "ZONEOUT_H", "unit", "example", "step or SEQ"),
    Kind(2, "UPDATE", "unit", "example", "step or SEQ"),
    Kind(3, "CELL", "unit", "example", "step or SEQ"),
    Kind(4, "HIDDEN", "unit", "example", "step or SEQ"),
    Kind(5, "INPUT", "feature", "example", "step or SEQ"),
    Kind(6, "INTER_LAYER", "feature", "example", "step or SEQ"),
    Kind(7, "OUTPUT", "feature", "example", "step or SEQ"),
    Kind(8, "WEIGHT_HH", "column", "row of the matrix", "SEQ or example"),
    Kind(9, "WEIGHT_IH", "column", "row of the matrix", "SEQ or example"),
    Kind(10, "WEIGHT_HR", "column", "row of the matrix", "SEQ or example"),
    Kind(11, "WEIGHT_HH_ROWS", "row of the matrix", "0", "SEQ"),
    Kind(12, "WEIGHT_IH_ROWS", "row of the matrix", "0", "SEQ"),
    Kind(13, "WEIGHT_HR_ROWS", "row of the matrix", "0", "SEQ"),
    Kind(14, "EMBEDDING", "word", "0 or example", "SEQ or step"),
    Kind(15, "WORD", "0: whether a word is dropped", "example", "step"),
    Kind(16, "NOISING", "0: whether a word is replaced; 1: by which; 2: its target", "example", "step"),
)
"""The kinds of masks. Element i of a row is decided by field i mod 8 of the call with
``counter = (i // 8, row, step, stream)``; ``docs/design.md`` has the rule.
"""

KIND: dict[str, int] = {kind.name: kind.number for kind in KINDS}


def stream(kind: int, layer: int, direction: int = 0, gate: int = 0) -> int:
    """The fourth counter word: ``kind | direction << 8 | gate << 9 | layer << 16``, whose bit :data:`LOW` is clear.

    ``layer`` is the layer that reads the masked tensor: 0 for the input, ``num_layers`` for the output. ``gate`` is 0
    but for a mask of each gate.
    """
    return kind | direction << 8 | gate << 9 | layer << 16


# --------------------------------------------------------------------------------------------------------------------
# The table of sites
# --------------------------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """A value of an option that the kernels must know of.

    Attributes:
        name, value: of the field of the site's options object.
        flag: the bit of ``flags`` that says so; "" where ``backend="reference"`` alone computes it.
        acts_in_eval: whether the site then changes what eval computes.
    """

    name: str
    value: Any
    flag: str = ""
    acts_in_eval: bool = False


class Site(NamedTuple):
    """One row of the table of sites.

    Attributes:
        name: of its argument, and of its row of the thresholds.
        spec: the class of its options.
        group: of :data:`GROUPS`; where the mask sits, and whose pair of seeds it draws from.
        meaning: of its rate.
        place: where the mask sits, for help texts.
        kind: of its masks, by the name in :data:`KINDS`; of the first matrix, where it masks several.
        flag: the bit of ``flags`` that says that it is configured.
        sequence_flag: the bit that says that its mask is drawn once per sequence; "" where there is no choice.
        options: those that are more than when a mask is drawn.
        acts_in_eval: whether eval computes something else because of it, whatever its options are.
        needs: the field of a cell's row without which the cell does not have it; "" where every cell has it.
    """

    name: str
    spec: type
    group: str
    meaning: str
    place: str
    kind: str
    flag: str
    sequence_flag: str = ""
    options: tuple[Option, ...] = ()
    acts_in_eval: bool = False
    needs: str = ""

    def fits(self, cell: str) -> bool:
        """Whether ``cell``, a name of :data:`cells.CELLS`, has it."""
        return not self.needs or getattr(CELLS[cell], self.needs)

    @property
    def inside_step(self) -> bool:
        """Whether it acts inside a step, so that a layer with it is not torch.nn's on other weights."""
        return self.group in ("hidden", "state")

    @property
    def outer(self) -> bool:
        """Whether it acts on the rows that a layer reads or writes, and on nothing inside it."""
        return self.group in ("input", "inter_layer", "output")

    @property
    def writes(self) -> bool:
        """Whether it acts on what a layer writes."""
        return self.group == "output"

    def writes_under(self, flags: int) -> bool:
        """Whether it acts there under ``flags``: with WRITES_BETWEEN a site between layers does too."""
        return self.writes or (self.between and bool(flags & FLAG["WRITES_BETWEEN"]))

    @property
    def between(self) -> bool:
        """Whether it acts between layers, so that they cannot run as one."""
        return self.group == "inter_layer"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its bits of ``flags``, in their order."""
        return tuple(flag for flag in (self.flag, self.sequence_flag, *(o.flag for o in self.options)) if flag)


_DROP = "an element being zeroed"
_KEEP = "a unit keeping its old value"
_UNTIED = Option("tied", False)
_NOISE = Option("noise", "gaussian"), Option("noise", "additive")
_WHOLE_STEPS = Option("unit_shared", True)


def _shared(flag: str) -> Option:
    return Option("batch_shared", True, f"{flag}_BATCH_SHARED")


SITES: tuple[Site, ...] = (
    Site("dropout", StepDropout, "inter_layer", _DROP, "between layers, as nn.LSTM means it", "INTER_LAYER", "DROPOUT"),
    Site(
        "input_dropout",
        LockedDropout,
        "input",
        _DROP,
        "input of the first layer",
        "INPUT",
        "INPUT",
        "INPUT_SEQUENCE",
        options=(_shared("INPUT"), _UNTIED, *_NOISE),
    ),
    Site(
        "inter_layer_dropout",
        LockedDropout,
        "inter_layer",
        _DROP,
        "between layers",
        "INTER_LAYER",
        "INTER_LAYER",
        "INTER_LAYER_SEQUENCE",
        options=(_shared("INTER_LAYER"), *_NOISE),
    ),
    Site(
        "output_dropout",
        LockedDropout,
        "output",
        _DROP,
        "output of the last layer",
        "OUTPUT",
        "OUTPUT",
        "OUTPUT_SEQUENCE",
        options=(_shared("OUTPUT"), *_NOISE),
    ),
    Site(
        "hidden_dropout",
        HiddenDropout,
        "hidden",
        "a unit being zeroed",
        "h before the recurrent product",
        "HIDDEN",
        "HIDDEN",
        options=(_shared("HIDDEN"), _UNTIED, Option("per", "step"), *_NOISE),
    ),
    Site(
        "weight_dropout",
        WeightDropout,
        "weight",
        "a weight being zeroed",
        "recurrent weights",
        "WEIGHT_HH",
        "WEIGHT_HH",
        options=(
            Option("inputs", True, "WEIGHT_IH"),
            Option("projection", True, "WEIGHT_HR"),
            Option("mode", "row", "WEIGHT_ROW"),
            Option("per_example", True),
            *_NOISE,
        ),
    ),
    Site(
        "update_dropout",
        UpdateDropout,
        "state",
        "a candidate unit being zeroed",
        "candidate g or n",
        "UPDATE",
        "UPDATE",
        "UPDATE_SEQUENCE",
        options=(Option("scale", "paper", "UPDATE_PAPER", acts_in_eval=True),),
    ),
    Site(
        "cell_dropout",
        CellDropout,
        "state",
        "a memory unit being zeroed",
        "memory c or h",
        "CELL",
        "CELL",
        "CELL_SEQUENCE",
        options=(Option("scale", "paper", "CELL_PAPER", acts_in_eval=True),),
        needs="carries",
    ),
    Site(
        "zoneout_c",
        Zoneout,
        "state",
        _KEEP,
        "old c kept",
        "ZONEOUT_C",
        "ZONEOUT_C",
        "ZONEOUT_C_SEQUENCE",
        options=(Option("gate_shared", True), _WHOLE_STEPS),
        acts_in_eval=True,
        needs="has_c",
    ),
    Site(
        "zoneout_h",
        Zoneout,
        "state",
        _KEEP,
        "old h kept",
        "ZONEOUT_H",
        "ZONEOUT_H",
        "ZONEOUT_H_SEQUENCE",
        options=(Option("shared", True, "ZONEOUT_H_SHARED"), Option("output", "unzoned", "UNZONED"), _WHOLE_STEPS),
        acts_in_eval=True,
    ),
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
STATE_SITES: tuple[Site, ...] = tuple(site for site in SITES if site.group == "state")
"""Those whose masks change at each step inside the recurrence, or may."""
OUTER_SITES: tuple[Site, ...] = tuple(site for site in SITES if site.outer)
"""Those on what a layer reads or writes."""
BETWEEN: tuple[str, ...] = tuple(site.name for site in SITES if site.between)


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
    """P = round(rate * 2**32): an element is dropped (zoneout: keeps its old value) iff its 32-bit number < P."""
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
    for bit, name in enumerate((*(name for site in SITES for name in site.flags), "WRITES_BETWEEN", "MASKS_ON"))
}
"""Bits of the ``flags`` argument of the layer operators. Without MASKS_ON they compute what eval computes.

With WRITES_BETWEEN a site between layers masks what the layer below writes, which then takes its bits, and not what the
one above reads.
"""


def outer_sites(flags: int, writes: bool) -> list[Site]:
    """The sites on what a layer reads, or on what it writes, that ``flags`` configure; operators take one at most."""
    return [site for site in OUTER_SITES if flags & FLAG[site.flag] and site.writes_under(flags) == writes]


def outer_site(flags: int, writes: bool) -> Site | None:
    """The site that masks what a layer reads, or what it writes, under ``flags``; None where none does."""
    if not flags & FLAG["MASKS_ON"]:
        return None
    return next(iter(outer_sites(flags, writes)), None)


def inner_flags(flags: int, *, writes: bool = False) -> int:
    """What is left of ``flags`` for the inside of a layer; 0 where nothing is on there.

    ``writes``: with the site on what the layer writes.
    """
    kept = outer_sites(flags, writes=True) if writes else []
    others = [name for site in OUTER_SITES if site not in kept for name in site.flags]
    if not any(site.between for site in kept):
        others.append("WRITES_BETWEEN")
    for name in others:
        flags &= ~FLAG[name]
    return 0 if flags == FLAG["MASKS_ON"] else flags


def output_differs(cell: Cell, flags: int) -> bool:
    """Whether the output of a layer has other numbers than the h that its backward reads."""
    return bool(outer_site(flags, writes=True) or flags & (FLAG["UNZONED"] | (FLAG["CELL"] if cell.scaled else 0)))


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
    def groups(self) -> tuple[str, ...]:
        """Those of :data:`GROUPS` that have a configured site, in their order."""
        of_names = [SITE[name].group for name in self.names]
        return tuple(group for group in GROUPS if group in of_names)

    @cached_property
    def last_call(self) -> list[Any]:
        """Where ``prepare.py`` keeps what it found for the last call of this plan: one element, None at first."""
        return [None]

    def _flags_of(self, site: Site) -> int:
        """The bits of one site; none where it is not configured."""
        spec = getattr(self, site.name)
        if spec is None:
            return 0
        chosen = FLAG[site.flag]
        if site.sequence_flag and spec.per == "sequence":
            chosen |= FLAG[site.sequence_flag]
        for option in site.options:
            if option.flag and getattr(spec, option.name) == option.value:
                chosen |= FLAG[option.flag]
        return chosen

    @cached_property
    def eval_flags(self) -> int:
        """The ``flags`` of the layer operators with masks off."""
        return sum(self._flags_of(site) for site in SITES if not site.outer)

    @cached_property
    def train_flags(self) -> int:
        """The same with masks on, without the sites on what a layer reads or writes."""
        return self.eval_flags | FLAG["MASKS_ON"]

    @cached_property
    def outer_flags(self) -> tuple[int, int, int]:
        """The bits of the sites on the first layer's input, between layers, and on the last layer's output."""
        groups = ("input", "inter_layer", "output")
        first, between, last = (sum(self._flags_of(site) for site in SITES if site.group == group) for group in groups)
        return first, between, last

    def layer_flags(self, layer: int, num_layers: int, writes_between: bool = False) -> int:
        """The ``flags`` of one layer with masks on, where its operator takes the sites on what it reads and writes.

        ``writes_between``: whether a layer masks what it writes for the next one, not what it reads of the one before.
        """
        first, between, last = self.outer_flags
        reads, writes = 0 if layer else first, last if layer == num_layers - 1 else 0
        if between and not writes_between and layer:
            reads = between
        if between and writes_between and layer < num_layers - 1:
            writes = between | FLAG["WRITES_BETWEEN"]
        found = self.eval_flags | reads | writes
        return found and found | FLAG["MASKS_ON"]

    @cached_property
    def reference_only(self) -> tuple[str, ...]:
        """The options asked for that only ``backend="reference"`` computes, as the user spelled them."""
        found = []
        for name in self.names:
            spec = getattr(self, name)
            for option in SITE[name].options:
                if not option.flag and getattr(spec, option.name) == option.value:
                    found.append(f"{name}={type(spec).__name__}({option.name}={option.value!r})")
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
        spec, site = getattr(plan, name), SITE[name]
        return site.acts_in_eval or any(o.acts_in_eval and getattr(spec, o.name) == o.value for o in site.options)

    return tuple(name for name in plan.names if acts(name))


ACTING_IN_EVAL: dict[str, str] = {
    flag: site.name
    for site in SITES
    for flag, acts in ((site.flag, site.acts_in_eval), *((o.flag, o.acts_in_eval) for o in site.options))
    if acts
}
"""What :func:`acting_in_eval` says of a plan, by the bits of ``flags``: bit to site."""


_warned: set[str] = set()


def check_combination(
    cell: str, specs: dict[str, Spec], *, num_layers: int, proj_size: int, stacklevel: int = 2
) -> None:
    """Refuses what cannot be combined and warns, once, of what is seldom meant.

    Raises:
        ValueError: a site that ``cell`` does not have, ``dropout`` together with ``inter_layer_dropout``, a projection
            mask without a projection, gate-shared zoneout together with another site on the cell, or zoneout of h that
            shares the mask of c but not its ``unit_shared``.
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
        others = [site.name for site in STATE_SITES if site.name != "zoneout_c" and site.name in specs]
        if others:
            raise ValueError(f"zoneout_c with gate_shared=True cannot be combined with {', '.join(others)}")
    zoneout_h = specs.get("zoneout_h")
    reads_c = isinstance(zoneout, Zoneout) and isinstance(zoneout_h, Zoneout) and zoneout_h.shared
    if reads_c and zoneout.unit_shared != zoneout_h.unit_shared:  # type: ignore[union-attr]
        raise ValueError("zoneout_h with shared=True should have the unit_shared of zoneout_c, whose mask it reads")
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
