"""Why the compiled library cannot be loaded, and what to do: found out where that has failed, and without torch."""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

OLDEST_TORCH = (2, 10)


def older(version: str) -> bool:
    """Whether a version of torch is older than the package supports."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) < OLDEST_TORCH


def installed_elsewhere(package: Path) -> Path | None:
    """The folder of an installed copy of the package, other than ``package``, that has the library; or None."""
    folders = [Path(folder) for folder in sys.path if folder]
    with contextlib.suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("fused_rnn_dropout").locate_file(""))))
    copies = [folder / package.name for folder in folders]
    return next((copy for copy in copies if any(copy.glob("_C.*so")) and copy.resolve() != package.resolve()), None)


def why(error: ImportError, package: Path, torch_version: str) -> str:
    """What a user is told.

    Args:
        error: raised by the import of the library.
        package: the folder that the package is imported from.
        torch_version: of the torch that is installed.
    """
    if older(torch_version):
        oldest = ".".join(map(str, OLDEST_TORCH))
        return (
            f"fused_rnn_dropout needs torch {oldest} or later, and {sys.executable} has torch {torch_version}: "
            "pip install --upgrade torch"
        )
    checkout = (package.parent / "setup.py").exists() and (package.parent / "csrc").is_dir()
    build = f"pip install -e {package.parent}" if checkout else "pip install --force-reinstall fused-rnn-dropout"
    files = [file.name for file in sorted(package.glob("_C.*")) if file.suffix != ".pyi"]
    elsewhere = installed_elsewhere(package)
    if not files and elsewhere is not None:
        return (
            f"fused_rnn_dropout is installed in {elsewhere}, but Python imports the sources in {package}, which hide "
            f"it and have no compiled library: start Python in another folder, or build the library here too: {build}"
        )
    if not files:
        reason = "these are sources for which it has not been built" if checkout else "the installation is not whole"
        return f"the compiled library of fused_rnn_dropout is missing from {package}; {reason}: {build}"
    names = " and ".join(files)
    loadable = [f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    if not set(files) & set(loadable):
        free = " (free-threaded)" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
        return (
            f"{names} in {package}, the compiled library of fused_rnn_dropout, is of another Python or system: "
            f"{sys.executable}, {sys.implementation.name} {sys.version.split()[0]}{free} on {sys.platform}, loads "
            f"{', '.join(loadable)}. Supported is CPython 3.10 or later that is not free-threaded: {build}"
        )
    return (
        f"{names} in {package}, the compiled library of fused_rnn_dropout, does not load under torch {torch_version} "
        f"({error}): torch or the system is another than it was built for; build it anew: {build}"
    )
