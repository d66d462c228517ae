"""Schedules by what was measured on a device: the file that ``FRD_SCHEDULE_TABLE`` names.

``python -m bench schedules`` writes it, ``schedules.choose`` asks it. A row says which schedule of a backend was the
fastest for the layers within its bounds; it speaks for its own device alone. ``docs/gpu.md`` has the format.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

VARIABLE = "FRD_SCHEDULE_TABLE"
VERSION = 1
DTYPES = ("float32", "float64", "bfloat16", "float16")

Bounds = tuple[int, int]
"""The least and the largest, both within."""


class Kind(NamedTuple):
    """What the layers of a row have in common.

    Attributes:
        device: its name, as ``torch.cuda.get_device_name`` gives it.
        backend: ``"cuda"`` or ``"triton"``.
        cell: a name of :data:`cells.CELLS`.
        dtype: of the results, without ``torch.``.
        directions: 1 or 2.
        inside: whether a site acts inside a step.
        gradients: whether a backward may follow.
    """

    device: str
    backend: str
    cell: str
    dtype: str
    directions: int
    inside: bool
    gradients: bool


class Size(NamedTuple):
    """H, B and T of a padded batch."""

    hidden_size: int
    batch: int
    steps: int


class Row(NamedTuple):
    """A schedule, and the sizes for which it was the fastest.

    Attributes:
        microseconds: of a step, by schedule: the least and the most that were measured within the bounds.
    """

    kind: Kind
    hidden_size: Bounds
    batch: Bounds
    steps: Bounds
    schedule: str
    microseconds: Mapping[str, tuple[float, float]]

    def holds(self, size: Size) -> bool:
        bounds = (self.hidden_size, self.batch, self.steps)
        return all(low <= value <= high for (low, high), value in zip(bounds, size, strict=True))


Table = Mapping[Kind, tuple[Row, ...]]


class Answer(NamedTuple):
    """The schedule that a table names, None where it names none, and the words for either."""

    schedule: str | None
    why: str


def device_name(device: torch.device) -> str:
    """What rows call a device; ``"cpu"`` where the tests run a GPU's kernels on the host."""
    return _gpu_name(device.index) if device.type == "cuda" else device.type


@functools.cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


# --------------------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------------------

_KEYS = (*Kind._fields, *Size._fields, "schedule", "microseconds")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(value: Any, least: float, kinds: type | tuple[type, ...]) -> bool:
    """Whether it is two numbers in order, none below ``least``."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    if any(isinstance(one, bool) or not isinstance(one, kinds) for one in value):
        return False
    return bool(least <= value[0] <= value[1] < float("inf"))


def _wrong(row: Any, schedules: Mapping[str, tuple[str, ...]], cells: tuple[str, ...]) -> str | None:
    """What is wrong with a row; None where nothing is."""
    if not isinstance(row, dict):
        return f"should be an object, got {row!r}"
    if unknown := sorted(row.keys() - set(_KEYS)):
        return f"has the unknown key {unknown[0]!r}; allowed are {', '.join(_KEYS)}"
    if missing := [key for key in _KEYS if key not in row]:
        return f"lacks {', '.join(missing)}"

    def of(key: str, allowed: tuple[Any, ...]) -> str | None:
        if any(row[key] is one or (type(row[key]) is type(one) and row[key] == one) for one in allowed):
            return None
        return f"{key} should be one of {', '.join(map(json.dumps, allowed))}, got {row[key]!r}"

    if not isinstance(row["device"], str):
        return f"device should be a name, got {row['device']!r}"
    for key, allowed in (("backend", tuple(schedules)), ("cell", cells), ("dtype", DTYPES), ("directions", (1, 2)),
                         ("inside", (False, True)), ("gradients", (False, True))):  # fmt: skip
        if said := of(key, allowed):
            return said
    for key in Size._fields:
        if not _pair(row[key], 1, int):
            return f"{key} should be [least, largest], whole numbers from 1 on, got {row[key]!r}"
    if said := of("schedule", schedules[row["backend"]]):
        return said
    times = row["microseconds"]
    if not isinstance(times, dict) or not all(_pair(value, 0, (int, float)) for value in times.values()):
        return f"microseconds should have [least, most] for each schedule, got {times!r}"
    if row["schedule"] not in times:
        return f"microseconds should have its schedule, {row['schedule']}, got {', '.join(times) or 'none'}"
    return None


def _row(found: dict[str, Any]) -> Row:
    hidden_size, batch, steps = ((low, high) for low, high in (found[key] for key in Size._fields))
    times = {name: (float(low), float(high)) for name, (low, high) in found["microseconds"].items()}
    return Row(Kind(*(found[key] for key in Kind._fields)), hidden_size, batch, steps, found["schedule"], times)


def parse(text: str, schedules: Mapping[str, tuple[str, ...]], cells: tuple[str, ...]) -> Table:
    """The rows of a file, by kind, in their order.

    Args:
        schedules: by backend, the names that rows may have.
        cells: the names of cells that they may have.

    Raises:
        ValueError: it is no table, of another version, or has a key or a value that is not allowed.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise ValueError('should be an object with "version" and "rows"')
    if not _whole(found.get("version")) or found["version"] != VERSION:
        raise ValueError(f"should have version {VERSION}, got {found.get('version')!r}")
    if unknown := sorted(found.keys() - {"version", "about", "rows"}):
        raise ValueError(f"has the unknown key {unknown[0]!r}; allowed are version, about, rows")
    table: dict[Kind, tuple[Row, ...]] = {}
    for number, one in enumerate(found["rows"]):
        if said := _wrong(one, schedules, cells):
            raise ValueError(f"rows[{number}] {said}")
        row = _row(one)
        table[row.kind] = (*table.get(row.kind, ()), row)
    return table


def text_of(rows: list[Row], about: Mapping[str, Any]) -> str:
    """A file with these rows; ``about`` is for readers, and nothing reads it."""
    made = []
    for row in rows:
        times = {name: list(pair) for name, pair in row.microseconds.items()}
        bounds = {key: list(getattr(row, key)) for key in Size._fields}
        made.append({**row.kind._asdict(), **bounds, "schedule": row.schedule, "microseconds": times})
    lines = ",\n  ".join(map(json.dumps, made))
    return f'{{"version": {VERSION},\n "about": {json.dumps(about)},\n "rows": [\n  {lines}\n ]}}\n'


# --------------------------------------------------------------------------------------------------------------------
# Asking
# --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _read(path: str, names: tuple[tuple[str, tuple[str, ...]], ...], cells: tuple[str, ...]) -> Table:
    """A file, read once in a process."""
    try:
        return parse(Path(path).read_text("utf-8"), dict(names), cells)
    except OSError as error:
        raise ValueError(f"the environment variable {VARIABLE}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"the environment variable {VARIABLE}: {path} {error}") from None


def given() -> str | None:
    """The path that the environment variable has; None where there is none."""
    return os.environ.get(VARIABLE) or None


def ask(path: str, schedules: Mapping[str, tuple[str, ...]], cells: tuple[str, ...], kind: Kind, size: Size) -> Answer:
    """The first row that holds a layer.

    Raises:
        ValueError: the file cannot be read, or is no table.
    """
    table = _read(path, tuple((name, tuple(of)) for name, of in schedules.items()), cells)
    devices = sorted({of.device for of in table})
    if kind.device not in devices:
        return Answer(None, f"{VARIABLE} has nothing of {kind.device}, but of {', '.join(devices) or 'no device'}")
    for row in table.get(kind, ()):
        if row.holds(size):
            times = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in row.microseconds.items())
            return Answer(row.schedule, f"the table of {kind.device}, in us a step: {times}")
    return Answer(None, f"the table of {kind.device} has no layer of this kind and size")


__all__ = ["VARIABLE", "Answer", "Kind", "Row", "Size", "Table", "ask", "device_name", "given", "parse", "text_of"]
