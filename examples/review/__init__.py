"""The review's measurement: dropout rates against loss, for every site, on one small character model.

``grid`` says which cells there are, ``training`` trains one, ``results`` keeps them as JSON lines, ``runner`` runs what
is missing, ``check`` runs some again, ``summary`` compares, ``claims`` answers, ``tables`` and ``plots`` show.
From the checkout's root: ``python -m examples.review``; what came out is in ``docs/review.md``.
"""
