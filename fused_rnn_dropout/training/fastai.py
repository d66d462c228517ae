"""Weights of fastai's AWD_LSTM, as its versions 1 and 2 save them, for :mod:`awd_lstm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .awd_lstm import AWDLSTM, AWDLSTMClassifier, AWDLSTMEncoder

_PREFIXES = ("0.", "0.module.", "")  # of a language model, of a classifier, of an encoder alone
_KEPT = ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0")


def load_fastai(model: AWDLSTM | AWDLSTMClassifier | AWDLSTMEncoder, state: Mapping[str, Any]) -> None:
    """Loads a ``state_dict`` of fastai's AWD_LSTM, or what ``learn.save`` wrote (``{"model": ..., "opt": ...}``).

    Gates are in torch's order in both. The recurrent weights are in ``weight_hh_l0_raw``: what stands beside it as
    ``module.weight_hh_l0`` is a copy with a dropout mask on it, which is the trap. Into an encoder or a classifier goes
    the encoder alone. Words keep their numbers, so the vocabulary must be the saved one.

    Args:
        model: of the saved sizes: fastai's defaults are ``AWDLSTM(len(vocabulary), 400, 1152, 3, padding_idx=1)``.
        state: of a language model, a classifier, or an encoder.

    Raises:
        ValueError: a key is missing or unknown; two copies of one matrix differ; the saved decoder is not tied and
            ``model``'s is.
        RuntimeError: sizes differ, in torch's words.
        TypeError: ``model`` is none of these.
    """
    if not isinstance(model, (AWDLSTM, AWDLSTMClassifier, AWDLSTMEncoder)):
        raise TypeError(f"model should be an AWDLSTM, its encoder or a classifier, got {type(model).__name__}")
    state = state["model"] if isinstance(state.get("model"), Mapping) else state
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}encoder.weight" in state), None)
    if prefix is None:
        raise ValueError("state has no encoder.weight, with 0., 0.module. or nothing before it: it is no AWD_LSTM's")
    rest = dict(state)
    encoder = model if isinstance(model, AWDLSTMEncoder) else model.encoder

    def take(key: str) -> Tensor:
        if key not in rest:
            raise ValueError(f"state lacks {key}, which a model of {len(encoder.rnns)} layers has")
        return rest.pop(key)

    loaded = {"words.embedding.weight": take(f"{prefix}encoder.weight")}
    copy = rest.pop(f"{prefix}encoder_dp.emb.weight", None)
    if copy is not None and not torch.equal(copy, loaded["words.embedding.weight"]):
        raise ValueError(f"{prefix}encoder.weight and {prefix}encoder_dp.emb.weight should be equal, and differ")
    for layer in range(len(encoder.rnns)):
        of_layer = f"{prefix}rnns.{layer}."
        loaded[f"rnns.{layer}.weight_hh_l0"] = take(f"{of_layer}weight_hh_l0_raw")
        rest.pop(f"{of_layer}module.weight_hh_l0", None)
        loaded |= {f"rnns.{layer}.{name}": take(f"{of_layer}module.{name}") for name in _KEPT}
    head = {key: rest.pop(key) for key in list(rest) if key.startswith("1.")}
    if rest:
        raise ValueError(f"state has {', '.join(rest)}, which a model of {len(encoder.rnns)} layers has no place for")
    if isinstance(model, AWDLSTM):
        weights = {name: head.pop(f"1.decoder.{name}", None) for name in ("weight", "bias")}
        missing = [name for name, value in weights.items() if value is None]
        if missing or head:
            what = f"lacks 1.decoder.{missing[0]}" if missing else f"has {', '.join(head)}"
            raise ValueError(f"state {what}: it is no language model's; load it into the encoder")
        tied = model.decoder.weight is encoder.words.embedding.weight
        if tied and not torch.equal(weights["weight"], loaded["words.embedding.weight"]):
            raise ValueError("the saved decoder is not tied to the embedding: build the model with tied=False")
        encoder.load_state_dict(loaded)
        model.decoder.load_state_dict(weights)
        return
    encoder.load_state_dict(loaded)


__all__ = ["load_fastai"]
