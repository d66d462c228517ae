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
_OF_A_LAYER = re.compile(r"(?:weight|bias)_(hh|ih|hr)_l(\d+)(_reverse)?")


class BayesByBackprop(Drawing):
    """A layer whose weights are drawn anew for each forward call, from a Gaussian that is learned.

    Each weight has a mean m, the layer's own parameter, and a standard deviation s = log(1 + exp(rho)):

        w = m + s e,    e ~ N(0, 1),    loss = mean loss of a token + KL(q(w) || prior) / tokens

    One sample of the weights serves all steps and examples of a call, so that it runs in the layer's own kernels; the
    gradient reaches m and rho through it. Eval takes the means; with ``mc`` a sample of each call. Element (i, j) of a
    weight has the number that its mask of ``weight_dropout`` would have, and element i of a bias that of a mask by row
    of the matrix beside it; embeddings and linear layers are numbered as the W_ih of a first layer.

    With ``prior`` a number, the prior is N(0, prior^2) and the KL has a closed form. With (pi, s1, s2) it is the
    papers' pi N(0, s1^2) + (1 - pi) N(0, s2^2), and :meth:`kl` is the estimate log q(w) - log prior(w) at one sample.

    The papers give every parameter a distribution: set ``inputs`` and ``biases``, and put one of these around the
    embedding and one around the decoder too. The row of an embedding's ``padding_idx`` keeps its value.

    The traps. The divisor: a batch's mean loss takes the KL over *all tokens of the training set*, not over those of
    the segment, or the prior wins. Weight decay of the means is what the prior does already. A sequence that comes in
    segments has other weights in each, but under :func:`hold_masks`. A decoder that is tied to an embedding reads its
    means. And the posterior sharpening of the recurrent paper is not here.

    Args:
        layer: an LSTM, GRU or RNN of this package or of torch.nn, an ``nn.Embedding`` or an ``nn.Linear``; a child
            module, which keeps the names of its weights.
        inputs: W_ih too, beside the recurrent weights, and the projection where there is one.
        biases: its biases too.
        std: s to begin with, above 0; small, since a sum over H weights is noisy.
        prior: a standard deviation, or (pi, s1, s2).
        mc: weights drawn in eval too.

    Raises:
        TypeError: ``layer`` is none of these, or a switch no bool.
        ValueError: ``std`` or ``prior`` out of range; ``inputs`` or ``biases`` of a layer that has none; an embedding
            with ``max_norm`` or ``sparse``, which are about the few rows that are read, where every row is drawn.
    """

    group = "weight"

    def __init__(
        self,
        layer: nn.RNNBase | nn.Embedding | nn.Linear,
        *,
        inputs: bool = False,
        biases: bool = False,
        std: float = 0.05,
        prior: float | tuple[float, float, float] = MIXTURE,
        mc: bool = False,
    ) -> None:
        super().__init__(mc=mc)
        names = _drawn(layer, inputs, biases)
        if not isinstance(std, (int, float)) or not 0 < std < math.inf:
            raise ValueError(f"std should be a number above 0, got {std!r}")
        mixture: Any = tuple(prior) if isinstance(prior, (tuple, list)) else (1.0, prior, prior)
        numbers = len(mixture) == 3 and all(isinstance(number, (int, float)) for number in mixture)
        if not numbers or not 0 <= mixture[0] <= 1 or not all(0 < s < math.inf for s in mixture[1:]):
            raise ValueError(
                f"prior should be a number above 0, or pi in [0, 1] and two numbers above 0, got {prior!r}"
            )
        self.layer, self.prior, self.inputs, self.biases = layer, prior, inputs, biases
        self._mixture = mixture
        start = std + math.log(-math.expm1(-std))
        self.rho = nn.ParameterDict(
            {name: nn.Parameter(torch.full_like(getattr(layer, name), start)) for name in names}
        )

    def forward(self, *args: Any, weights_rng: Tensor | None = None, **options: Any) -> Any:
        """What the layer returns, with weights of one sample, or in eval with their means.

        Args:
            args, options: of the layer.
            weights_rng: int64[2]; the same pair gives the same weights. Drawn if None and weights are drawn at all.

        Raises:
            TypeError, ValueError: ``weights_rng`` is something else; what the layer raises.
            RuntimeError: in a replica of DataParallel, to which torch gives no ``ParameterDict``.
        """
        if not self.masks_on:
            return self.layer(*args, **options)
        if vars(self).get("_is_replica", False):
            raise RuntimeError("DataParallel gives its replicas no rho: use DistributedDataParallel")
        turn = self.begin(weights_rng, None, 0)
        drawn = {name: weight.to(self.rho[name].dtype) for name, weight in self._sample(turn.rng).items()}
        turn.end(tuple(drawn.values()))
        return functional_call(self.layer, drawn, args, options)

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
        else:
            turn = self.begin(weights_rng, None, 0) if self.masks_on else None
            drawn = self._sample(weights_rng if turn is None else turn.rng)
            terms = [
                _log_normal(drawn[name], m, s) - self._log_prior(drawn[name])
                for name, (m, s) in self._moments().items()
            ]
        return torch.stack([self._without_padding(term).sum() for term in terms]).sum()

    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each weight that is drawn, in the type in which they are summed."""
        moments = {}
        for name, rho in self.rho.items():
            compute = compute_dtype(rho.dtype)
            moments[name] = getattr(self.layer, name).to(compute), F.softplus(rho.to(compute))
        return moments

    def _sample(self, rng: Rng | None) -> dict[str, Tensor]:
        """One sample of each weight, in the type of the moments."""
        pair = self.pair(rng, self.device_of_masks())
        drawn = {}
        for name, (mean, std) in self._moments().items():
            noise = self._without_padding(masks.normal(_numbers(name, mean, pair)))
            drawn[name] = mean + std * noise.to(std.dtype)
        return drawn

    def _without_padding(self, of_weight: Tensor) -> Tensor:
        """0 in the row of an embedding that stands for no word."""
        padding = getattr(self.layer, "padding_idx", None)
        if padding is None:
            return of_weight
        rows = torch.arange(of_weight.size(0), device=of_weight.device)
        return torch.where((rows == padding)[:, None], 0.0, of_weight)

    def _log_prior(self, w: Tensor) -> Tensor:
        pi, *stds = self._mixture
        log_pi = (math.log(part) if part else -math.inf for part in (pi, 1 - pi))
        first, second = (log + _log_normal(w, 0.0, s) for log, s in zip(log_pi, stds, strict=True))
        return torch.logaddexp(first, second)

    def extra_repr(self) -> str:
        switches = [f"{name}=True" for name in ("inputs", "biases", "mc") if getattr(self, name)]
        return ", ".join([f"prior={self.prior}", *switches])


def _drawn(layer: nn.Module, inputs: bool, biases: bool) -> list[str]:
    """The names of the weights that have a distribution.

    Raises:
        TypeError, ValueError: as :class:`BayesByBackprop`.
    """
    if not isinstance(layer, (nn.RNNBase, nn.Embedding, nn.Linear)):
        raise TypeError(f"layer should be an LSTM, GRU, RNN, nn.Embedding or nn.Linear, got {type(layer).__name__}")
    for switch, on in (("inputs", inputs), ("biases", biases)):
        if not isinstance(on, bool):
            raise TypeError(f"{switch} should be of type bool, got: {type(on).__name__}")
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        raise ValueError("layer should be an nn.Embedding without max_norm and sparse, since every row is drawn")
    recurrent = isinstance(layer, nn.RNNBase)
    if inputs and not recurrent:
        raise ValueError(f"inputs should be False for {type(layer).__name__}, whose weights are drawn in any case")
    given = ("weight_hh_", *(("weight_ih_", "weight_hr_") if inputs else ())) if recurrent else ("weight",)
    names = [name for name, _ in layer.named_parameters()]
    of_biases = [name for name in names if name.startswith("bias")]
    if biases and not of_biases:
        raise ValueError(f"biases should be False for {type(layer).__name__} without any")
    return [name for name in names if name.startswith(given) or (biases and name in of_biases)]


def _numbers(name: str, weight: Tensor, pair: Tensor) -> Tensor:
    """The random number of each element."""
    found = _OF_A_LAYER.fullmatch(name)
    matrix, number, reverse = ("ih", "0", None) if found is None else found.groups()
    kind, place = f"WEIGHT_{matrix.upper()}", (int(number), int(reverse is not None))
    once = torch.full((1,), SEQ, dtype=torch.int64, device=pair.device)
    if weight.dim() == 1:
        return masks.words(pair, torch.zeros_like(once), once, len(weight), stream(KIND[f"{kind}_ROWS"], *place))[0, 0]
    rows = torch.arange(len(weight), dtype=torch.int64, device=pair.device)
    return masks.words(pair, rows, once, weight.size(1), stream(KIND[kind], *place))[0]


def _log_normal(w: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """The logarithm of the density of N(mean, std^2) at ``w``."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -((w - mean) / std).square() / 2 - log_std - math.log(2 * math.pi) / 2


__all__ = ["MIXTURE", "BayesByBackprop"]
