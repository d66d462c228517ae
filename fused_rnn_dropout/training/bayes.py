"""Weights that have a distribution: Bayes by backprop (Blundell et al. 2015; Fortunato et al. 2017)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .. import masks
from ..arguments import Rng
from ..fakes import compute_dtype
from ..sites import KIND, SEQ, stream
from .rated import Drawing

MIXTURE = (0.25, math.exp(-1), math.exp(-7))
"""pi, s1 and s2 of the recurrent paper's prior."""
_WEIGHT = re.compile(r"(weight_(?:hh|ih|hr))_l(\d+)(_reverse)?")


class BayesByBackprop(Drawing):
    """A recurrent layer whose weights are drawn anew for each forward call, from a Gaussian that is learned.

    Each recurrent weight has a mean m, the layer's own parameter, and a standard deviation s = log(1 + exp(rho)):

        w = m + s e,    e ~ N(0, 1),    loss = mean loss of a token + KL(q(w) || prior) / tokens

    One sample of the weights serves all steps and examples of a call, so that it runs in the layer's own kernels; the
    gradient reaches m and rho through it. Element (i, j) of a weight has the number that its mask of
    ``weight_dropout`` would have. Eval takes the means; with ``mc`` a sample of each call.

    With ``prior`` a number, the prior is N(0, prior^2) and the KL has a closed form. With (pi, s1, s2) it is the
    papers' pi N(0, s1^2) + (1 - pi) N(0, s2^2), and :meth:`kl` is the estimate log q(w) - log prior(w) at one sample.

    The traps. The divisor: a batch's mean loss takes the KL over *all tokens of the training set*, not over those of
    the segment, or the prior wins. Weight decay of the means is what the prior does already. A sequence that comes in
    segments has other weights in each, but under :func:`hold_masks`. And biases, embedding and decoder keep one value,
    where the papers give all of them a distribution; the posterior sharpening of the recurrent one is not here.

    Args:
        rnn: an LSTM, GRU or RNN of this package or of torch.nn; a child module, which keeps the names of its weights.
        inputs: W_ih too, beside the recurrent weights, and the projection where there is one.
        std: s to begin with, above 0; small, since a sum over H weights is noisy.
        prior: a standard deviation, or (pi, s1, s2).
        mc: weights drawn in eval too.

    Raises:
        TypeError: ``rnn`` is no such layer, or a switch no bool.
        ValueError: ``std`` or ``prior`` out of range.
    """

    group = "weight"

    def __init__(
        self,
        rnn: nn.RNNBase,
        *,
        inputs: bool = False,
        std: float = 0.05,
        prior: float | tuple[float, float, float] = MIXTURE,
        mc: bool = False,
    ) -> None:
        super().__init__(mc=mc)
        if not isinstance(rnn, nn.RNNBase):
            raise TypeError(f"rnn should be an LSTM, GRU or RNN, got {type(rnn).__name__}")
        if not isinstance(inputs, bool):
            raise TypeError(f"inputs should be of type bool, got: {type(inputs).__name__}")
        if not 0 < std < math.inf:
            raise ValueError(f"std should be above 0, got {std}")
        mixture: Any = tuple(prior) if isinstance(prior, (tuple, list)) else (1.0, prior, prior)
        numbers = len(mixture) == 3 and all(isinstance(number, (int, float)) for number in mixture)
        if not numbers or not 0 <= mixture[0] <= 1 or not all(0 < s < math.inf for s in mixture[1:]):
            raise ValueError(
                f"prior should be a number above 0, or pi in [0, 1] and two numbers above 0, got {prior!r}"
            )
        self.rnn, self.prior, self.inputs = rnn, prior, inputs
        self._mixture = mixture
        of_inputs = ("ih", "hr") if inputs else ()
        self.rho = nn.ParameterDict(
            {
                name: nn.Parameter(torch.full_like(weight, std + math.log(-math.expm1(-std))))
                for name, weight in rnn.named_parameters()
                if name.startswith(tuple(f"weight_{kind}_" for kind in ("hh", *of_inputs)))
            }
        )

    def forward(self, *args: Any, weights_rng: Tensor | None = None, **options: Any) -> Any:
        """What the layer returns, with weights of one sample, or in eval with their means.

        Args:
            args, options: of the layer.
            weights_rng: int64[2]; the same pair gives the same weights. Drawn if None and weights are drawn at all.

        Raises:
            TypeError, ValueError: ``weights_rng`` is something else; what the layer raises.
        """
        if not self.masks_on:
            return self.rnn(*args, **options)
        turn = self.begin(weights_rng, None, 0)
        drawn = {name: weight.to(self.rho[name].dtype) for name, weight in self._sample(turn.rng).items()}
        turn.end(tuple(drawn.values()))
        return functional_call(self.rnn, drawn, args, options)

    def kl(self, weights_rng: Tensor | None = None) -> Tensor:
        """KL of the weights' distribution from the prior, in nats: the sum over all weights that are drawn.

        Args:
            weights_rng: int64[2] of the sample at which a prior of two Gaussians is compared: that of the forward pass,
                or any. Drawn if None. A prior of one Gaussian needs none.

        Returns:
            0-dim: float32, or float64 for float64 weights.
        """
        if self._mixture[0] == 1:
            s0 = self._mixture[1]
            terms = [
                (s0 / s).log() + (s.square() + mean.square()) / (2 * s0**2) - 0.5
                for mean, s in self._moments().values()
            ]
            return torch.stack([term.sum() for term in terms]).sum()
        turn = self.begin(weights_rng, None, 0) if self.masks_on else None
        drawn = self._sample(weights_rng if turn is None else turn.rng)
        terms = [
            _log_normal(drawn[name], m, s) - self._log_prior(drawn[name]) for name, (m, s) in self._moments().items()
        ]
        return torch.stack([term.sum() for term in terms]).sum()

    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each weight that is drawn, in the type in which they are summed."""
        moments = {}
        for name, rho in self.rho.items():
            compute = compute_dtype(rho.dtype)
            moments[name] = getattr(self.rnn, name).to(compute), F.softplus(rho.to(compute))
        return moments

    def _sample(self, rng: Rng | None) -> dict[str, Tensor]:
        """One sample of each weight, in the type of the moments."""
        device = self.device_of_masks()
        pair = self.pair(rng, device)
        once = torch.full((1,), SEQ, dtype=torch.int64, device=device)
        drawn = {}
        for name, (mean, std) in self._moments().items():
            found = _WEIGHT.fullmatch(name)
            assert found is not None
            of_kind = stream(KIND[found[1].upper()], int(found[2]), int(found[3] is not None))
            rows = torch.arange(mean.size(0), dtype=torch.int64, device=device)
            numbers = masks.words(pair, rows, once, mean.size(1), of_kind)[0]
            drawn[name] = mean + std * masks.normal(numbers).to(std.dtype)
        return drawn

    def _log_prior(self, w: Tensor) -> Tensor:
        pi, *stds = self._mixture
        log_pi = (math.log(part) if part else -math.inf for part in (pi, 1 - pi))
        first, second = (log + _log_normal(w, 0.0, s) for log, s in zip(log_pi, stds, strict=True))
        return torch.logaddexp(first, second)

    def extra_repr(self) -> str:
        shown = [f"prior={self.prior}", *(f"{name}=True" for name in ("inputs", "mc") if getattr(self, name))]
        return ", ".join(shown)


def _log_normal(w: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """The logarithm of the density of N(mean, std^2) at ``w``."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -((w - mean) / std).square() / 2 - log_std - math.log(2 * math.pi) / 2


__all__ = ["MIXTURE", "BayesByBackprop"]
