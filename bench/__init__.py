"""Side-by-side measurements: ``python -m bench`` measures, ``report`` and ``pages`` tabulate, ``profile`` takes apart,
``floor`` counts what a GPU cannot do without. ``python -m bench.gpu_report`` makes one page of a whole run there.

Nothing here is installed with the package; run it from a checkout in which the package is built.
"""
