"""Drop-in LSTM, GRU and RNN layers with every dropout of the RNN literature inside fused kernels.

>>> import fused_rnn_dropout as frd
>>> rnn = frd.LSTM(400, 1150, num_layers=3, weight_dropout=0.5, input_dropout=0.4, zoneout_c=0.1)

:class:`LSTM`, :class:`GRU` and :class:`RNN` take everything that their namesakes in ``torch.nn`` take, with the same
``state_dict``; :func:`convert` swaps those inside a model. ``docs/semantics.md`` says what each site computes.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  a checkout is imported whatever pyproject.toml says
    raise ImportError(f"fused_rnn_dropout needs Python 3.10 or later, and {sys.executable} is {sys.version.split()[0]}")

from . import library, flops, reference  # noqa: F401, I001  library first: it says what is wrong where it cannot be loaded
from .arguments import draw_rng
from .cell_modules import GRUCell, LSTMCell
from .convert import convert, revert
from .introspect import explain, export_masks
from .library import library_paths
from .modules import GRU, LSTM, NNGRU, NNLSTM, NNRNN, RNN, hold_masks, mc_dropout
from .options import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout

from . import training  # isort: skip  # it is made of all of the above

__version__ = "0.2.0.dev0"

flops.register()

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "NNGRU",
    "NNLSTM",
    "NNRNN",
    "RNN",
    "CellDropout",
    "HiddenDropout",
    "LockedDropout",
    "UpdateDropout",
    "WeightDropout",
    "Zoneout",
    "convert",
    "draw_rng",
    "explain",
    "export_masks",
    "hold_masks",
    "library_paths",
    "mc_dropout",
    "reference",
    "revert",
    "training",
]
