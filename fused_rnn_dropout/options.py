"""The options of each site, as users give them: a rate, or one of these objects where more than a rate is said.

``docs/semantics.md`` says what each option computes.
"""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import dataclass
from typing import Any, TypeAlias


def check_rate(name: str, rate: Any, meaning: str) -> float:
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
_NOISE = ("bernoulli", "gaussian", "additive")


def _check_noise(spec: Any) -> None:
    name = type(spec).__name__
    _check_choice(f"{name} noise", spec.noise, _NOISE)
    if spec.noise != "bernoulli" and spec.p == 1:
        raise ValueError(f"{name} noise={spec.noise!r} needs p < 1: its variance p / (1-p) has no bound")


def _check_added_to_all_gates(spec: Any) -> None:
    if spec.noise == "additive" and not spec.tied:
        raise ValueError(f"{type(spec).__name__} noise='additive' needs tied=True, got tied=False")


@dataclass(frozen=True)
class LockedDropout:
    """Dropout of a layer's input, of the tensor between two layers, or of the last output.

    y = x * M, with M (1, B, U), or (T, B, U) per step: 0 with probability p, else 1 / (1-p). Eval: y = x. The trap is
    a mask that broadcasts along the wrong axis: here each example has its own, unless ``batch_shared``.

    Args:
        p: probability to drop an element, in [0, 1].
        per: ``"sequence"`` draws one mask for all steps (Gal & Ghahramani 2016; AWD-LSTM's locked dropout), ``"step"``
            a fresh one at each step (Srivastava et al. 2014; Zaremba et al. 2014).
        batch_shared: one mask for the whole batch instead of one per example.
        tied: ``False`` gives each gate a mask of its own (Gal's untied variant); input only, ``per="sequence"`` only,
            computed by ``backend="reference"``.
        noise: ``"bernoulli"`` drops; ``"gaussian"`` multiplies by N(1, p / (1-p)), whose mean and variance are those
            of the mask (Srivastava et al. 2014), and drops nothing; ``"additive"`` adds N(0, p / (1-p)), whatever the
            value is, so that a standard deviation s is p = s^2 / (1 + s^2). Both need p < 1, and are computed by
            ``backend="reference"``.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    per: str = "sequence"
    batch_shared: bool = False
    tied: bool = True
    noise: str = "bernoulli"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_rate("LockedDropout p", self.p, "an element being zeroed"))
        _check_choice("LockedDropout per", self.per, _PER)
        _check_choice("LockedDropout batch_shared", self.batch_shared, _BOOL)
        _check_choice("LockedDropout tied", self.tied, _BOOL)
        if not self.tied and self.per != "sequence":
            raise ValueError("LockedDropout tied=False needs per='sequence', got per='step'")
        _check_noise(self)
        _check_added_to_all_gates(self)


@dataclass(frozen=True)
class HiddenDropout:
    """Dropout of h before the recurrent product U h, one mask per sequence (Gal & Ghahramani 2016).

    a_t = W x_t + b + U (h_{t-1} * M), with M (1, B, P), or (1, B, gates, P) untied. Eval: M = 1. The trap: the h that
    is carried on and returned has no mask, nor has c. Masked states would shrink, or grow by their scale, step by step.

    Args:
        p: probability to drop a unit, in [0, 1].
        tied: one mask for all gates; ``False`` one per gate, computed by ``backend="reference"``.
        batch_shared: one mask for the whole batch instead of one per example.
        per: ``"sequence"``, or ``"step"``, a fresh mask each step, computed by ``backend="reference"``: as a mask, what
            these papers argue against; as noise, Noisin (Dieng et al. 2018).
        noise: as in :class:`LockedDropout`; ``"gaussian"`` is Noisin's multiplicative form, ``"additive"`` the other.
            Either leaves the mean of what is read as it is. The trap: h of an LSTM lies in (-1, 1), so that an additive
            s of 1, p = 0.5, is more than any value.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    tied: bool = True
    batch_shared: bool = False
    per: str = "sequence"
    noise: str = "bernoulli"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_rate("HiddenDropout p", self.p, "a unit being zeroed"))
        _check_choice("HiddenDropout tied", self.tied, _BOOL)
        _check_choice("HiddenDropout batch_shared", self.batch_shared, _BOOL)
        _check_choice("HiddenDropout per", self.per, _PER)
        if not self.tied and self.per != "sequence":
            raise ValueError("HiddenDropout tied=False needs per='sequence', got per='step'")
        _check_noise(self)
        _check_added_to_all_gates(self)


@dataclass(frozen=True)
class WeightDropout:
    """Dropout of the recurrent weights of every layer and direction, one mask per forward (Wan 2013; Merity 2017).

    a_t = W x_t + b + (U * M) h_{t-1}, with M (gates H, P), by row (gates H, 1), per example (B, gates H, P). Biases
    have none. Eval: M = 1. The traps of released code: weights that were flattened before, so that the mask never
    reaches them; no gradient at the raw weight; the reverse direction forgotten; a row mask that stays on in eval.

    Args:
        p: probability to drop a weight, in [0, 1].
        mode: ``"element"`` drops single weights, ``"row"`` a gate unit's whole row.
        inputs: drop the input weights W_ih too.
        projection: drop the projection W_hr too (LSTM with ``proj_size``).
        per_example: a mask per example, as in the DropConnect paper; computed by ``backend="reference"``.
        noise: as in :class:`LockedDropout`. On weights ``"gaussian"`` is variational dropout (Kingma et al. 2015),
            whose penalty :func:`training.gaussian_dropout_kl` gives, and ``"additive"`` weight noise (Graves 2011), of
            one standard deviation for all weights; :class:`training.BayesByBackprop` learns one for each.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    p: float
    mode: str = "element"
    inputs: bool = False
    projection: bool = False
    per_example: bool = False
    noise: str = "bernoulli"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_rate("WeightDropout p", self.p, "a weight being zeroed"))
        _check_choice("WeightDropout mode", self.mode, ("element", "row"))
        for field in ("inputs", "projection", "per_example"):
            _check_choice(f"WeightDropout {field}", getattr(self, field), _BOOL)
        if self.per_example and self.mode != "element":
            raise ValueError(f"WeightDropout per_example=True needs mode='element', got mode={self.mode!r}")
        _check_noise(self)
        if self.noise == "additive" and self.mode != "element":
            raise ValueError(f"WeightDropout noise='additive' needs mode='element', got mode={self.mode!r}")


@dataclass(frozen=True)
class UpdateDropout:
    """Dropout of the candidate g (LSTM) or n (GRU): recurrent dropout without memory loss (Semeniuta 2016).

    c_t = f * c_{t-1} + i * (g * M); GRU: h_t = z * h_{t-1} + (1-z) * (n * M); M (T, B, H), or (1, B, H) per sequence.
    Eval: M = 1. The trap is another place: a mask on c itself, at each step, leaves of a memory (1-p)^T.

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
        object.__setattr__(self, "p", check_rate("UpdateDropout p", self.p, "a candidate unit being zeroed"))
        _check_choice("UpdateDropout per", self.per, _PER)
        _check_choice("UpdateDropout scale", self.scale, ("inverted", "paper"))


@dataclass(frozen=True)
class CellDropout:
    """Binary dropout of the memory: c of an LSTM, h of a GRU (Moon et al. 2015, RNNDrop).

    c_t = m * (f * c_{t-1} + i * g), h_t = o * tanh(c_t) / (1-p), with m (1, B, H) of 0 and 1, or (T, B, H) per step.
    Eval: c_t and h_t without m and scale. The trap is a scale on c: it multiplies up to (1-p)^-T.

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
        object.__setattr__(self, "p", check_rate("CellDropout p", self.p, "a memory unit being zeroed"))
        _check_choice("CellDropout per", self.per, _PER)
        _check_choice("CellDropout scale", self.scale, ("output", "paper"))


@dataclass(frozen=True)
class Zoneout:
    """Zoneout: keep the old value of a state unit with probability z (Krueger et al. 2017); the expectation in eval.

    s_t = d * s_{t-1} + (1-d) * s~_t for s = c or h, with d (T, B, units), or (1, B, units) per sequence: 1 with
    probability z, no scale. Eval: d = z. The traps: h~ is made of c~, the memory that is not zoned; and published
    rates are often the probability to update, or released masks turned round.

    Args:
        z: probability to keep the old value, in [0, 1].
        per: ``"step"`` a fresh mask each step, ``"sequence"`` one for all steps.
        shared: ``zoneout_h`` only: read the random numbers of ``zoneout_c``, so that equal rates give equal masks.
        output: ``zoneout_h`` only: what the layer returns, the ``"zoned"`` h or the ``"unzoned"`` new value; the
            zoned h recurs in both cases.
        gate_shared: ``zoneout_c`` only: the paper's variant with one mask on the input gate and the output gate;
            computed by ``backend="reference"``.
        unit_shared: one bit for all units of an example, so that a step keeps the old state whole or takes the new one
            whole: stochastic depth in time. Computed by ``backend="reference"``.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, or an option that is not one of those named above.
    """

    z: float
    per: str = "step"
    shared: bool = False
    output: str = "zoned"
    gate_shared: bool = False
    unit_shared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", check_rate("Zoneout z", self.z, "a unit keeping its old value"))
        _check_choice("Zoneout per", self.per, _PER)
        _check_choice("Zoneout shared", self.shared, _BOOL)
        _check_choice("Zoneout output", self.output, ("zoned", "unzoned"))
        _check_choice("Zoneout gate_shared", self.gate_shared, _BOOL)
        _check_choice("Zoneout unit_shared", self.unit_shared, _BOOL)


@dataclass(frozen=True)
class StepDropout:
    """What ``dropout=`` of torch.nn means: dropout between layers, a fresh mask at each step. Has no options.

    x * M, M (T, B, U): 0 with probability p, else 1 / (1-p). Not on the input, nor on the last output, which Zaremba et
    al. 2014 drop too: ``LockedDropout(p, per="step")`` there.
    """

    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_rate("dropout", self.p, "an element being zeroed"))


Spec: TypeAlias = StepDropout | LockedDropout | HiddenDropout | WeightDropout | UpdateDropout | CellDropout | Zoneout


def rate_of(spec: Spec) -> float:
    """The probability of a spec: ``z`` of a :class:`Zoneout`, ``p`` of every other."""
    return spec.z if isinstance(spec, Zoneout) else spec.p


def with_rate(spec: Spec, rate: float) -> Spec:
    """The same options with another probability. Raises ``ValueError`` outside [0, 1]."""
    changed: dict[str, Any] = {"z" if isinstance(spec, Zoneout) else "p": rate}
    return dataclasses.replace(spec, **changed)
