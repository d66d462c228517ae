"""What stands in for cuDNN where there is no GPU: torch's CPU layers behind the functions of ``cudnn_library``.

It treats memory as the real one does behind torch, and refuses what that refuses:

- Weights lie in one flat buffer, all matrices before all biases, with gaps in front of what is aligned. There are two
  biases for each layer and direction whether the module has any or not, and they are always read: torch asks for no
  other bias mode.
- Weights that are views of such a buffer are taken as they are; others are copied, with torch's warning.
- Only what ran with the train flag has a backward, which has none of its own. It always computes the gradients of
  the input and the states, and those of the weights where one of them needs it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn_dropout import cudnn_library
from fused_rnn_dropout.cells import CELLS

ALIGNMENT = 32  # elements: more than an element of any gap that a test has would show
NOT_CONTIGUOUS = "This error may appear if you passed in a non-contiguous input."
CHUNK = "RNN module weights are not part of single contiguous chunk of memory. They are compacted at every call."


class Place(NamedTuple):
    offset: int
    shape: tuple[int, ...]


Places = dict[str, Place]


def places_of(
    cell: str, inputs: int, hidden: int, projected: int, layers: int, bidirectional: bool
) -> tuple[list[Places], int]:
    """Where each weight of each layer and direction lies, by its name, and the elements of the whole buffer."""
    directions, gates = 2 if bidirectional else 1, CELLS[cell].gates
    width, end = projected or hidden, 0
    found: list[Places] = [{} for _ in range(layers * directions)]

    def put(index: int, name: str, *shape: int) -> None:
        nonlocal end
        if name != "b_hh":  # which follows b_ih at once
            end = -(-end // ALIGNMENT) * ALIGNMENT
        found[index][name] = Place(end, shape)
        end += math.prod(shape)

    for index in range(len(found)):
        put(index, "w_ih", gates * hidden, inputs if index < directions else width * directions)
        put(index, "w_hh", gates * hidden, width)
        if projected:
            put(index, "w_hr", projected, hidden)
    for index in range(len(found)):
        put(index, "b_ih", gates * hidden)
        put(index, "b_hh", gates * hidden)
    return found, end + ALIGNMENT


def names_of(projected: int, has_bias: bool) -> list[str]:
    """A module's weights of one layer and direction, in torch's order."""
    return ["w_ih", "w_hh", *(["b_ih", "b_hh"] if has_bias else []), *(["w_hr"] if projected else [])]


def view(flat: Tensor, place: Place) -> Tensor:
    return flat[place.offset : place.offset + math.prod(place.shape)].view(place.shape)


@contextmanager
def without_onednn() -> Iterator[None]:
    """It takes some of the layers on some processors, and the same numbers are wanted on all."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


class Layers(torch.autograd.Function):
    """``_cudnn_rnn``: reads the buffer alone. The weights are there for their gradients."""

    @staticmethod
    def forward(ctx: Any, log: list[str], names: list[str], places: list[Places], flat: Tensor, batch_sizes: Any,
                options: tuple[str, bool, bool], *tensors: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        cell, train, bidirectional = options
        states = CELLS[cell].states
        weights = [{name: view(flat, place).detach() for name, place in of.items()} for of in places]
        x, *hx = (tensor.detach() for tensor in tensors[: 1 + states])
        order = names_of("w_hr" in places[0], has_bias=True)
        every = [of[name] for of in weights for name in order]
        leaves = [leaf.requires_grad_(train) for leaf in (x, *hx, *every)]
        function: Any = getattr(torch._VF, cell.lower())
        given = tuple(hx) if CELLS[cell].has_c else hx[0]
        tail = (every, True, len(places) // (2 if bidirectional else 1), 0.0, train, bidirectional)
        with torch.set_grad_enabled(train), without_onednn():
            results = (
                function(x, given, *tail, False) if batch_sizes is None else function(x, batch_sizes, given, *tail)
            )
        ctx.log, ctx.train, ctx.inputs = log, train, leaves[: 1 + states]
        ctx.weights = [of[name] for of in weights for name in names]
        ctx.reserve = results if train else None
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        log.append("forward in training" if train else "forward")
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return *[None] * 6, *LayersBackward.apply(ctx, len(grads), *grads, *ctx.saved_tensors)


class LayersBackward(torch.autograd.Function):
    """``_cudnn_rnn_backward``, which autograd knows no derivative of."""

    @staticmethod
    def forward(ctx: Any, of: Any, count: int, *tensors: Any) -> tuple[Any, ...]:
        if not of.train:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        grads = tensors[:count]
        given = [torch.zeros_like(y) if grad is None else grad for y, grad in zip(of.reserve, grads, strict=True)]
        for grad, result in zip(given, of.reserve, strict=True):
            assert grad.dtype == result.dtype and grad.shape == result.shape
        asked = list(of.inputs)
        of.log.append("gradients of the input")
        if any(of.needs_input_grad[6 + len(asked) :]):
            of.log.append("gradients of the weights")
            asked += of.weights
        found = torch.autograd.grad(of.reserve, asked, given, retain_graph=True)
        return *found, *[None] * (len(of.inputs) + len(of.weights) - len(found))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("derivative for aten::_cudnn_rnn_backward is not implemented")


class StandIn:
    """Takes the place of the functions of ``cudnn_library`` that ask cuDNN.

    Attributes:
        version: of the cuDNN that torch was compiled against.
        capability: of the device.
        log: what was done, in order.
    """

    NAMES = ("acceptable", "compiled_version", "capability", "flatten_weight", "run")

    def __init__(self) -> None:
        self.version, self.device_capability = (9, 13, 0), (9, 0)
        self.log: list[str] = []
        self.replaced: dict[str, Any] = {}

    def install(self) -> None:
        for name in self.NAMES:
            self.replaced[name] = getattr(cudnn_library, name)
            setattr(cudnn_library, name, getattr(self, name))

    def uninstall(self) -> None:
        for name, function in self.replaced.items():
            setattr(cudnn_library, name, function)
        for of in [of for of in cudnn_library._layouts if of.device.type == "cpu"]:
            del cudnn_library._layouts[of]

    # ---- What it is asked

    def acceptable(self, input: Tensor) -> bool:
        return input.device.type == "cpu" and torch.backends.cudnn.enabled and input.numel() > 0

    def compiled_version(self) -> tuple[int, int, int]:
        return self.version

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self.device_capability

    def _check_dtype(self, dtype: torch.dtype) -> None:
        takes = {torch.float64, torch.float32, torch.float16}
        if self.version >= (9, 13) and self.device_capability >= (8, 0):
            takes.add(torch.bfloat16)
        if dtype not in takes:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    def flatten_weight(
        self, weights: list[Tensor], each: int, cell: str, hidden: int, projected: int, layers: int, bidirectional: bool
    ) -> Tensor:
        self._check_dtype(weights[0].dtype)
        places, size = places_of(cell, weights[0].size(1), hidden, projected, layers, bidirectional)
        flat = torch.zeros(size, dtype=weights[0].dtype)
        names = names_of(projected, each > 3)
        if len(names) != each or len(weights) != each * len(places):
            raise RuntimeError("number of layers mismatch")
        for index, weight in enumerate(weights):
            target = view(flat, places[index // each][names[index % each]])
            target.copy_(weight.view_as(target))
            weight.set_(target)
        self.log.append("flatten")
        return flat

    def run(
        self, cell: str, x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], weights: list[Tensor],
        has_bias: bool, layers: int, train: bool, bidirectional: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        h0, hidden = states[0], states[-1].size(2)
        projected = h0.size(2) if h0.size(2) != hidden else 0
        self._check(x, batch_sizes, states, weights)
        places, size = places_of(cell, x.size(-1), hidden, projected, layers, bidirectional)
        names = names_of(projected, has_bias)
        if len(weights) != len(names) * len(places):
            raise RuntimeError("num_ptrs == (num_parameters * (has_biases ? 1 : 2)) INTERNAL ASSERT FAILED")
        wanted = [place[name] for place in places for name in names]
        flat = self._recognised(weights, wanted, size)
        if flat is None:
            warnings.warn(CHUNK, stacklevel=2)
            flat = torch.zeros(size, dtype=x.dtype)
            for weight, place in zip(weights, wanted, strict=True):
                view(flat, place).copy_(weight.detach())
        options = (cell, train, bidirectional)
        return Layers.apply(self.log, names, places, flat, batch_sizes, options, x, *states, *weights)

    def _check(self, x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], weights: list[Tensor]) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("autocast would cast the weights once more")
        for name, tensors in (("hidden", states), ("parameter", weights)):
            for tensor in tensors:
                if tensor.dtype != x.dtype:
                    raise RuntimeError(
                        f"Input and {name} tensors are not the same dtype, found input tensor with {x.dtype} and "
                        f"{name} tensor with {tensor.dtype}"
                    )
        self._check_dtype(x.dtype)
        for name, state in zip(("hx", "cx"), states, strict=False):
            if not state.is_contiguous():
                raise RuntimeError(f"rnn: {name} is not contiguous")
        if batch_sizes is not None and (batch_sizes.dim() != 1 or batch_sizes.device.type != "cpu"):
            raise RuntimeError("batch_sizes tensor should be 1D and on CPU")
        if x.numel() == 0:
            raise RuntimeError(f"cuDNN error: CUDNN_STATUS_BAD_PARAM. {NOT_CONTIGUOUS}")
        if (x.size(0) if batch_sizes is None else batch_sizes.size(0)) > 65_535:
            raise RuntimeError(f"cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. {NOT_CONTIGUOUS}")

    @staticmethod
    def _recognised(weights: list[Tensor], wanted: list[Place], size: int) -> Tensor | None:
        """The buffer that the weights are views of, if they lie in it as they should."""
        storage = weights[0].untyped_storage()
        if storage.nbytes() < size * weights[0].element_size():
            return None
        flat = torch.empty(0, dtype=weights[0].dtype).set_(storage, 0, (size,), (1,))
        for weight, place in zip(weights, wanted, strict=True):
            if weight.data_ptr() != view(flat, place).data_ptr() or not weight.is_contiguous():
                return None
        return flat
