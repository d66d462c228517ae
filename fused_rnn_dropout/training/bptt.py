"""Backpropagation through time over segments of random length (Merity et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def random_bptt_length(
    bptt: int,
    *,
    short: float = 0.05,
    std: float = 5.0,
    minimum: int = 5,
    maximum: int | None = None,
    multiple_of: int = 1,
    generator: torch.Generator | None = None,
) -> int:
    """Length of the next segment: about ``bptt``, sometimes about half of it.

    The base is ``bptt``, with probability ``short`` ``bptt / 2``; the length is an integer drawn from
    N(base, ``std``), cut to [``minimum``, ``maximum``]. So the same words do not always stand at the end of a segment,
    where they get no gradient through time. Longer segments make larger gradients: scale the learning rate of that
    update with :func:`bptt_learning_rate`.

    Args:
        bptt: the usual length.
        short: probability of the half base.
        std: standard deviation of the length.
        minimum: the least length.
        maximum: the largest; ``bptt + 20`` if None. The normal distribution has none, so that buffers would have none.
        multiple_of: rounds the length to a multiple of this, for captured graphs and compiled code, of which there is
            one for each length; ``minimum`` and ``maximum`` must then leave room for one.
        generator: of the CPU; torch's default one if None.

    Raises:
        ValueError: an argument out of range.
    """
    largest = bptt + 20 if maximum is None else maximum
    for name, value, fine in (
        ("bptt", bptt, bptt >= 1),
        ("short", short, 0 <= short <= 1),
        ("std", std, std >= 0),
        ("minimum", minimum, minimum >= 1),
        ("multiple_of", multiple_of, multiple_of >= 1),
        ("maximum", maximum, largest // multiple_of * multiple_of >= minimum),
    ):
        if not fine:
            allowed = {"short": "in [0, 1]", "std": "at least 0",
                       "maximum": f"at least minimum={minimum}, in multiples of {multiple_of}"}  # fmt: skip
            raise ValueError(f"{name} should be {allowed.get(name, 'at least 1')}, got {value}")
    base = bptt / 2 if float(torch.rand((), generator=generator)) < short else bptt
    length = int(base + std * float(torch.randn((), generator=generator)))
    length = round(length / multiple_of) * multiple_of
    least, most = -(-minimum // multiple_of) * multiple_of, largest // multiple_of * multiple_of
    return min(max(length, least), most)


def random_bptt_slices(steps: int, bptt: int, **options: Any) -> Iterator[slice]:
    """Cuts ``steps`` steps into segments of random length that cover each step once; the last may be short.

    Args:
        steps: steps of the whole sequence, T. For ``x[segment]`` to predict ``x[1:][segment]``, one less than x has.
        bptt: the usual length.
        options: of :func:`random_bptt_length`.
    """
    begin = 0
    while begin < steps:
        end = min(begin + random_bptt_length(bptt, **options), steps)
        yield slice(begin, end)
        begin = end


@contextmanager
def bptt_learning_rate(optimizer: torch.optim.Optimizer, length: int, bptt: int) -> Iterator[None]:
    """``with bptt_learning_rate(optimizer, length, bptt): optimizer.step()`` takes lr * length / bptt for that update.

    The trap: ``torch.optim.ASGD`` uses at each step the rate that it saw at the end of the step before, so that the
    scale would act one update late. :class:`NTASGD` uses the rate of the moment.

    Args:
        optimizer: its groups' ``lr``, numbers or tensors, are as before afterwards.
        length: of the segment.
        bptt: the usual length.

    Raises:
        ValueError: ``length`` or ``bptt`` is below 1.
        RuntimeError: something else, such as a scheduler, changed a rate inside the block.
    """
    for name, value in (("length", length), ("bptt", bptt)):
        if not value >= 1:
            raise ValueError(f"{name} should be at least 1, got {value}")
    factor = length / bptt
    before: list[Any] = []
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # compiled code reads that very tensor
            before.append(group["lr"].clone())
            group["lr"].mul_(factor)
        else:
            before.append(group["lr"])
            group["lr"] = group["lr"] * factor
    scaled = [float(group["lr"]) for group in optimizer.param_groups]
    try:
        yield
    finally:
        changed = [float(group["lr"]) for group in optimizer.param_groups] != scaled
        for group, rate in zip(optimizer.param_groups, before, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
    if changed:
        raise RuntimeError("a learning rate changed inside bptt_learning_rate: step its scheduler after the block")


__all__ = ["bptt_learning_rate", "random_bptt_length", "random_bptt_slices"]
