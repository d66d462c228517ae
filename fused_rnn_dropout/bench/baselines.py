"""torch's own layers on a GPU with their weights in one piece of memory, or each in its own.

nn.LSTM and nn.GRU flatten their weights for cuDNN when they move, but not in bfloat16, which torch does not count among
cuDNN's dtypes: each call then copies all of them. And whoever replaces a weight, as wrappers do, has them apart too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.backends.cudnn import rnn as cudnn_rnn


def flattens_itself(dtype: torch.dtype) -> bool:
    """Whether torch's modules flatten weights of this dtype where cuDNN is there."""
    return dtype in cudnn.CUDNN_TENSOR_DTYPES


def in_one_piece(module: nn.Module) -> bool:
    """Whether all weights lie in one storage."""
    return len({weight.untyped_storage().data_ptr() for weight in module.parameters()}) == 1


def flatten(rnn: nn.RNNBase) -> None:
    """What ``flatten_parameters`` does, whatever the dtype."""
    weights = [weight for weight in rnn._flat_weights if isinstance(weight, Tensor)]
    each = len(weights) // rnn.num_layers // (2 if rnn.bidirectional else 1)
    with torch.no_grad(), torch.cuda.device_of(weights[0]):
        torch._cudnn_rnn_flatten_weight(
            weights, each, rnn.input_size, cudnn_rnn.get_cudnn_mode(rnn.mode), rnn.hidden_size, rnn.proj_size,
            rnn.num_layers, rnn.batch_first, bool(rnn.bidirectional),
        )  # fmt: skip


def scatter(rnn: nn.RNNBase) -> None:
    """Gives each weight memory of its own."""
    for weight in rnn.parameters():
        weight.data = weight.data.clone()


class Arranged(nn.Module):
    """A layer of torch's whose weights are arranged anew after each move.

    Args:
        rnn: the layer.
        arrange: what to do with it, on a GPU.
    """

    def __init__(self, rnn: nn.RNNBase, arrange: Callable[[nn.RNNBase], None]) -> None:
        super().__init__()
        self.rnn = rnn
        self.arrange = arrange

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        if next(self.rnn.parameters()).is_cuda:
            self.arrange(self.rnn)
        return result

    def forward(self, x: Any) -> Any:
        return self.rnn(x)
