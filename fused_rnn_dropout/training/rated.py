"""Modules that draw, those with one rate of their own, and every module with rates inside a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import held
from ..arguments import Rng, check_rng
from ..options import check_rate, rate_of
from ..rnn_base import Regularized
from ..sites import threshold
from ..thresholds import Thresholds

_DERIVED = ("_thresholds", "_placed")


class Drawing(Thresholds):
    """A module beside the layers that draws random numbers, held and switched to ``mc`` as they are.

    Args:
        mc: masks on in eval too.

    Raises:
        TypeError: ``mc`` is no bool.
    """

    group: ClassVar[str]
    """What passes that share some masks call it, as the sites of layers have groups."""
    mc: bool
    draws: bool
    """Whether there is anything to draw. Compiled code guards on this and not on a rate."""
    _sites: dict[str, float]  # replaced, never changed, as replicas share it

    def __init__(self, *, mc: bool = False) -> None:
        super().__init__()
        if not isinstance(mc, bool):
            raise TypeError(f"mc should be of type bool, got: {type(mc).__name__}")
        self.mc, self.draws, self._sites = mc, True, {}
        self._forget_thresholds()

    @property
    def masks_on(self) -> bool:
        """Whether a forward pass now draws masks: in training, and in eval with ``mc``."""
        return self.training or self.mc

    def begin(self, rng: Rng | None, step_offset: int | None, steps: int) -> held.Turn:
        """What a call uses: what it was given, or what is held."""
        return held.begin(self, rng, step_offset, steps)

    def pair(self, rng: Rng | None, device: torch.device) -> Tensor:
        """The int64[2] of a call; drawn where none was given.

        Raises:
            TypeError, ValueError: ``rng`` is not int64[2] on ``device``.
        """
        if rng is None:
            return held.draw_rng(device)
        checked = check_rng("rng", rng, device)
        if isinstance(checked, Mapping):
            raise TypeError(f"rng of a {type(self).__name__} should be an int64 tensor of shape (2,), got a dict")
        return checked

    def device_of_masks(self) -> torch.device:
        """Where a hold draws the pair of this module."""
        first = next(self.parameters(), self._thresholds)
        return torch.device("cpu") if first is None else first.device

    def _rates(self) -> list[int]:
        return []

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_thresholds()
        self._place_thresholds()


class Rated(Drawing):
    """A module with one site, named by ``site``, whose rate compiled code reads anew at each call.

    Args:
        p: probability to drop, in [0, 1]. A plain 0 means that the site is not there: nothing is drawn. After
            ``set_rate`` it is there, even at 0.
        mc: masks on in eval too.

    Raises:
        ValueError: a rate outside [0, 1].
        TypeError: ``mc`` is no bool.
    """

    site: ClassVar[str]

    def __init__(self, p: float, *, mc: bool = False) -> None:
        super().__init__(mc=mc)
        p = check_rate(self.site, p, "an element being zeroed")
        self._sites, self.draws = {self.site: p}, p > 0

    @property
    def p(self) -> float:
        """The rate. To assign 0 takes the site away; :meth:`set_rate` keeps it."""
        return self._sites[self.site]

    @p.setter
    def p(self, rate: float) -> None:
        self.set_rate(self.site, rate)
        self.draws = rate > 0

    def set_rate(self, name: str, rate: float) -> None:
        """Changes the rate in place: what a schedule calls. Nothing is recompiled, but where the site was not there.

        Args:
            name: the site of this module, as ``set_rate`` of an LSTM takes one of its own.
            rate: probability in [0, 1].

        Raises:
            ValueError: another site, or a rate outside [0, 1].
        """
        if name != self.site:
            raise ValueError(f"{name!r} is not a site of a {type(self).__name__}; it has {self.site} alone")
        before, self._sites = self._rates(), {name: check_rate(name, rate, "an element being zeroed")}
        self.draws = True
        self._write_rates(before)

    def _rates(self) -> list[int]:
        return [threshold(self.p)]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if next(self.parameters(), None) is None:  # nothing else says where this module is now
            self._thresholds_on(fn(torch.empty(0, device=self.device_of_masks())).device)
        return result


def configured(model: nn.Module) -> dict[tuple[str, str], float]:
    """The rate of every site that is configured inside ``model``, by the path of its module and the name of the site.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got {type(model).__name__}")
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Rated):
            if module.draws:
                found[path, module.site] = module.p
        elif isinstance(module, Regularized):
            found |= {(path, site): rate_of(spec) for site, spec in module.sites.items()}
    return found


__all__ = ["Drawing", "Rated", "configured"]
