"""What losses and predictions made of several passes share: a model in eval for a while, and the logits of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..fakes import compute_dtype


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """The model in eval, and afterwards each of its modules as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def logits_of(result: Any) -> Tensor:
    """The logits that a model returned, alone or as the first of a tuple, in the type in which they are summed.

    Raises:
        TypeError: it returned something else.
    """
    logits = result[0] if isinstance(result, (tuple, list)) else result
    if not isinstance(logits, Tensor):
        raise TypeError(f"model should return logits, or a tuple that begins with them, got {type(logits).__name__}")
    return logits.to(compute_dtype(logits.dtype))


__all__ = ["in_eval", "logits_of"]
