"""What the layers can read: dense tensors, and packed sequences that are in order. Checked before anything else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn.utils.rnn import PackedSequence

NO_STEPS = "Expected sequence length to be larger than 0 in RNN"


def known(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds; False where compiled code does not know it before it runs.

    The operators check sizes again when they run.
    """
    return guard_or_false(condition) if torch.compiler.is_compiling() else bool(condition)


def exporting() -> bool:
    """Whether torch.export runs this code on tensors without values, as it does by default (``strict=False``)."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has strides, one size in each dimension, and numbers as they are."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def check_dense(name: str, tensor: Tensor) -> None:
    """Raises ``TypeError`` for a sparse, nested, quantised or MKL-DNN tensor, and says what to do with it."""
    if is_dense(tensor):
        return
    if tensor.is_nested:
        kind, way = "a nested one", "for an input, pack_sequence(x.unbind(), enforce_sorted=False) holds the same rows"
    elif tensor.is_quantized:
        kind, way = f"a quantised one ({tensor.dtype})", "convert it with .dequantize()"
    else:
        kind, way = f"one with layout {tensor.layout}", "convert it with .to_dense()"
    raise TypeError(f"{name} should be a dense tensor, got {kind}: {way}")


def check_packed(packed: PackedSequence) -> None:
    """Checks a ``PackedSequence`` as ``pack_sequence`` and ``pack_padded_sequence`` make them.

    Compiled code, and ``sorted_indices`` on a GPU, are not looked at for their values.

    Raises:
        RuntimeError: there is no step, in ``nn.LSTM``'s words for a padded input.
        TypeError, ValueError: it was made by hand, and not well.
        NotImplementedError: torch.export traces the packing too.
    """
    data, sizes, order, _ = packed
    check_dense("data of a PackedSequence", data)
    if sizes.dtype.is_floating_point and exporting():  # what torch's pack_padded_sequence gives there
        raise NotImplementedError(
            "torch.export cannot trace pack_padded_sequence: give the model a padded tensor, the only input that ONNX "
            "takes, or pack the batch outside, and give the model data and batch_sizes of the PackedSequence"
        )
    if sizes.dtype != torch.int64 or sizes.dim() != 1 or sizes.device.type != "cpu":
        raise ValueError(
            "batch_sizes of a PackedSequence should be an int64 tensor of shape (T,) on the CPU, got "
            f"{sizes.dtype} of shape {tuple(sizes.shape)} on {sizes.device}"
        )
    if known(sizes.size(0) == 0):
        raise RuntimeError(NO_STEPS)
    readable = type(sizes) is Tensor and not torch.compiler.is_compiling()
    rows = data.size(0)
    if readable:
        counts = sizes.tolist()
        if counts[-1] < 1 or counts != sorted(counts, reverse=True) or sum(counts) != rows:
            raise ValueError(
                "batch_sizes of a PackedSequence should be positive, not grow and sum to the rows of its data, got "
                f"{_short(counts)} for {rows} rows"
            )
    if order is None:
        return
    if order.dtype != torch.int64 or order.dim() != 1 or order.device != data.device:
        raise ValueError(
            f"sorted_indices of a PackedSequence should be an int64 tensor of shape (B,) on {data.device}, as its "
            f"data, got {order.dtype} of shape {tuple(order.shape)} on {order.device}"
        )
    if not readable:
        return
    if order.size(0) != counts[0]:
        raise ValueError(f"sorted_indices of a PackedSequence should have {counts[0]} entries, got {order.size(0)}")
    if type(order) is Tensor and order.device.type == "cpu":
        named = order.tolist()
        if sorted(named) != list(range(counts[0])):
            raise ValueError(
                f"sorted_indices of a PackedSequence should name each of {counts[0]} rows once, got {_short(named)}"
            )


def _short(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 12 else f"[{', '.join(map(str, numbers[:12]))}, ...]"
