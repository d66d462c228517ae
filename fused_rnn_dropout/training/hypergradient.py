"""Rates that follow the validation loss: one-step hypergradients (Luketina et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import draw_rng
from ..modules import hold_masks
from ..rnn_base import Regularized
from ..sites import acting_in_eval
from ..thresholds import Thresholds
from .passes import in_eval
from .rated import configured


class HypergradientSchedule:
    """Moves rates down the gradient of the validation loss, seen one update ahead, for any site and backend.

    With g(w, p) the gradient of the training loss, the update w' = w - eta g(w, p) depends on the rate p, so that

        dL_valid(w') / dp = - eta <dL_valid / dw, dg / dp> + the direct part, where the site acts in eval (zoneout)

    dg / dp is a difference, (g(w, p + delta) - g(w, p - delta)) / 2 delta, of two passes with the *same* random
    numbers: only the masks' elements between the two rates differ. So nothing need be differentiable in p, and the
    kernels compute it. Both gradients are taken at the present parameters.

    One :meth:`step` costs two training passes for each site, and one validation pass: take it every few updates. The
    traps: the training loss alone would drive every rate to 0; the validation batch is trained on, through the rates,
    so that the final figure needs a third set; and one update ahead, a rate that pays off late looks useless.

    Args:
        model: holds the modules. Each site has one rate, the same in every module that has it.
        sites: names of sites; all that are configured if None.
        lr: how far the rates move along the gradient.
        eta: of the update: the learning rate of the parameters.
        delta: half the distance of the two rates.
        bounds: lowest and highest rate.
        largest: the most that a rate moves in one step.

    Raises:
        ValueError: a site that no module has configured, or whose rates differ; a number out of range.
        TypeError: ``model`` is no module.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str] | None = None,
        *,
        lr: float = 1.0,
        eta: float = 1.0,
        delta: float = 0.05,
        bounds: tuple[float, float] = (0.0, 0.9),
        largest: float = 0.05,
    ) -> None:
        for name, value in (("lr", lr), ("eta", eta), ("delta", delta), ("largest", largest)):
            if not value > 0:
                raise ValueError(f"{name} should be above 0, got {value}")
        if not 0 <= bounds[0] < bounds[1] <= 1:
            raise ValueError(f"bounds should be two rates in [0, 1], the lower first, got {bounds}")
        found = configured(model)
        names = dict.fromkeys(site for _, site in found) if sites is None else dict.fromkeys(sites)
        self.rates: dict[str, float] = {}
        for name in names:
            rates = {rate for (_, site), rate in found.items() if site == name}
            if len(rates) != 1:
                what = f"has rates {', '.join(map(str, sorted(rates)))} in several" if rates else "is configured in no"
                raise ValueError(f"{name} {what} module of the model; it should have one rate")
            self.rates[name] = rates.pop()
        if not self.rates:
            raise ValueError("no module of the model has a site configured")
        self.model, self.lr, self.eta, self.delta, self.bounds, self.largest = model, lr, eta, delta, bounds, largest

    def step(self, train_loss: Callable[[], Tensor], valid_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Moves each rate once.

        Args:
            train_loss: runs the model, in the mode it is in, on a training batch and returns its loss.
            valid_loss: the same on a validation batch; the model is in eval meanwhile.

        Returns:
            The rates after the step, by site. Gradients of the parameters are left as they are.
        """
        gradients = self.hypergradients(train_loss, valid_loss)
        for site, gradient in gradients.items():
            move = min(max(-self.lr * gradient, -self.largest), self.largest)
            self.rates[site] = min(max(self.rates[site] + move, self.bounds[0]), self.bounds[1])
            self._set(site, self.rates[site])
        return dict(self.rates)

    def hypergradients(self, train_loss: Callable[[], Tensor], valid_loss: Callable[[], Tensor]) -> dict[str, float]:
        """dL_valid / dp by site, as :meth:`step` uses it; no rate is moved."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with in_eval(self.model):
            of_valid = _gradient(valid_loss(), parameters)
        holdable: dict[str, Any] = {p: m for p, m in self.model.named_modules() if isinstance(m, Thresholds)}
        pairs = {path: draw_rng(module.device_of_masks()) for path, module in holdable.items()}
        result = {}
        for site, rate in self.rates.items():
            ends = min(rate + self.delta, 1.0), max(rate - self.delta, 0.0)
            direct, gradients = [], []
            try:
                for end in ends:
                    self._set(site, end)
                    with hold_masks(self.model, pairs):
                        gradients.append(_gradient(train_loss(), parameters))
                    if self._acts_in_eval(site):
                        with in_eval(self.model), torch.no_grad():
                            direct.append(float(valid_loss()))
            finally:  # a loss may fail, or be interrupted
                self._set(site, rate)
            change = sum(float((v * (a - b)).sum()) for v, a, b in zip(of_valid, *gradients, strict=True))
            total = -self.eta * change + (direct[0] - direct[1] if direct else 0.0)
            result[site] = total / (ends[0] - ends[1])
        return result

    def _modules(self, site: str) -> list[Any]:
        return [self.model.get_submodule(path) for path, name in configured(self.model) if name == site]

    def _set(self, site: str, rate: float) -> None:
        for module in self._modules(site):
            module.set_rate(site, rate)

    def _acts_in_eval(self, site: str) -> bool:
        return any(isinstance(m, Regularized) and site in acting_in_eval(m._plan) for m in self._modules(site))


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


__all__ = ["HypergradientSchedule"]
