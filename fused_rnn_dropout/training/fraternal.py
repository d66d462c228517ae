"""Losses of two forward passes that differ in their masks: fraternal dropout and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import draw_rng
from ..modules import hold_masks
from ..rnn_base import Regularized
from ..sites import GROUPS
from ..thresholds import Thresholds
from .passes import in_eval, logits_of

VARIANTS = ("fraternal", "pi", "eld", "rdrop")
SHARED = (*GROUPS, "embedding", "word")


class Fraternal(NamedTuple):
    """What :class:`FraternalLoss` returns.

    Attributes:
        loss: 0-dim, to call backward on.
        first: what the first pass of the model returned: its state is the one to carry on.
        penalty: 0-dim, the distance of the two passes, before kappa.
    """

    loss: Tensor
    first: Any
    penalty: Tensor


class FraternalLoss(nn.Module):
    """Runs a model twice on the same input and adds to its loss how far the two predictions are from each other.

    With z1 and z2 the logits of two passes, l the criterion, and means over what counts (all but ``ignore_index``):

    - ``"fraternal"``: (l(z1) + l(z2)) / 2 + kappa mean((z1 - z2)^2), two independent mask sets (Zolna et al. 2018).
    - ``"pi"``: l(z1) + kappa mean((z1 - z2)^2): the second pass has no target (Laine & Aila 2017).
    - ``"eld"``: the same, the second pass in eval (expectation-linear dropout, Ma et al. 2017).
    - ``"rdrop"``: l(z1) + l(z2) + kappa (KL(p1 || p2) + KL(p2 || p1)) / 2 (R-Drop, Liang et al. 2021).

    Gradients go through both passes. The traps: the distance is of logits, before the softmax, except in ``"rdrop"``;
    both passes start from the *same* state, which should be detached; AR and TAR, where used, are those of one pass;
    and a model that keeps its state in itself would move on twice, so its state must be an argument. Published kappa:
    0.1 for three layers of AWD-LSTM, 0.15 for one layer, 0.25 for ``"eld"``.

    Args:
        kappa: the coefficient.
        variant: see above.
        share: groups of sites whose masks both passes share: of ``"input"``, ``"inter_layer"``, ``"output"``,
            ``"hidden"``, ``"weight"``, ``"state"``, ``"embedding"``, ``"word"``. The released code got better with
            ``("weight",)``. Each pass then runs inside :func:`hold_masks`, with its rules: a checkpoint that recomputes
            a pass raises.
        criterion: l(logits (N, V), targets (N,)), a mean; cross entropy without ``ignore_index`` if None.
        ignore_index: targets that do not count.

    Raises:
        ValueError: an unknown variant or group, a negative ``kappa``, or groups to share with ``"eld"``, whose second
            pass has no masks.
    """

    def __init__(
        self,
        kappa: float = 0.1,
        variant: str = "fraternal",
        *,
        share: Sequence[str] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant should be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        if not kappa >= 0:
            raise ValueError(f"kappa should be at least 0, got {kappa}")
        share = (share,) if isinstance(share, str) else tuple(share)
        for group in share:
            if group not in SHARED:
                raise ValueError(f"share has a group {group!r}; allowed are {', '.join(map(repr, SHARED))}")
        if share and variant == "eld":
            raise ValueError("share should be empty with variant='eld', whose second pass has no masks")
        self.kappa, self.variant, self.share, self.ignore_index = kappa, variant, share, ignore_index
        self.criterion = criterion

    def forward(self, model: nn.Module, *inputs: Any, target: Tensor, **options: Any) -> Fraternal:
        """Runs ``model(*inputs, **options)`` twice.

        Args:
            model: returns logits (*, V), or a tuple whose first element they are.
            inputs: of the model, its detached state included.
            target: int64 (*).
            options: keyword arguments of the model.

        Raises:
            ValueError: logits and target do not fit; nothing to share in the model.
            TypeError: ``target`` is no tensor, or the model returns something else.
        """
        if not isinstance(target, Tensor):
            raise TypeError(f"target should be a Tensor, got {type(target).__name__}")
        passes = _sharing(model, self.share) if self.share else (nullcontext(), nullcontext())
        with passes[0]:
            first = model(*inputs, **options)
        with passes[1], in_eval(model) if self.variant == "eld" else nullcontext():
            second = model(*inputs, **options)
        z1, z2 = (_logits(result, target) for result in (first, second))
        flat = target.reshape(-1)
        counted = flat != self.ignore_index
        penalty = self._penalty(z1, z2, counted)
        loss = self._criterion(z1, flat)
        if self.variant == "fraternal":
            loss = (loss + self._criterion(z2, flat)) / 2
        elif self.variant == "rdrop":
            loss = loss + self._criterion(z2, flat)
        return Fraternal(loss + self.kappa * penalty, first, penalty)

    def _criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.criterion is not None:
            return self.criterion(logits, target)
        return F.cross_entropy(logits, target, ignore_index=self.ignore_index)

    def _penalty(self, z1: Tensor, z2: Tensor, counted: Tensor) -> Tensor:
        # Selected before the difference is taken: an inf of the padding must not reach a gradient.
        z1, z2 = (torch.where(counted[:, None], z, 0.0) for z in (z1, z2))
        rows = counted.sum().clamp(min=1)
        if self.variant != "rdrop":
            return (z1 - z2).square().sum() / (rows * z1.size(-1))
        p1, p2 = z1.log_softmax(-1), z2.log_softmax(-1)
        return ((p1.exp() - p2.exp()) * (p1 - p2)).sum() / (2 * rows)

    def extra_repr(self) -> str:
        share = f", share={self.share!r}" if self.share else ""
        return f"kappa={self.kappa:g}, variant={self.variant!r}{share}"


def _logits(result: Any, target: Tensor) -> Tensor:
    """(N, V) in the type they are summed in."""
    logits = logits_of(result)
    if logits.shape[:-1] != target.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit a target of shape {tuple(target.shape)}")
    return logits.reshape(-1, logits.size(-1))


def _sharing(model: nn.Module, share: tuple[str, ...]) -> tuple[Any, Any]:
    """Two holds of the model whose pairs are equal for the groups in ``share``."""
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    acts = False
    for path, module in model.named_modules():
        if not isinstance(module, Thresholds):
            continue
        device = module.device_of_masks()  # type: ignore[operator]
        common, *own = (draw_rng(device) for _ in range(3))
        if isinstance(module, Regularized):
            groups = [group for group in GROUPS if group in share]
            acts = acts or bool(groups)
            for pairs, pair in ((first, own[0]), (second, own[1])):
                pairs[path] = {**dict.fromkeys(groups, common), None: pair}
        else:
            shared = getattr(module, "group", None) in share
            acts = acts or shared
            first[path], second[path] = (common, common) if shared else (own[0], own[1])
    if not acts:
        raise ValueError(f"the model has no module of this package with masks of {', '.join(share)} to share")
    return hold_masks(model, first), hold_masks(model, second)


__all__ = ["Fraternal", "FraternalLoss"]
