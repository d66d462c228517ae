"""What a row of any grid is trained with: it says what its lines of results have, and trains a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

CHARACTERS = "characters"
"""The task whose lines do not name it: it was the only one when the first of them were written."""

LATER: Mapping[str, Mapping[str, Any]] = {
    "LockedDropout": {"noise": "bernoulli"},
    "HiddenDropout": {"per": "sequence", "noise": "bernoulli"},
    "WeightDropout": {"noise": "bernoulli"},
    "Zoneout": {"unit_shared": False},
}
"""Options that came when there were results already, whose lines do not have them, with what those stand for."""


class CellSettings:
    """Everything that a cell's outcome depends on, but for its seed. A subclass is a frozen dataclass.

    Attributes:
        task: the word that its lines and ``--task`` call it by.
        unit: of the losses.
        epochs: how many losses a training has.
    """

    task: ClassVar[str]
    unit: ClassVar[str]
    epochs: int

    def record(self) -> dict[str, Any]:
        """All of it, for JSON: an options object as its fields, but for those of :data:`LATER` at their defaults."""
        found: dict[str, Any] = {} if self.task == CHARACTERS else {"task": self.task}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # a subclass is a dataclass
            value = getattr(self, field.name)
            found[field.name] = (
                {name: _fields(spec) for name, spec in value.items()} if isinstance(value, Mapping) else value
            )
        return found

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        """Trains one cell.

        Args:
            seed: of the parameters and the masks.
            tell: called with the number of epochs that are done.

        Returns:
            For JSON: ``train`` and ``valid``, a loss after each epoch, the training loss in eval mode where the task
            says nothing else; ``seconds`` in all; and what else the task measures, numbers of it under ``figures``.

        Raises:
            CorpusError: what it is trained on is missing; the message names the package that has it.
        """
        raise NotImplementedError


def task_of(line: Mapping[str, Any]) -> str:
    """The task of a line of results."""
    return str(line["settings"].get("task", CHARACTERS))


def _fields(spec: Any) -> Any:
    """An options object as its fields; a rate as it is."""
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type):
        return spec
    later = LATER.get(type(spec).__name__, {})
    fields = dataclasses.asdict(spec)
    return {name: value for name, value in fields.items() if name not in later or value != later[name]}
