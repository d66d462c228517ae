"""The demonstration: one language model on real text, first with ``torch.nn``'s RNN, then converted with sites on.

``data`` makes the corpus, ``model`` the model, ``train`` trains it in a process of its own, ``report`` shows the
outcome. From the checkout's root: ``python -m examples.language_model``.
"""
