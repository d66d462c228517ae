"""NT-ASGD: SGD that begins to average its iterates when validation stops getting better (Merity et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class NTASGD(Optimizer):
    """Non-monotonically triggered averaged SGD.

    Each step is w <- w - lr (g + weight_decay w). :meth:`observe` takes the validation loss of each epoch; once it is
    worse than the best of all but the last ``n`` epochs, the average of the iterates from there on is kept:
    a_k = a_{k-1} + (w_k - a_{k-1}) / k. Evaluate with it: ``with optimizer.averaged(): ...``.

    Two things of ``torch.optim.ASGD(t0=0, lambd=0)``, which the released code of the paper switches to, differ unless
    ``lag_compat`` asks for them. It uses at each step the learning rate seen at the *end of the step before*, so that
    the scale of :func:`bptt_learning_rate` acts one update late. And its average leaves out the first iterate. The
    released code also forgets, at the switch, parameters that are not the model's own, such as a criterion's.

    Everything lies in ``state`` and ``param_groups``, as torch's optimizers keep it: ``state_dict`` brings back losses,
    trigger and averages, and learning rate schedulers work as with SGD.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        n: non-monotone interval: how many of the last epochs do not count as best.
        weight_decay: as in ``torch.optim.SGD``.
        lag_compat: the steps and averages of ``torch.optim.ASGD`` after the trigger.

    Raises:
        ValueError: a negative ``lr`` or ``weight_decay``, or ``n`` no int of at least 1.
    """

    def __init__(
        self, params: Any, lr: float = 30.0, *, n: int = 5, weight_decay: float = 0.0, lag_compat: bool = False
    ) -> None:
        if not float(lr) >= 0:
            raise ValueError(f"lr should be at least 0, got {lr}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay should be at least 0, got {weight_decay}")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n should be an int of at least 1, got {n}")
        defaults = {"lr": lr, "n": n, "weight_decay": weight_decay, "lag_compat": lag_compat, "averaging": False,
                    "losses": ()}  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:  # one that comes later stands where the others do
            param_group = {name: self.param_groups[0][name] for name in ("averaging", "losses")} | param_group
        super().add_param_group(param_group)

    @property
    def averaging(self) -> bool:
        """Whether iterates are averaged now."""
        return self.param_groups[0]["averaging"]

    @property
    def losses(self) -> tuple[float, ...]:
        """What :meth:`observe` was given."""
        return tuple(self.param_groups[0]["losses"])

    def observe(self, loss: float) -> bool:
        """Takes the validation loss after an epoch, and begins to average where it is time.

        Args:
            loss: finite or inf.

        Returns:
            Whether iterates are averaged from now on.

        Raises:
            ValueError: a NaN.
        """
        loss = float(loss)
        if math.isnan(loss):
            raise ValueError("loss should be a number, got NaN")
        losses, n = self.losses, self.param_groups[0]["n"]
        if not self.averaging and len(losses) > n and loss > min(losses[:-n]):
            self.start_averaging()
        for group in self.param_groups:
            group["losses"] = (*losses, loss)
        return self.averaging

    def start_averaging(self) -> None:
        """Begins a new average now, whatever the losses are: for fine-tuning, which begins with one."""
        self._check_not_swapped("start_averaging")
        for group in self.param_groups:
            group["averaging"] = True
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient, dense, or sparse without ``weight_decay``.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returns.

        Raises:
            RuntimeError: while the average is swapped in, or a sparse gradient with ``weight_decay``.
        """
        self._check_not_swapped("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, rate, state = parameter.grad, float(group["lr"]), self.state[parameter]
        assert gradient is not None
        if group["weight_decay"]:
            if gradient.is_sparse:
                raise RuntimeError("weight_decay should be 0 for sparse gradients")
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        lag = group["lag_compat"]
        used = state.get("next_lr", rate) if lag and group["averaging"] else rate
        parameter.add_(gradient, alpha=-used)
        if not group["averaging"]:
            return
        state["next_lr"] = rate
        state["iterates"] = state.get("iterates", 0) + 1
        if "average" not in state:
            state["average"] = parameter.detach().to(_dtype_of_average(parameter), copy=True)
            return
        count = state["iterates"] - 1 if lag else state["iterates"]
        state["average"].add_((parameter - state["average"]) / count)

    # ----------------------------------------------------------------------------------------------------------------
    # The average in the place of the parameters
    # ----------------------------------------------------------------------------------------------------------------

    @property
    def swapped(self) -> bool:
        """Whether the parameters hold the average now."""
        return any("iterate" in state for state in self.state.values())

    @torch.no_grad()
    def swap_in(self) -> None:
        """Puts the average into the parameters; without one, before the trigger, they stay as they are.

        What was there waits in ``state``, so that a ``state_dict`` that is saved meanwhile loses nothing.

        Raises:
            RuntimeError: it is there already.
        """
        self._check_not_swapped("swap_in")
        for parameter, state in self.state.items():
            if "average" in state:
                state["iterate"] = parameter.detach().clone()
                parameter.copy_(state["average"])

    @torch.no_grad()
    def swap_out(self) -> None:
        """Puts the last iterate back into the parameters."""
        for parameter, state in self.state.items():
            if "iterate" in state:
                parameter.copy_(state.pop("iterate"))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold the average inside the block."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    def _check_not_swapped(self, what: str) -> None:
        if self.swapped:
            raise RuntimeError(f"{what} while the average is swapped in: call swap_out() before")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch casts what it loads to the dtype of the parameter, and an average in 16 bits would stop moving.
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, mine, strict=True):
            state = state_dict["state"].get(index, {})
            if "average" in state:
                average = state["average"].to(parameter.device, _dtype_of_average(parameter), copy=True)
                self.state[parameter]["average"] = average


def _dtype_of_average(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


__all__ = ["NTASGD"]
