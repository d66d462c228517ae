"""The one way in which kernels are launched."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """``programs`` programs of ``kernel``; nothing where there are none, as a grid must not be empty.

    Products and additions may fuse, as in every compiled kernel: said here, since Triton's own default changes from
    one release to the next.
    """
    if programs:
        kernel[(programs,)](*args, enable_fp_fusion=True, **constants)
