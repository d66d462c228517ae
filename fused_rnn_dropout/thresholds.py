"""The rates of a module as a tensor: what operators and compiled code read anew at each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import ops


def _is_real(tensor: Tensor) -> bool:
    """Whether a module may keep it: not a tensor of tracing or of a torch.func transform, which ends with them."""
    return torch.compiler.is_dynamo_compiling() or (type(tensor) is Tensor and not ops.functorch_active())


class Thresholds(nn.Module):
    """What a module with rates derives from: it keeps them as round(p * 2**32) on each device where it was called.

    A subclass says by ``_rates`` what they are now, calls ``_write_rates`` when they change, and leaves ``_thresholds``
    and ``_placed`` out of its copies and pickles.
    """

    mc: bool
    # On the device of the last call; None where no real tensor could be made yet.
    # Neither a buffer nor a parameter: whoever allocates, averages or copies those would move the rates.
    _thresholds: Tensor | None
    _placed: dict[torch.device, Tensor]  # every such tensor: a captured graph reads its own for ever

    def _rates(self) -> list[int]:
        """The thresholds now, in the order in which whoever reads the tensor expects them."""
        raise NotImplementedError

    def _write_rates(self, before: list[int]) -> None:
        """Writes in place what differs from ``before``: compiled code and captured graphs read it there."""
        if self.__dict__.get("_is_replica", False):
            # One of DataParallel's, which lives for a call: it reads its original's tensors, and must not write them.
            self._forget_thresholds()
        changed = [(i, new) for i, (old, new) in enumerate(zip(before, self._rates(), strict=True)) if old != new]
        # Filled, since a copy from the host would make it wait for the device.
        for thresholds in list(self._placed.values()):
            for index, rate in changed:
                thresholds[index].fill_(rate)

    def _forget_thresholds(self) -> None:
        self._thresholds, self._placed = None, {}

    def _place_thresholds(self) -> None:
        """Sees to a tensor of rates where the weights are now, so that no call has to make it."""
        first = next(self.parameters(), None)  # FSDP takes a module's parameters away
        if first is not None:
            self._thresholds_on(first.device)

    def _thresholds_on(self, device: torch.device) -> Tensor:
        """The rates where a call computes. A loader may have put the weights elsewhere, and told nobody."""
        thresholds = self._thresholds
        if thresholds is not None and thresholds.device == device:
            return thresholds
        thresholds = self._placed.get(device)
        if thresholds is None:
            with torch.inference_mode(False):  # it must take new rates anywhere
                thresholds = torch.tensor(self._rates(), dtype=torch.int64, device=device)
            if not _is_real(thresholds):
                return thresholds
            self._placed[device] = thresholds
        self._thresholds = thresholds
        return thresholds

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self._place_thresholds()
        return result


__all__ = ["Thresholds"]
