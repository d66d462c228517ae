"""Rates that change while a model trains: curriculum dropout (Morerio et al. 2017) and annealed dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..options import check_rate
from .rated import configured

CURVES = ("curriculum", "annealed", "linear")


class CurriculumSchedule:
    """Sets the rates of sites by the number of updates t that were made, t = 0 at once and t + 1 at each :meth:`step`.

    With p the rate of a site that is given, or that its module has now, N = ``steps`` and gamma = 10 / N:

    - ``"curriculum"``: p(t) = p (1 - exp(-gamma t)), from 0 up to p (Morerio et al. 2017).
    - ``"annealed"``: p(t) = p exp(-gamma t), from p down to 0: the baseline of that paper.
    - ``"linear"``: p(t) = p max(0, 1 - t / N), annealed dropout as Rennie et al. 2014 have it.
    - a function of t that returns the factor on p, in [0, 1] for every rate up to 1.

    The paper speaks of the probability to *keep*, which falls from 1 to theta: theta = 1 - p. A known port puts the
    bracket in the wrong place, so that its rate begins at p.

    Only the tensor that operators read the rates from is written. So compiled code and captured graphs see a new rate
    and compile nothing again, which assigning ``rnn.weight_dropout = 0.0`` would not give: a plain 0 takes a site away.
    Two traps. Modules keep the rates of the last step, so that eval of zoneout changes with them. And a checkpoint that
    recomputes a forward pass must do so before the next step.

    Use it in a loop (``schedule.step()`` after ``optimizer.step()``), as a hook (``schedule.follow(optimizer)``), or in
    Lightning (``callbacks=[schedule.lightning_callback()]``).

    Args:
        model: holds the modules; wrapped and compiled ones too.
        steps: updates N in which the curve runs, at least 1.
        rates: rate p by site, for every module where that site is configured. None: all configured sites and the rates
            they have now.
        curve: see above.
        gamma: instead of 10 / N.

    Raises:
        ValueError: no site, or one that no module has configured, a rate outside [0, 1], an unknown curve, ``steps``
            below 1 or a negative ``gamma``.
        TypeError: ``model`` is no module.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        rates: Mapping[str, float] | None = None,
        *,
        curve: str | Callable[[int], float] = "curriculum",
        gamma: float | None = None,
    ) -> None:
        if not steps >= 1:
            raise ValueError(f"steps should be at least 1, got {steps}")
        if not callable(curve) and curve not in CURVES:
            raise ValueError(f"curve should be one of {', '.join(map(repr, CURVES))} or a function, got {curve!r}")
        self.steps, self.curve = steps, curve
        self.gamma = 10 / steps if gamma is None else gamma
        if not self.gamma >= 0:
            raise ValueError(f"gamma should be at least 0, got {gamma}")
        self._modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        found = configured(model)
        sites = {site for _, site in found}
        for site, rate in (rates or {}).items():
            check_rate(f"rate of {site}", rate, "an element being zeroed")
            if site not in sites:
                raise ValueError(
                    f"no module of the model has {site} configured; configured are {', '.join(sorted(sites)) or 'none'}"
                )
        self._ends = {
            (path, site): rate if rates is None else float(rates[site])
            for (path, site), rate in found.items()
            if rates is None or site in rates
        }
        if not self._ends:
            raise ValueError(
                "rates should name a site, got none" if found else "no module of the model has a site configured"
            )
        self.go_to(0)

    def factor(self, step: int) -> float:
        """What the rates are multiplied with after ``step`` updates."""
        if callable(self.curve):
            return float(self.curve(step))
        if self.curve == "linear":
            return max(0.0, 1 - step / self.steps)
        decay = math.exp(-self.gamma * step)
        return decay if self.curve == "annealed" else 1 - decay

    def step(self) -> None:
        """One update was made."""
        self.go_to(self.last_step + 1)

    def go_to(self, step: int) -> None:
        """Sets the rates of after ``step`` updates.

        Raises:
            ValueError: a function as curve returned what makes a rate leave [0, 1].
        """
        factor = self.factor(step)
        for (path, site), rate in self._ends.items():
            self._modules[path].set_rate(site, rate * factor)
        self.last_step = step

    def follow(self, optimizer: Optimizer) -> RemovableHandle:
        """Steps by itself after each step of ``optimizer``; one that a gradient scaler skips does not count.

        Returns:
            A handle, whose ``remove()`` ends that.
        """
        return optimizer.register_step_post_hook(lambda *_: self.step())

    def lightning_callback(self) -> Any:
        """A Lightning callback that follows ``trainer.global_step``, and goes into Lightning's checkpoints.

        Raises:
            ImportError: neither ``lightning`` nor ``pytorch_lightning`` is installed.
        """
        from .lightning import callback

        return callback(self)

    def state_dict(self) -> dict[str, Any]:
        """The step, and the rate p of each site by module path."""
        return {"last_step": self.last_step, "ends": [[path, site, rate] for (path, site), rate in self._ends.items()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from there.

        Raises:
            ValueError: the state is of a model with other sites.
        """
        ends = {(path, site): rate for path, site, rate in state_dict["ends"]}
        if ends.keys() != self._ends.keys():
            differ = sorted(f"{site} of {path or 'the root'}" for path, site in ends.keys() ^ self._ends.keys())
            raise ValueError(f"the state belongs to another model or schedule; it differs in {', '.join(differ)}")
        self._ends = ends
        self.go_to(state_dict["last_step"])


__all__ = ["CurriculumSchedule"]
