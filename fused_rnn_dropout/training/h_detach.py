"""h-detach: at random steps no gradient flows back through h, so that the one through c counts (Arpit et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import check_rate


def h_detach(h: Tensor, p: float, *, generator: torch.Generator | None = None) -> Tensor:
    """``h``, with probability p cut from its graph: one coin for a step and its whole batch.

    Call it on the h that enters a step, in a loop over :class:`LSTMCell`, and leave c as it is:
    ``state = cell(x_t, (h_detach(h, 0.25), c))``. The forward pass is untouched, so there is nothing to scale and
    nothing to do in eval. The paper's p: 0.25 for sequential MNIST, 0.5 for copying over 300 steps, and 0 for the last
    epochs. The trap: detaching the output too would cut what the loss reads.

    Args:
        h: of any shape.
        p: probability in [0, 1].
        generator: of the CPU; torch's default one if None.

    Raises:
        ValueError: ``p`` is outside [0, 1].
    """
    p = check_rate("p", p, "a step being detached")
    return h.detach() if float(torch.rand((), generator=generator)) < p else h


__all__ = ["h_detach"]
