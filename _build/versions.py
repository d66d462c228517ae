"""The package's version, which stands in ``fused_rnn_dropout/__init__.py`` alone."""

from __future__ import annotations

import re
from pathlib import Path


def public() -> str:
    """Read from the source, without importing it."""
    (found,) = re.findall(r'^__version__ = "(.+)"$', Path("fused_rnn_dropout/__init__.py").read_text("utf-8"), re.M)
    return found


def of_build(libraries: int, release: bool) -> str:
    """Of what is built here: ``+cpu`` is added where it has no library for a GPU and is no release.

    So that two wheels of one version that do not hold the same have not the same name.
    """
    return public() if libraries or release else f"{public()}+cpu"
