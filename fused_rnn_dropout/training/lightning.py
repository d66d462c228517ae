"""The one thing here that knows Lightning; imported where it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curriculum import CurriculumSchedule

_NAMES = ("lightning.pytorch", "pytorch_lightning")  # two names of one library, whose classes differ


def _callback_class() -> Any:
    for name in _NAMES:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            return importlib.import_module(name).Callback
    raise ImportError("a Lightning callback needs Lightning: pip install lightning, or step the schedule in your loop")


def callback(schedule: CurriculumSchedule) -> Any:
    """What :meth:`CurriculumSchedule.lightning_callback` returns."""
    base: Any = _callback_class()

    class CurriculumCallback(base):
        """Sets the rates by the trainer's number of updates."""

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            schedule.go_to(trainer.global_step)

        def state_dict(self) -> dict[str, Any]:
            return schedule.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            schedule.load_state_dict(state_dict)

    return CurriculumCallback()
