"""Side-by-side measurements, as ``fused-rnn-dropout bench`` and, in a checkout, as ``python -m bench``.

``run`` measures one layer of your own, ``compare`` tells two results apart. Without a command the shapes of
:mod:`shapes` are measured; ``report`` and ``pages`` tabulate, ``profile`` takes apart, ``floor`` counts what a GPU
cannot do without. Nothing here is imported with the package.
"""
