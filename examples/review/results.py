"""The results: one JSON line for each cell that was run, and a lock for each cell that is being run."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bench.machine import processor
from fused_rnn_dropout import ops

from .grid import Row

ROOT = Path(__file__).resolve().parents[2]
PATH = Path(__file__).with_name("results.jsonl")
_SOURCES = ("csrc", "examples", "fused_rnn_dropout", f":(exclude){PATH.relative_to(ROOT)}")

Line: TypeAlias = dict[str, Any]


class ResultsError(Exception):
    """Results are not what they should be; the message says where and why."""


def _whole_lines(path: Path) -> list[str]:
    """Without a last line that has no end: what a process left that was killed while it wrote."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: {error}") from error
    return text[: text.rfind("\n") + 1].splitlines()


def load(path: Path) -> list[Line]:
    """Every line of a file; none where there is no file.

    Raises:
        OSError: the file cannot be read.
        ResultsError: one of its lines is no result.
    """
    found = []
    for number, text in enumerate(_whole_lines(path), 1):
        try:
            line = json.loads(text)
            _ = line["row"], line["seed"], line["settings"], line["train"], line["valid"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path}, line {number}: not a result ({error!r}); correct it or remove it") from error
        found.append(line)
    return found


def of_grid(lines: Iterable[Line], rows: Iterable[Row]) -> dict[tuple[str, int], Line]:
    """The lines of these rows by row and seed; lines whose settings are not those of the row now are left out."""
    settings = {row.name: row.settings.record() for row in rows}
    return {(line["row"], line["seed"]): line for line in lines if settings.get(line["row"]) == line["settings"]}


def append(path: Path, line: Line) -> None:
    """Adds a line, whole or not at all for whoever reads at the same time. Raises ``OSError`` where it cannot."""
    data = (json.dumps(line) + "\n").encode()
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a killed process left of a line
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def claim(path: Path, row: str, seed: int) -> Iterator[bool]:
    """Yields whether this process alone has the cell; the system ends the claim when the process ends, however.

    Raises:
        OSError: the folder of locks, beside the results, cannot be written.
    """
    folder = path.with_suffix(".locks")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row}, seed {seed}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def _sources() -> dict[str, Any]:
    """The commit, and whether the sources differ from it. Asked once: edits of files are not edits of this process."""
    changed = _git("status", "--porcelain", "--", *_SOURCES)
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown: not a git checkout",
        "changed": None if changed is None else bool(changed),
    }


def provenance() -> dict[str, Any]:
    """What a line says of where it comes from: commit, whether sources differ from it, machine, versions, threads."""
    return _sources() | {
        "machine": f"{processor()}, {ops.cpu_isa()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
