"""The demonstration: one language model on real text, first with ``torch.nn``'s RNN, then converted with sites on.

``data`` makes the corpus, ``model`` the model, ``train`` trains it in a process of its own, ``report`` shows the
outcome. Run it with ``python -m fused_rnn_dropout demo``.
"""
