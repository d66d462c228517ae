"""``python -m bench``: see ``--help``, and :mod:`fused_rnn_dropout.bench`."""

import sys

from fused_rnn_dropout.bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
