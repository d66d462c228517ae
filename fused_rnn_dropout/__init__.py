"""Drop-in LSTM and GRU layers with every dropout of the RNN literature inside fused kernels.

>>> import fused_rnn_dropout as frd
>>> rnn = frd.LSTM(400, 1150, num_layers=3, weight_dropout=0.5, input_dropout=0.4, zoneout_c=0.1)

:class:`LSTM` and :class:`GRU` take everything that ``torch.nn.LSTM`` and ``torch.nn.GRU`` take, with the same
``state_dict``; :func:`convert` swaps them inside a model. ``docs/semantics.md`` says what each site computes.
"""

from . import reference
from .arguments import draw_rng
from .convert import convert, revert
from .introspect import explain, export_masks
from .modules import GRU, LSTM, hold_masks, mc_dropout
from .options import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
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
    "mc_dropout",
    "reference",
    "revert",
]
