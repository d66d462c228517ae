"""How a cell of the grid is trained beside the sites of its layers: optimizer, schedule of rates, segments and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fused_rnn_dropout import training

from ..language_model.model import State, detach
from ..language_model.train import segments

if TYPE_CHECKING:
    from .training import LanguageSettings

SGD_RATE = 3.0
"""Learning rate of NT-ASGD, in the place of Adam's: of 3, 10 and 30 the best for the character model, undropped."""

PASSES = ("fraternal", "pi", "eld", "rdrop")
"""Extras that take two passes: the variants of ``FraternalLoss``."""
CURVES = ("curriculum", "annealed")
"""Extras that change the rates of all sites from update to update: the curves of ``CurriculumSchedule``."""

EXTRAS: Mapping[str, str] = {
    "embedding_dropout": "rate, by type: an occurrence of a character vanishes with all others of its segment",
    "word_dropout": "rate: an occurrence of a character becomes a vector of zeros",
    "data_noising": "rate: an occurrence of a character becomes another one, drawn in proportion to its count",
    "ar": "alpha of activation regularisation",
    "tar": "beta of temporal activation regularisation",
    **dict.fromkeys(PASSES, "kappa of the distance of two passes"),
    **dict.fromkeys(CURVES, "gamma N, where gamma is the exponent and N the number of updates"),
    "sgd": "learning rate of SGD in the place of Adam, and of NT-ASGD where it is not SGD_RATE",
    "nt_asgd": "how many of the last epochs do not count as best: SGD, averaged from the trigger on",
    "fine_tuning": "of the epochs, how many at the end start from the best model and average from there on",
    "decay": "by which the learning rate is divided before each epoch, but for the first ones",
    "constant": "how many these first epochs are",
    "weight_decay": "of the optimizer",
    "random_bptt": "probability of a segment of about half the length; the learning rate follows the length",
}
"""What a cell can be trained with besides its sites: the meaning of the number in ``Settings.extras``, by name."""


class Encoded(NamedTuple):
    """What a language model computes: logits, state, and the last layer's output before and after dropout."""

    logits: Tensor
    state: State
    raw: Tensor
    dropped: Tensor


def check_extras(extras: Mapping[str, float]) -> None:
    """Raises ``ValueError`` for extras that are not known, or do not go together."""
    if unknown := sorted(extras.keys() - EXTRAS.keys()):
        raise ValueError(f"extras should be among {', '.join(sorted(EXTRAS))}, got {', '.join(unknown)}")
    for names in (PASSES, CURVES):
        if len(found := [name for name in names if name in extras]) > 1:
            raise ValueError(f"extras have {' and '.join(found)}: give one of them")
    if not extras.keys().isdisjoint(PASSES) and not extras.keys().isdisjoint(("ar", "tar")):
        raise ValueError("extras with two passes should have neither ar nor tar, which are of one pass")
    for name, needed in (("fine_tuning", "nt_asgd"), ("decay", "constant"), ("constant", "decay")):
        if name in extras and needed not in extras:
            raise ValueError(f"extras with {name} should have {needed} too")


class Recipe:
    """Trains a model by the extras of its settings; without any, with Adam on segments of equal length.

    Args:
        model: to train, with ``encode`` that returns an :class:`Encoded`.
        settings: with extras that :func:`check_extras` let pass.
        ids: int64 (T, B): what an epoch goes through.
    """

    def __init__(self, model: Any, settings: LanguageSettings, ids: Tensor) -> None:
        self.model, self.settings, self.ids, self.extras = model, settings, ids, settings.extras
        self.schedule: training.CurriculumSchedule | None = None
        self.optimizer = self._optimizer()
        updates = settings.epochs * len(list(segments(ids, settings.steps)))
        for curve in self._given(CURVES):
            gamma = self.extras[curve] / updates
            self.schedule = training.CurriculumSchedule(model, updates, curve=curve, gamma=gamma)
            self.schedule.follow(self.optimizer)
        self.two_passes: training.FraternalLoss | None = None
        for variant in self._given(PASSES):
            self.two_passes = training.FraternalLoss(self.extras[variant], variant)

    def _given(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if name in self.extras]

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters, decay = self.model.parameters(), self.extras.get("weight_decay", 0.0)
        if "nt_asgd" in self.extras:
            rate, n = self.extras.get("sgd", SGD_RATE), int(self.extras["nt_asgd"])
            return training.NTASGD(parameters, lr=rate, n=n, weight_decay=decay)
        if "sgd" in self.extras:
            return torch.optim.SGD(parameters, lr=self.extras["sgd"], weight_decay=decay)
        return torch.optim.Adam(parameters, lr=self.settings.rate, weight_decay=decay)

    def begin(self, epoch: int, best: Mapping[str, Tensor]) -> None:
        """Changes what changes before an epoch, counted from 1: the learning rate; where fine-tuning begins, the model.

        Args:
            epoch: that comes.
            best: ``state_dict`` of the model when its validation loss was best.
        """
        if epoch > self.extras.get("constant", math.inf):
            for group in self.optimizer.param_groups:
                group["lr"] /= self.extras["decay"]
        if "fine_tuning" in self.extras and epoch == self.settings.epochs - self.extras["fine_tuning"] + 1:
            assert isinstance(self.optimizer, training.NTASGD), "check_extras"
            self.model.load_state_dict(best)
            self.optimizer.start_averaging()

    def epoch(self) -> None:
        """Updates the model on every segment, in training mode, the state carried."""
        self.model.train()
        state: State = None
        for inputs, targets in self._segments():
            loss, state = self._loss(inputs, targets, state)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            with self._learning_rate(len(inputs)):
                self.optimizer.step()
            state = detach(state)

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the parameters are those to evaluate: the average, where NT-ASGD has one."""
        return self.optimizer.averaged() if isinstance(self.optimizer, training.NTASGD) else nullcontext()

    def observe(self, valid: float) -> None:
        """Tells of the validation loss after an epoch."""
        if isinstance(self.optimizer, training.NTASGD):
            self.optimizer.observe(valid)

    def _segments(self) -> Iterator[tuple[Tensor, Tensor]]:
        if "random_bptt" not in self.extras:
            yield from segments(self.ids, self.settings.steps)
            return
        short = self.extras["random_bptt"]
        for part in training.random_bptt_slices(len(self.ids) - 1, self.settings.steps, short=short):
            yield self.ids[:-1][part], self.ids[1:][part]

    def _learning_rate(self, length: int) -> AbstractContextManager[None]:
        if "random_bptt" not in self.extras:
            return nullcontext()
        return training.bptt_learning_rate(self.optimizer, length, self.settings.steps)

    def _loss(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        if self.two_passes is not None:
            both = self.two_passes(self.model, inputs, state, target=targets)
            return both.loss, both.first[1]
        encoded = self.model.encode(inputs, state)
        loss = functional.cross_entropy(encoded.logits.flatten(0, 1), targets.flatten())
        if alpha := self.extras.get("ar"):
            loss = loss + training.activation_regularization(encoded.dropped, alpha)
        if beta := self.extras.get("tar"):
            loss = loss + training.temporal_activation_regularization(encoded.raw, beta)
        return loss, encoded.state
