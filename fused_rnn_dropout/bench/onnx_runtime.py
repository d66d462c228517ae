"""ONNX Runtime as a contender for one step under no_grad, where it is installed: a layer without sites, as one node."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MODULES = ("onnx", "onnxscript", "onnxruntime")
"""What exporting a layer and running it takes."""


def missing() -> list[str]:
    """Those of :data:`MODULES` that are not installed."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def call_of(rnn: nn.Module, x: Any, hx: Any) -> Callable[[], Any]:
    """A call of what ``rnn`` in eval is exported to, on these inputs and torch's number of threads.

    ONNX Runtime copies the weights into the order of its products when it loads them, which no call pays for.
    """
    import onnxruntime

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporter itself calls
            program = torch.onnx.export(rnn.eval(), (x, hx), dynamo=True, verbose=False)
    finally:
        log.setLevel(level)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = (x, *(hx if isinstance(hx, tuple) else (hx,)))
    values = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), given, strict=True)}
    return lambda: session.run(None, values)


__all__ = ["MODULES", "call_of", "missing"]
