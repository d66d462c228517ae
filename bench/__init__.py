"""Side-by-side measurements: ``python -m bench`` measures, ``report`` and ``readme`` tabulate, ``profile`` takes apart.

Nothing here is installed with the package; run it from a checkout in which the package is built.
"""
