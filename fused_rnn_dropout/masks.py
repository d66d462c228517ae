"""Counters to masks in PyTorch: the same bits as the kernels, on any device, without the extension.

A mask is rows of elements. Whether an element is dropped is a pure function of ``rng`` (int64[2]), of the threshold and
of the counters that :data:`sites.KINDS` lists: its place in the row, the row, the step, the kind of mask. All
arithmetic stays in int64 tensors and nothing is read by the host, so these functions run under ``torch.compile``,
``vmap`` and fake tensors. ``docs/design.md`` has the rule, ``docs/semantics.md`` what each mask does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from .cells import CELLS
from .options import HiddenDropout, LockedDropout, StepDropout, WeightDropout, Zoneout
from .sites import DOMAIN, KIND, KINDS, LOW, SEQ, SITE, SITE_INDEX, Plan, acting_in_eval, stream

Words: TypeAlias = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
"""``words(rng, row, step, n, stream)``: this module's, or the operator of the same name."""

_WORD = 0xFFFFFFFF
_HALF = 0xFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_PAPER_KEYS = {"update_dropout": "update", "cell_dropout": "cell"}


# --------------------------------------------------------------------------------------------------------------------
# Random numbers
# --------------------------------------------------------------------------------------------------------------------


def _multiply(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of a 32-bit word and a multiplier above 2**31."""
    # x (m - 2**32) fits a signed 64-bit integer, x m does not: overflow would be undefined in compiled code.
    product = x * (multiplier - 2**32)
    return (product >> 32) + x, product & _WORD


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor], rounds: int = 10
) -> tuple[Tensor, ...]:
    """Philox4x32 (Salmon et al. 2011): four 32-bit words for each counter, as int64.

    Args:
        counter: four int64 tensors of 32-bit words that broadcast against each other.
        key: two int64 tensors of 32-bit words that broadcast against the counter.
        rounds: 10 everywhere in this package; others serve the tests of the tests.

    Returns:
        Four int64 tensors in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for index in range(rounds):
        if index:
            k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def key(rng: Tensor, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """The Philox key of a call: the first two words of Philox(counter = (rng[1], DOMAIN, 0), key = rng[0])."""
    if rng.dtype != torch.int64 or rng.shape != (2,):
        raise ValueError(f"rng should be an int64 tensor of shape (2,), got {rng.dtype} of shape {tuple(rng.shape)}")
    low, high = rng & _WORD, rng >> 32 & _WORD
    domain = torch.full_like(low[0], DOMAIN)
    words4 = philox((low[1], high[1], domain, torch.zeros_like(domain)), (low[0], high[0]), rounds)
    return words4[0], words4[1]


def _fields(words4: tuple[Tensor, ...]) -> Tensor:
    """The eight 16-bit fields of calls, in a last dimension: word f / 2, its low half where f is even."""
    return torch.stack([half for word in words4 for half in (word & _HALF, word >> 16)], dim=-1)


def words(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int, *, rounds: int = 10) -> Tensor:
    """The 32-bit numbers of one kind of mask, for every pair of ``row`` and ``step``.

    Element i of a row is dropped iff its number, ``field << 16 | g``, is below the threshold. ``field`` is field
    i mod 8 of the call with ``counter = (i // 8, row, step, stream)``. ``g`` is the same field of the call whose
    ``stream`` has the bit :data:`sites.LOW`.

    Args:
        rng: int64[2], all the randomness of a call.
        row: int64, 1-D: second counter word (example, or row of a weight), in [0, 2**32).
        step: int64, 1-D: third counter word (step, ``SEQ``, or example), in [0, 2**32).
        n: number of elements of a row.
        stream: fourth counter word, from :func:`sites.stream`; its low byte is the kind.
        rounds: rounds of Philox.

    Returns:
        int64 numbers in [0, 2**32): (len(step), len(row), n).

    Raises:
        ValueError: a kind that is not in the table, a ``stream`` with the bit ``LOW``, or ``row`` or ``step`` that is
            not 1-D int64.
    """
    kind = stream & 0xFF
    if kind >= len(KINDS):
        raise ValueError(f"stream should have one of the kinds 0 to {len(KINDS) - 1} in its low byte, got {kind}")
    if stream & LOW:
        raise ValueError(
            f"stream should have bit 15 clear, which tells the two calls of an element apart, got {stream}"
        )
    for name, value in (("row", row), ("step", step)):
        if value.dtype != torch.int64 or value.dim() != 1:
            raise ValueError(f"{name} should be a 1-D int64 tensor, got {value.dtype} with {value.dim()} dimensions")
    # Besides cutting to 32 bits as the kernels do, this keeps TorchInductor from folding the multiplication into the
    # index of an arange: its vectorised CPU code overflows there (seen in torch 2.13).
    call = torch.arange((n + 7) // 8, dtype=torch.int64, device=rng.device) & _WORD
    counter, of_call = (call, (row & _WORD)[:, None], (step & _WORD)[:, None, None]), key(rng, rounds)

    def fields(fourth: int) -> Tensor:
        return _fields(philox((*counter, torch.full_like(rng[:1], fourth)), of_call, rounds))

    return (fields(stream) << 16 | fields(stream | LOW)).flatten(-2)[..., :n]


# --------------------------------------------------------------------------------------------------------------------
# Numbers to factors
# --------------------------------------------------------------------------------------------------------------------


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A double rounded once to the accumulation type, then to ``dtype`` where that is narrower."""
    return value.to(torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)


def keep_scale(p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverted scale 2**32 / (2**32 - P), 0 where everything is dropped; shape and device of ``p_threshold``."""
    kept = 2**32 - p_threshold
    return _rounded(torch.where(kept > 0, 2**32 / kept.clamp(min=1).double(), 0.0), dtype)


def drop_rate(p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """P / 2**32: the probability to drop, or zoneout's probability to keep the old value."""
    return _rounded(p_threshold.double() / 2**32, dtype)


def keep_rate(p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """(2**32 - P) / 2**32: the probability to keep."""
    return _rounded((2**32 - p_threshold).double() / 2**32, dtype)


def factor(random: Tensor, p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplicative mask of 32-bit numbers: the inverted scale where ``number >= P``, else 0."""
    return torch.where(random >= p_threshold, keep_scale(p_threshold, dtype), 0.0)


def normal(random: Tensor) -> Tensor:
    """One standard normal of each 32-bit number, in double precision.

    It is the inverse of the distribution's function at (number + 1/2) / 2**32, so that none is infinite.
    """
    return 2**0.5 * torch.erfinv((random.double() + 0.5) / 2**31 - 1)


def _noise(random: Tensor, p_threshold: Tensor) -> Tensor:
    """N(0, p / (1-p)), in double precision."""
    variance = p_threshold.double() / (2**32 - p_threshold).clamp(min=1)
    return variance.sqrt() * normal(random)


def gaussian(random: Tensor, p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplicative noise of 32-bit numbers: N(1, p / (1-p)), the mean and variance of :func:`factor`."""
    return _rounded(1 + _noise(random, p_threshold), dtype)


def additive(random: Tensor, p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Noise of 32-bit numbers that is added: N(0, p / (1-p))."""
    return _rounded(_noise(random, p_threshold), dtype)


def _drawn(
    spec: StepDropout | LockedDropout | HiddenDropout | WeightDropout,
    random: Tensor,
    p_threshold: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The mask of a site, or the noise that its options ask for in its place."""
    noise = getattr(spec, "noise", "bernoulli")
    draw = {"bernoulli": factor, "gaussian": gaussian, "additive": additive}[noise]
    return draw(random, p_threshold, dtype)


def added(spec: StepDropout | LockedDropout | HiddenDropout | WeightDropout) -> bool:
    """Whether what a site draws is added, in the place of multiplied."""
    return getattr(spec, "noise", "bernoulli") == "additive"


def key_of(name: str, spec: StepDropout | LockedDropout | HiddenDropout | WeightDropout) -> str:
    """What :mod:`reference` calls a mask of ``name``: a noise that is added has a key of its own."""
    return f"{name}_noise" if added(spec) else name


def binary(random: Tensor, p_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Unscaled mask of 32-bit numbers: 1 where ``number >= P``, else 0."""
    return (random >= p_threshold).to(dtype)


def zoned(random: Tensor, z_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Zoneout mask of 32-bit numbers: 1 (the old value stays) where ``number < Z``, else 0."""
    return (random < z_threshold).to(dtype)


# --------------------------------------------------------------------------------------------------------------------
# Masks of the sites
# --------------------------------------------------------------------------------------------------------------------


def _of_gates(
    words: Words, rng: Tensor, row: Tensor, step: Tensor, n: int, kind: int, layer: int, direction: int, gates: int
) -> Tensor:
    """The numbers of a mask of each gate, (len(step), len(row), gates, n)."""
    return torch.stack(
        [words(rng, row, step, n, stream(kind, layer, direction, gate)) for gate in range(gates)], dim=-2
    )


def locked(
    spec: StepDropout | LockedDropout,
    p_threshold: Tensor,
    rng: Tensor,
    kind: int,
    layer: int,
    units: int,
    example_ids: Tensor,
    steps: Tensor,
    dtype: torch.dtype,
    words: Words = words,
    *,
    gates: int = 4,
) -> Tensor:
    """Mask of a layer's input, of the tensor between two layers, or of the last output.

    Args:
        spec: the site's options (the rate in them is not read).
        p_threshold: int64, 0-dim: round(p 2**32).
        rng: int64[2].
        kind: ``KIND["INPUT"]``, ``KIND["INTER_LAYER"]`` or ``KIND["OUTPUT"]``.
        layer: the layer that reads the masked tensor; ``num_layers`` for the output.
        units: width of the masked tensor.
        example_ids: int64 (B,).
        steps: int64 (T,), absolute.
        dtype: of the result.
        words: where the 32-bit numbers come from.
        gates: 4 (LSTM) or 3 (GRU); read where ``spec.tied`` is False.

    Returns:
        Factors 0 or 1/(1-p): (T or 1, B or 1, units); with ``tied=False`` (1, B or 1, gates, units). With ``noise`` the
        factors, or what is to be added.
    """
    batch_shared = isinstance(spec, LockedDropout) and spec.batch_shared
    untied = isinstance(spec, LockedDropout) and not spec.tied
    per_step = not isinstance(spec, LockedDropout) or spec.per == "step"
    once = torch.full((1,), SEQ, dtype=torch.int64, device=rng.device)
    rows, of_steps = once if batch_shared else example_ids, steps if per_step else once
    if untied:
        random = _of_gates(words, rng, rows, of_steps, units, kind, layer, 0, gates)
    else:
        random = words(rng, rows, of_steps, units, stream(kind, layer))
    return _drawn(spec, random, p_threshold, dtype)


def embedding(
    p_threshold: Tensor,
    rng: Tensor,
    ids: Tensor,
    examples: Tensor | int,
    steps: Tensor | int,
    dtype: torch.dtype,
) -> Tensor:
    """Factor of each word of a batch, without a table of the vocabulary: 0, or 1/(1-p).

    Args:
        p_threshold: int64, 0-dim: round(p 2**32).
        rng: int64[2].
        ids: int64, any shape: the words.
        examples: int64 that broadcasts to ``ids``; 0 where a mask is one for all examples.
        steps: int64 that broadcasts to ``ids``, absolute; ``SEQ`` where a mask is one for all steps.
        dtype: of the result.

    Returns:
        Factors of the shape of ``ids``.
    """
    row, step = (torch.as_tensor(value, dtype=torch.int64, device=ids.device) for value in (examples, steps))
    call, of_call = (ids >> 3 & _WORD, row & _WORD, step & _WORD), key(rng)

    def field(fourth: int) -> Tensor:
        fields = _fields(philox((*call, torch.full_like(rng[0], fourth)), of_call))
        return fields.gather(-1, (ids & 7).unsqueeze(-1)).squeeze(-1)

    of_kind = stream(KIND["EMBEDDING"], 0)
    random = field(of_kind) << 16 | field(of_kind | LOW)
    return factor(random, p_threshold, dtype)


def _weights(
    plan: Plan,
    rng: Tensor,
    p_threshold: Tensor,
    shapes: Mapping[str, tuple[int, int]],
    layer: int,
    direction: int,
    example_ids: Tensor,
    dtype: torch.dtype,
    words: Words,
) -> dict[str, Tensor]:
    """The weight masks of one layer and direction; ``shapes`` has (rows, columns) of each masked weight."""
    spec = plan.weight_dropout
    assert spec is not None
    once = torch.full((1,), SEQ, dtype=torch.int64, device=rng.device)
    result: dict[str, Tensor] = {}
    for name, (rows, columns) in shapes.items():
        if spec.mode == "row":
            of_kind = stream(KIND[f"{name.upper()}_ROWS"], layer, direction)
            random = words(rng, torch.zeros_like(once), once, rows, of_kind)[0, 0, :, None]
        else:
            row = torch.arange(rows, dtype=torch.int64, device=rng.device)
            of_kind = stream(KIND[name.upper()], layer, direction)
            random = words(rng, row, example_ids if spec.per_example else once, columns, of_kind)
            random = random if spec.per_example else random[0]
        result[key_of(name, spec)] = _drawn(spec, random, p_threshold, dtype)
    return result


def _state_in_eval(plan: Plan, thresholds: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """What stays of the state sites when masks are off: expectations, as 0-dim tensors."""
    result: dict[str, Tensor] = {}
    for name in acting_in_eval(plan):
        spec, limit = getattr(plan, name), thresholds[SITE_INDEX[name]]
        if isinstance(spec, Zoneout):
            result["zoneout_gate" if spec.gate_shared else name] = drop_rate(limit, dtype)
        else:  # a scale="paper"
            result[_PAPER_KEYS[name]] = keep_rate(limit, dtype)
    return result


def _of_units(spec: Zoneout, random: Tensor) -> Tensor:
    """The numbers of all units: their own, or that of the first where they share one."""
    return random[..., :1].expand_as(random) if spec.unit_shared else random


def _state(
    plan: Plan,
    cell: str,
    thresholds: Tensor,
    random: Callable[[str], Tensor],
    proj_size: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The masks of the state sites; ``random(site)`` gives the numbers of every unit."""
    limit = {name: thresholds[index] for name, index in SITE_INDEX.items()}
    result: dict[str, Tensor] = {}
    if update := plan.update_dropout:
        mask = binary if update.scale == "paper" else factor
        result["update"] = mask(random("update_dropout"), limit["update_dropout"], dtype)
    if memory := plan.cell_dropout:
        p = limit["cell_dropout"]
        result["cell"] = binary(random("cell_dropout"), p, dtype)
        one = torch.ones_like(p, dtype=dtype)
        result["cell_scale"] = one if memory.scale == "paper" else keep_scale(p, dtype)
        entry = result["cell"][0] if memory.per == "sequence" else one
        # A GRU's caller sees the memory scaled by 1/q, so what comes in is q times too large.
        in_rate = keep_rate(p, dtype) if CELLS[cell].scaled and memory.scale == "output" else one
        result["cell_entry"] = entry * in_rate
    if zoneout := plan.zoneout_c:
        name = "zoneout_gate" if zoneout.gate_shared else "zoneout_c"
        result[name] = zoned(_of_units(zoneout, random("zoneout_c")), limit["zoneout_c"], dtype)
    if zoneout := plan.zoneout_h:
        old = zoned(_of_units(zoneout, random("zoneout_h")), limit["zoneout_h"], dtype)
        result["zoneout_h"] = old[..., :proj_size] if proj_size else old
    return result


def layer(
    plan: Plan,
    cell: str,
    rngs: Mapping[str, Tensor],
    thresholds: Tensor,
    *,
    layer: int,
    reverse: bool,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    example_ids: Tensor,
    steps: Tensor,
    dtype: torch.dtype,
    masks_on: bool,
    words: Words = words,
) -> dict[str, Tensor]:
    """Every mask of one layer and direction but those of its input and output, which :func:`locked` makes.

    Args:
        plan: which sites are configured.
        cell: a name of :data:`cells.CELLS`.
        rngs: group (:data:`sites.GROUPS`) to int64[2]; not read where ``masks_on`` is False.
        thresholds: int64[10], in the order of :data:`sites.SITES`.
        layer: index of the layer.
        reverse: whether this is the reverse direction; its masks too are indexed by absolute step.
        input_size: width I of the layer's input.
        hidden_size: width H of the memory.
        proj_size: width P of h where there is a projection, else 0.
        example_ids: int64 (B,).
        steps: int64 (T,), absolute.
        dtype: of the results.
        masks_on: train or MC mode. Otherwise the expectations that eval needs, as 0-dim tensors.
        words: where the 32-bit numbers come from.

    Returns:
        For :mod:`reference`, by name. Factors 0 or 1/(1-p): ``hidden`` (T or 1, B or 1, P), untied (1, B or 1, G, P);
        ``weight_hh``, ``weight_ih``, ``weight_hr`` (rows, columns), by row (rows, 1), per example (B, rows, columns);
        ``update`` (T or 1, B, H). Bits: ``cell`` (T or 1, B, H) with the 0-dim ``cell_scale`` and, for the state that
        comes in, the factor ``cell_entry`` (B, H) or 0-dim; ``zoneout_c``, ``zoneout_h``, ``zoneout_gate`` (T or 1, B,
        H or P), 1 where the old value stays. In eval: zoneout's z; with ``scale="paper"`` q as ``update`` and ``cell``.
        A noise that is added is ``hidden_noise``, ``weight_hh_noise`` ..., in the shape of the mask.
    """
    if not masks_on:
        return _state_in_eval(plan, thresholds, dtype)
    gates, state_size, direction = CELLS[cell].gates, proj_size or hidden_size, int(reverse)
    once = torch.full((1,), SEQ, dtype=torch.int64, device=thresholds.device)
    result: dict[str, Tensor] = {}
    if hidden := plan.hidden_dropout:
        examples = once if hidden.batch_shared else example_ids
        times = steps if hidden.per == "step" else once
        given = words, rngs["hidden"], examples, times, state_size, KIND["HIDDEN"], layer, direction
        random = _of_gates(*given, 1)[..., 0, :] if hidden.tied else _of_gates(*given, gates)
        p = thresholds[SITE_INDEX["hidden_dropout"]]
        result[key_of("hidden", hidden)] = _drawn(hidden, random, p, dtype)
    if weight := plan.weight_dropout:
        shapes = {"weight_hh": (gates * hidden_size, state_size)}
        if weight.inputs:
            shapes["weight_ih"] = (gates * hidden_size, input_size)
        if weight.projection and proj_size:
            shapes["weight_hr"] = (proj_size, hidden_size)
        p = thresholds[SITE_INDEX["weight_dropout"]]
        result |= _weights(plan, rngs["weight"], p, shapes, layer, direction, example_ids, dtype, words)

    def random_state(name: str) -> Tensor:
        spec = getattr(plan, name)
        kind = KIND[SITE["zoneout_c" if isinstance(spec, Zoneout) and spec.shared else name].kind]
        step = steps if spec.per == "step" else once
        return words(rngs["state"], example_ids, step, hidden_size, stream(kind, layer, direction))

    result |= _state(plan, cell, thresholds, random_state, proj_size, dtype)
    return result
