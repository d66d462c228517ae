"""Where the torch is that a build shall use: that of the environment from which the build was started.

Building in isolation hides it. pip runs the backend with the interpreter that the package is installed for, and only
puts its own folders in front. ``python -m build`` and uv make a virtual environment and run the backend with its
interpreter, which knows of no other: there the process that started the build says which environment it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

OLDEST_TORCH = (2, 10)
REQUIREMENT = "torch>=" + ".".join(map(str, OLDEST_TORCH))

_QUESTION = """
import importlib.metadata as m, json, sys
found = next(m.distributions(name="torch"), None)
print(json.dumps([sys.version_info[:2], found and found.version, [path for path in sys.path if path]]))
"""


class Environment(NamedTuple):
    """An interpreter, the version of its torch (None: it has none), and the folders that it imports from."""

    python: str
    torch: str | None
    path: list[str]


def torch_in(path: list[str]) -> str | None:
    """The version of the torch that lies in the folders of ``path``, or None."""
    found = next(distributions(name="torch", path=path), None)
    return None if found is None else found.version


def folder_of_torch() -> str:
    """Where the torch is that this interpreter imports."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{sys.executable} has no torch")
    return spec.submodule_search_locations[0]


def supported(version: str | None) -> bool:
    """Whether the package works with a version of torch."""
    if version is None:
        return False
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2]) >= OLDEST_TORCH


def _ask(python: str) -> Environment | None:
    """An interpreter's torch and path; None where it does not run, or is of another version than this one."""
    # What the isolating tool has set for its own environment would hide just what is asked for.
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    try:
        done = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, env=clean, cwd="/", timeout=60)
        version, torch, path = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Environment(python, torch, path) if tuple(version) == sys.version_info[:2] else None


def _in_folder(folder: str | None) -> str | None:
    """The interpreter of a virtual environment."""
    python = Path(folder or "", "bin", "python")
    return str(python) if folder and python.exists() else None


def _of_parent() -> Iterator[str]:
    """Interpreters that the process that started this one stands for, the likeliest first."""
    parent = Path("/proc", str(os.getppid()))
    try:
        arguments = [os.fsdecode(part) for part in (parent / "cmdline").read_bytes().split(b"\0")]
        lines = [os.fsdecode(line) for line in (parent / "environ").read_bytes().split(b"\0")]
        folder = os.readlink(parent / "cwd")
    except OSError:  # no Linux, or another user's process: the variables are what is left
        arguments, lines, folder = [""], [f"{key}={value}" for key, value in os.environ.items()], os.getcwd()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    program = arguments[0]
    if Path(program).name.startswith("python"):  # pip, python -m build
        found = shutil.which(program, path=variables.get("PATH")) if os.sep not in program else Path(folder, program)
        if found:
            yield str(found)
    for option, value in zip(arguments, arguments[1:], strict=False):  # uv pip install --python
        if option in ("--python", "-p"):
            yield from filter(None, (_in_folder(os.path.join(folder, value)), shutil.which(os.path.join(folder, value))))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        yield from filter(None, [_in_folder(variables.get(name))])
    if Path(program).name.startswith("uv"):  # it takes the .venv of a folder above, where none is active
        for above in (Path(folder), *Path(folder).parents):
            yield from filter(None, [_in_folder(str(above / ".venv"))])


def started_from(throwaway: bool) -> Environment | None:
    """The environment that the build was started from; None where that cannot be told.

    Args:
        throwaway: whether the interpreter that runs this is of an environment made for this build.

    One without torch is returned only where no other has one that will do.
    """
    pythons = _of_parent() if throwaway else [sys.executable]
    found = [environment for python in pythons if (environment := _ask(python)) is not None]
    for environment in found:
        if supported(environment.torch):
            return environment
    return next((environment for environment in found if environment.torch), found[0] if found else None)
