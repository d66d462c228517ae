"""``python -m fused_rnn_dropout``: see :mod:`fused_rnn_dropout.cli`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
