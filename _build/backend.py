"""setuptools' build backend, made to build against the torch that is already installed.

One rule for pip, ``python -m build`` and uv, isolated or not: the build uses the torch of the environment that it is
started from, and fetches one only where that environment has none. Listing torch among the build's requirements would
mean a fresh download for every build: gigabytes, and perhaps another version than the one the package will run with.
"""

import sys
from pathlib import Path

import setuptools
from setuptools.build_meta import *  # noqa: F403  the hooks of PEP 517 and PEP 660

sys.path.insert(0, str(Path(__file__).parent))  # uv gives a relative folder, which build_meta takes away
from outside import REQUIREMENT, started_from, supported, torch_in

_NOT_SEEN = (
    "fused_rnn_dropout is built against the torch that is installed, and this build's own environment, {prefix}, hides "
    "it: install setuptools>=77, ninja and wheel beside that torch and build with `python -m build --no-isolation`, "
    "`pip install --no-build-isolation .` or `uv pip install --no-build-isolation .`"
)

_environment = None
if not supported(torch_in(sys.path)):
    # pip keeps the requirements of a build in a folder of their own, the others in the environment that they make.
    _environment = started_from(throwaway=Path(sys.prefix) in Path(setuptools.__file__).parents)
    if _environment is not None and supported(_environment.torch):
        # At the end: the build's own setuptools stays in front.
        sys.path.extend(folder for folder in _environment.path if folder not in sys.path)


def get_requires_for_build_wheel(config_settings=None):
    if supported(torch_in(sys.path)):
        return []
    if _environment is None:
        raise SystemExit(_NOT_SEEN.format(prefix=sys.prefix))
    if _environment.torch is not None:
        raise SystemExit(
            f"fused_rnn_dropout needs {REQUIREMENT}, and {_environment.python}, which it is built for, has torch "
            f"{_environment.torch}: upgrade that first"
        )
    print(f"fused_rnn_dropout: {_environment.python} has no torch, so that the build fetches one", flush=True)
    return [REQUIREMENT]


def get_requires_for_build_sdist(config_settings=None):
    return []


get_requires_for_build_editable = get_requires_for_build_wheel
