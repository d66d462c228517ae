"""setuptools' build backend, made to build against the torch that is already installed.

pip builds in an environment of its own, which hides the installed torch. Listing torch among the build's requirements
would bring it back, but as a fresh download for every build: gigabytes, and perhaps another version than the one the
package will run with. So this backend looks for torch where the package is about to be installed, and asks for a
download only where there is none that will do.
"""

import site
import sys
from importlib.metadata import distributions

from setuptools.build_meta import *  # noqa: F403  the hooks of PEP 517 and PEP 660

OLDEST_TORCH = (2, 10)


def _has_torch(path: list[str]) -> bool:
    """Whether a torch that the package supports is installed in one of the folders of ``path``."""
    found = next(distributions(name="torch", path=path), None)
    return found is not None and tuple(int(part) for part in found.version.split(".")[:2]) >= OLDEST_TORCH


def _site_folders() -> list[str]:
    """Where packages of this interpreter lie; of the virtual environment first, if there is one."""
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # no virtual environment: `pip install --user` has its own folder
        folders.append(site.getusersitepackages())
    return folders


if not _has_torch(sys.path) and _has_torch(_site_folders()):
    sys.path.extend(_site_folders())  # at the end: the build environment's own setuptools stays in front


def get_requires_for_build_wheel(config_settings=None):
    return [] if _has_torch(sys.path) else ["torch>=" + ".".join(map(str, OLDEST_TORCH))]


def get_requires_for_build_sdist(config_settings=None):
    return []


get_requires_for_build_editable = get_requires_for_build_wheel
