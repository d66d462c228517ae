"""The bench of a checkout: ``python -m bench`` is :mod:`fused_rnn_dropout.bench`, which is installed with the package.

:mod:`bench.gpu_report` stands here alone, since it tells that the package was not built too.
"""
