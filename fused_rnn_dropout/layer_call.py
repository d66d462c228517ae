"""The arguments of the layer operators by name, and what they mean for each direction: ``csrc/bind/layer_call.h``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cells import CELLS, Cell, Keep
from .sites import FLAG, SITES

_CELLS = tuple(CELLS.values())
_PRESENT = [[site.name for site in SITES if site.fits(name)] for name in CELLS]
_ABSENT = [[site for site in SITES if not site.fits(name)] for name in CELLS]
"""Of each cell, the sites that it does not have: its kernels pass over their bits of ``flags``."""

FORWARD, REVERSE, BOTH = 1, 2, 3
"""The ``directions`` of a layer."""

NEEDS_X, NEEDS_W_IH, NEEDS_W_HH, NEEDS_BIAS, NEEDS_W_HR = 1, 2, 4, 8, 16
"""Bits of ``needs``: which gradients ``layer_backward`` computes; those of the initial states always."""
_NEEDS_WEIGHT = {"w_ih": NEEDS_W_IH, "w_hh": NEEDS_W_HH, "b_ih": NEEDS_BIAS, "b_hh": NEEDS_BIAS, "w_hr": NEEDS_W_HR}
_NEEDS_BITS = 4  # of the weights of one direction

_WEIGHTS = {
    2: ("w_ih", "w_hh"),
    3: ("w_ih", "w_hh", "w_hr"),
    4: ("w_ih", "w_hh", "b_ih", "b_hh"),
    5: ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"),
}
"""What the weights of one direction are, by how many there are."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


class Direction(NamedTuple):
    """One direction of a layer; None where a cell has no such tensor."""

    number: int  # its columns of y begin at number * P
    reverse: bool
    h0: Tensor
    c0: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    @property
    def states(self) -> tuple[Tensor, ...]:
        """h0 and, where there is one, c0."""
        return (self.h0,) if self.c0 is None else (self.h0, self.c0)

    @property
    def units(self) -> Any:
        """The width H of the memory."""
        return self.states[-1].shape[1]


class Kept(NamedTuple):
    """What a forward keeps of one direction; empty tensors where something is not kept.

    ``beside`` is c after each step, or what the last gate takes apart; ``states`` is h after each step, where the
    output is another number.
    """

    gates: Any
    beside: Any
    states: Any

    @staticmethod
    def of_each(kept: Sequence[Tensor]) -> list[Kept]:
        """Of each direction, from what ``layer_forward`` returns."""
        return [Kept(*kept[start : start + 3]) for start in range(0, len(kept), 3)]


class LayerCall(NamedTuple):
    """The arguments that the layer operators share, in the order of their schemas. ``ops.py`` says what they are."""

    cell: int
    x: Tensor
    states: Sequence[Tensor]
    weights: Sequence[Tensor]
    batch_sizes: Tensor | None
    example_ids: Tensor | None
    rng: Tensor | None
    thresholds: Tensor | None
    dtype: torch.dtype
    flags: int
    layer: int
    directions: int
    step_offset: int
    schedule: int
    keep: int

    def check(self) -> None:
        """Whether the numbers, and how many tensors there are, mean a layer.

        Raises:
            RuntimeError: they do not, in the words of the compiled operators.
        """
        _check(0 <= self.cell < len(_CELLS), f"cell must be in [0, {len(_CELLS)}), got {self.cell}")
        _check(self.directions in (1, 2, 3), f"directions must be 1, 2 or 3, got {self.directions}")
        _check(self.keep in (0, 1, 2), f"keep must be 0, 1 or 2, got {self.keep}")
        row, count, found = self.row, self.num_directions, len(self.states)
        names = "h0 and c0" if row.has_c else "h0"
        _check(
            found == count * row.states,
            f"states must hold {names} of each direction, {count * row.states} tensors, got {found}",
        )
        each, rest = divmod(len(self.weights), count)
        _check(
            not rest and each in _WEIGHTS and (row.projects or "w_hr" not in _WEIGHTS[each]),
            "weights must hold w_ih and w_hh, then b_ih and b_hh where there are biases"
            f"{', then w_hr where there is a projection,' if row.projects else ','} of each direction, got "
            f"{len(self.weights)} tensors for {count}",
        )
        others = [site.name for site in _ABSENT[self.cell] if self.flags & FLAG[site.flag]]
        _check(
            not others,
            f"flags must be of sites that cell {self.cell} has: {', '.join(_PRESENT[self.cell])}; got that of "
            f"{', '.join(others)}",
        )
        _check(
            "w_hr" in _WEIGHTS[each] or not self.flags & FLAG["WEIGHT_HR"],
            f"flags must not have WEIGHT_HR where weights hold no w_hr, got {self.flags}",
        )

    @property
    def row(self) -> Cell:
        """Of the table of cells."""
        return _CELLS[self.cell]

    @property
    def num_directions(self) -> int:
        """How many directions there are."""
        return 2 if self.directions == BOTH else 1

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Of the weights of one direction."""
        return _WEIGHTS[len(self.weights) // self.num_directions]

    def each(self) -> Iterator[Direction]:
        """The directions, in the order of their tensors."""
        names, of_states, count = self.weight_names, self.row.states, self.num_directions
        for index in range(count):
            h0, *c0 = self.states[index * of_states : (index + 1) * of_states]
            weights = self.weights[index * len(names) : (index + 1) * len(names)]
            reverse = self.directions == REVERSE or index == 1
            yield Direction(index, reverse, h0, c0[0] if c0 else None, **dict(zip(names, weights, strict=True)))

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """The tensors that may have a gradient, in the order in which ``layer_backward`` returns them."""
        return (self.x, *self.states, *self.weights)

    def split(self) -> tuple[tuple[Tensor | None, ...], LayerCall]:
        """All tensors in a row, and the call without them, for who must hold no tensor."""
        cell, x, states, weights, *others = self[:8]
        nothing: Any = None
        # Made anew: _replace, which takes names, takes longer.
        bare = LayerCall(
            cell, nothing, (nothing,) * len(states), (nothing,) * len(weights), None, None, None, None, *self[8:]
        )
        return (x, *states, *weights, *others), bare

    def with_thresholds(self, thresholds: Tensor | None) -> LayerCall:
        """The same call with other rates."""
        return LayerCall(*self[:7], thresholds, *self[8:])

    def join(self, tensors: Sequence[Any]) -> tuple[LayerCall, Sequence[Any]]:
        """The way back; and what follows those tensors."""
        of_weights = 1 + len(self.states)
        end = of_weights + len(self.weights)
        batch_sizes, example_ids, rng, thresholds, *others = tensors[end:]
        whole = LayerCall(
            self.cell, tensors[0], tensors[1:of_weights], tensors[of_weights:end], batch_sizes, example_ids, rng,
            thresholds, *self[8:],
        )  # fmt: skip
        return whole, others

    def needs(self, x: bool, weights: Sequence[bool]) -> int:
        """The ``needs`` that ask for the gradients of x and of those weights."""
        names = self.weight_names
        found = NEEDS_X if x else 0
        for place, wanted in enumerate(weights):
            if wanted:
                index, weight = divmod(place, len(names))
                found |= _NEEDS_WEIGHT[names[weight]] << _NEEDS_BITS * index
        return found


_columns = functools.partial(torch.cat, dim=-1)


def side_by_side(
    results: Sequence[Sequence[Any]], join: Callable[[list[Any]], Any] = _columns
) -> tuple[Any, list[Any]]:
    """y and the last states of a layer, from those of its directions; ``join`` puts two outputs side by side."""
    outs = [out for out, *_ in results]
    return outs[0] if len(outs) == 1 else join(outs), [state for _, *states in results for state in states]


def needs_of(needs: int, index: int) -> int:
    """The ``needs`` of one direction: the bits of its own weights, in the place where those of the first one are."""
    of_weights = NEEDS_W_IH | NEEDS_W_HH | NEEDS_BIAS | NEEDS_W_HR
    return needs & NEEDS_X | needs >> _NEEDS_BITS * index & of_weights


def needed(needs: int, name: str) -> bool:
    """Whether the ``needs`` of one direction ask for the gradient of its weight ``name``."""
    return bool(needs & _NEEDS_WEIGHT[name])


__all__ = ["BOTH", "FORWARD", "REVERSE", "Direction", "Keep", "Kept", "LayerCall", "needed", "needs_of", "side_by_side"]
