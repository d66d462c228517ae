"""Rates that are learned: concrete dropout (Gal et al. 2017), and the penalty of Gaussian dropout on weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..options import check_rate
from .output_dropout import locked
from .rated import Drawing
from .rows import vectors_of


class ConcreteDropout(Drawing):
    """Dropout whose rate p is a parameter: a relaxed mask, through which the loss has a gradient with respect to p.

    With u uniform in (0, 1), t the temperature and s the logistic function,

        z = s((log p - log(1-p) + log u - log(1-u)) / t),   M = (1 - z) / (1 - p)

    z is near 1 with probability p, and near 0 otherwise; for t towards 0 it is the bit of a mask. The rate is
    p = s(``logit``), so that any optimizer can move it.

    A kernel of this package reads a rate as a number, which has no gradient: use :meth:`mask` with the explicit masks
    of :mod:`reference`, for any site of a step, or the module on a tensor outside a layer. Then give the rate that was
    found to a layer, by ``rnn.set_rate``. As t falls, the module's mask becomes that of :class:`OutputDropout` from the
    same pair of random numbers. The traps. Without :meth:`penalty` the training loss drives p to 0, since
    dropping helps only where it is not measured. And M is never exactly 0, so that a "dropped" inf or NaN shows.

    Args:
        p: rate to begin with, in (0, 1).
        temperature: above 0; 0.1 as in the paper.
        mc: masks in eval too.

    Raises:
        ValueError: an argument out of range.
        TypeError: ``mc`` is no bool.
    """

    group = "output"

    def __init__(self, p: float = 0.1, *, temperature: float = 0.1, mc: bool = False) -> None:
        super().__init__(mc=mc)
        p = check_rate("p", p, "an element being zeroed")
        if not 0 < p < 1:
            raise ValueError(f"p should be inside (0, 1), where it has a logit, got {p}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature should be above 0, got {temperature}")
        self.temperature = temperature
        self.logit = nn.Parameter(torch.tensor(math.log(p / (1 - p))))

    @property
    def p(self) -> Tensor:
        """The rate now, 0-dim, with its gradient."""
        return self.logit.sigmoid()

    def mask(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """A relaxed mask, such as (1, B, H) for a site that is drawn per sequence, (T, B, H) per step.

        Args:
            shape: of the mask.
            generator: of the device of ``logit``; torch's default one if None.

        Returns:
            Factors between 0 and 1 / (1-p), of the dtype of ``logit``, with a gradient with respect to it.
        """
        return self._relaxed(torch.rand(shape, generator=generator, device=self.logit.device, dtype=self.logit.dtype))

    def _relaxed(self, u: Tensor) -> Tensor:
        """The mask of uniform numbers, of the dtype of ``logit``."""
        tiny = torch.finfo(self.logit.dtype).eps
        u = u.clamp(tiny, 1 - tiny).to(self.logit.dtype)
        z = ((self.logit + u.logit()) / self.temperature).sigmoid()
        return (1 - z) / (1 - self.p)

    def forward(self, x: Any, *, rng: Tensor | None = None, example_ids: Tensor | None = None) -> Any:
        """``x`` times one mask for all steps, for each example another; in eval ``x``.

        Args:
            x: floating, (T, B, D), or a ``PackedSequence`` of such rows.
            rng: int64[2]; the same pair gives the same random numbers. Drawn if None and masks are on.
            example_ids: int64 (B,); 0..B-1 if None.

        Returns:
            As ``x``.

        Raises:
            TypeError, ValueError: ``x`` is something else.
        """
        if not self.masks_on:
            vectors_of(x)
            return x
        return locked(self, x, rng, example_ids, self._of_numbers)

    def _of_numbers(self, random: Tensor, dtype: torch.dtype) -> Tensor:
        return self._relaxed(1 - (random.double() + 0.5) / 2**32).to(dtype)

    def penalty(self, weight: Tensor, *, examples: int, length_scale: float = 1e-2) -> Tensor:
        """What the paper adds to the mean loss of an example: it holds weights small, and p away from 0 and 1.

        (l^2 sum(W^2) / (2 (1-p)) - D H(p)) / N, with H(p) = -p log p - (1-p) log(1-p), D the columns of W, N the
        examples of the training set. The paper has l^2 (1-p) sum(M^2) / 2 for the matrix M that a mask without a scale
        multiplies: W / (1-p) here, where the mask has the scale.

        Args:
            weight: (rows, D): the matrix that reads the masked tensor.
            examples: N.
            length_scale: l of the prior.

        Raises:
            ValueError: ``weight`` is no matrix, or ``examples`` below 1.
        """
        if weight.dim() != 2:
            raise ValueError(f"weight should be a matrix, got {weight.dim()} dimensions")
        if examples < 1:
            raise ValueError(f"examples should be at least 1, got {examples}")
        p = self.p
        entropy = -(p * p.log() + (1 - p) * (1 - p).log())
        squares = length_scale**2 * weight.square().sum() / (2 * (1 - p))
        return (squares - weight.size(1) * entropy) / examples

    def extra_repr(self) -> str:
        return f"p={float(self.p.detach()):.4g}, temperature={self.temperature:g}"


def gaussian_dropout_kl(p: float | Tensor) -> Any:
    """KL of one weight under ``WeightDropout(p, noise="gaussian")`` from a log-uniform prior, in nats.

    The noise N(1, alpha), alpha = p / (1-p), makes a weight w the distribution N(w, alpha w^2). Its divergence depends
    on alpha alone, and is known up to a constant (Kingma et al. 2015). This is the approximation of Molchanov et al.
    2017, with the constant for which it goes to 0 where all is noise:

        KL = 0.63576 (1 - s(1.87320 + 1.48695 log alpha)) + 0.5 log(1 + 1 / alpha)

    Multiply by the number of weights and divide by the examples of the training set. The trap: for a fixed p it is a
    constant, which trains nothing; it matters where p is learned, which then has no reason to go to 0.

    Args:
        p: in (0, 1), a number, or a tensor that may have a gradient.

    Returns:
        A float, or a tensor shaped as ``p``.

    Raises:
        ValueError: a number outside (0, 1).
    """
    if not isinstance(p, Tensor):
        if not 0 < check_rate("p", p, "a weight being noise") < 1:
            raise ValueError(f"p should be inside (0, 1), got {p}")
        return float(gaussian_dropout_kl(torch.tensor(p, dtype=torch.float64)))
    log_alpha = p.log() - torch.log1p(-p)
    return 0.63576 * (1 - (1.87320 + 1.48695 * log_alpha).sigmoid()) + 0.5 * torch.log1p((-log_alpha).exp())


__all__ = ["ConcreteDropout", "gaussian_dropout_kl"]
