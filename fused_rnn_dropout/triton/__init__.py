"""The Triton backend: the same operators and masks as the compiled kernels, compiled by Triton when first called.

Importing this package imports no triton; :mod:`operators` does, at the first call. ``schedules.py`` of the package
above chooses the schedule. ``philox.py``, ``sites.py``, ``masks.py`` and ``cells.py`` hold what kernels
share; every other file shows one pass: its kernels, then their launchers. ``layer.py`` puts the passes of a layer
together, for any cell.

Rules of every kernel:

- A value is converted to the type that the cell computes in as it is loaded: float64 for float64, else float32.
- Masks are functions of logical indices, never of a program or a thread, so that blocks may have any size.
- T and B, and what follows from them, are plain numbers that are not specialised: a new length or batch compiles
  nothing. Widths and ``flags`` are compile-time constants.
- ``rng``, rates and example ids are read by the device alone: no launch makes the host wait, and a captured graph sees
  their new values at each replay.
"""
