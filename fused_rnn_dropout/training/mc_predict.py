"""Monte Carlo dropout at test time: the mean of the predictions of several masks (Gal & Ghahramani 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..rnn_base import Regularized
from ..thresholds import Thresholds
from .bayes import BayesByBackprop
from .embedding_dropout import EmbeddingDropout
from .passes import in_eval, logits_of
from .rated import configured


@torch.no_grad()
def mc_predict(
    model: nn.Module,
    *inputs: Tensor,
    samples: int = 100,
    batch_dim: int = 1,
    together: int | None = None,
    power: float = 1.0,
    temperature: float = 1.0,
    multiplier: float | Mapping[str, float] = 1.0,
) -> Tensor:
    """Probabilities averaged over ``samples`` forward passes of ``model`` with masks on, everything else in eval.

    With p_k = softmax(logits_k / temperature): mean_k p_k. It is probabilities that are averaged, not logits. With
    another ``power`` a the result is (mean_k p_k^a)^(1/a), normalised again; a = 0 is the geometric mean. Tuning
    multiplier, power and temperature on validation data is the eval tuning of Melis et al. 2018.

    Samples are rows: the batch is repeated, and row b of sample k has the counters of example k B + b, so that one call
    has the masks of many samples. Masks of weights, of word types, those that a batch shares, and the weights of
    :class:`BayesByBackprop` are the same for a whole call: samples that share them would be no independent samples.
    With such a site each sample gets a call.

    Only masks of this package are on: ``nn.Dropout`` and batch norm stay in eval. Zoneout is sampled, not its
    expectation. Where a model carries a state over segments, one mask should last for all of them:
    ``hold_masks(mc_dropout(model))`` around the loop does that, sample by sample.

    Args:
        model: returns logits (*, V), or a tuple whose first element they are, with the batch in dimension
            ``batch_dim``.
        inputs: tensors with the batch in dimension ``batch_dim``.
        samples: K, at least 1.
        batch_dim: of inputs and logits; 1 for (T, B), 0 for (B, T).
        together: samples in one call, at most; all if None. Memory grows with it.
        power: see above.
        temperature: above 0.
        multiplier: on every configured rate while this runs, or by site: ``{"embedding_dropout": 0.0}`` leaves words
            alone, as the paper's script does. Rates are cut at 1.

    Returns:
        (*, V): float32, or float64 for float64 logits.

    Raises:
        ValueError: an argument out of range; a model without a configured site of this package; ``inputs`` that do not
            have one number of rows, or logits that have another.
        TypeError: ``model`` is no module, or takes or returns something else.
    """
    for name, value, least in (
        ("samples", samples, 1), ("together", samples if together is None else together, 1), ("batch_dim", batch_dim, 0)
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} should be an int of at least {least}, got {value}")
    if not temperature > 0:
        raise ValueError(f"temperature should be above 0, got {temperature}")
    sites = configured(model)
    if not any(isinstance(module, Thresholds) and module.draws for module in model.modules()):
        raise ValueError("the model has no site of this package configured, so that all samples would be equal")
    batch = _batch_of(inputs, batch_dim)
    most = 1 if any(_one_mask_a_call(module) for module in model.modules()) else together or samples
    total: Tensor | None = None
    with _masks_on(model), _scaled(model, sites, multiplier):
        done = 0
        while done < samples:
            count = min(most, samples - done)
            repeated = [given.repeat([count if d == batch_dim else 1 for d in range(given.dim())]) for given in inputs]
            logs = _log_probabilities(model(*repeated), temperature)
            if logs.dim() <= batch_dim + 1 or logs.size(batch_dim) != count * batch:
                raise ValueError(
                    f"logits should have {count * batch} rows in dimension {batch_dim}, and classes in the last, got "
                    f"shape {tuple(logs.shape)}"
                )
            parts = logs.unflatten(batch_dim, (count, batch))
            parts = parts.sum(batch_dim) if power == 0 else (power * parts).logsumexp(batch_dim)
            if total is None:
                total = parts
            else:
                total = total + parts if power == 0 else torch.logaddexp(total, parts)
            done += count
    assert total is not None
    # The number of samples is a factor that normalising takes away.
    return (total / (samples if power == 0 else power)).softmax(-1)


def _batch_of(inputs: tuple[Tensor, ...], batch_dim: int) -> int:
    for given in inputs:
        if not isinstance(given, Tensor):
            raise TypeError(f"inputs should be tensors, got {type(given).__name__}")
    rows = {given.size(batch_dim) if given.dim() > batch_dim else -1 for given in inputs}
    if len(rows) != 1 or rows == {-1}:
        shapes = ", ".join(str(tuple(given.shape)) for given in inputs)
        raise ValueError(
            f"inputs should have one number of rows in dimension {batch_dim}, got shapes {shapes or 'none'}"
        )
    return rows.pop()


def _log_probabilities(result: Any, temperature: float) -> Tensor:
    return (logits_of(result) / temperature).log_softmax(-1)


def _one_mask_a_call(module: nn.Module) -> bool:
    """Whether a module has a mask, or weights that are drawn, which do not depend on the example."""
    if isinstance(module, EmbeddingDropout):
        return module.draws and module.per == "type"
    if isinstance(module, BayesByBackprop):
        return True
    if not isinstance(module, Regularized):
        return False
    weight = module.sites.get("weight_dropout")
    of_weights = weight is not None and not getattr(weight, "per_example", False)
    return of_weights or any(getattr(spec, "batch_shared", False) for spec in module.sites.values())


@contextmanager
def _masks_on(model: nn.Module) -> Iterator[None]:
    before = [(module, module.mc) for module in model.modules() if isinstance(module, Thresholds)]
    with in_eval(model):
        try:
            for module, _ in before:
                module.mc = True
            yield
        finally:
            for module, mc in before:
                module.mc = mc


@contextmanager
def _scaled(
    model: nn.Module, sites: Mapping[tuple[str, str], float], multiplier: float | Mapping[str, float]
) -> Iterator[None]:
    """Every rate times its multiplier."""
    by_site = multiplier if isinstance(multiplier, Mapping) else {site: multiplier for _, site in sites}
    unknown = sorted(set(by_site) - {site for _, site in sites})
    if unknown:
        raise ValueError(f"multiplier names {', '.join(unknown)}, which no module of the model has configured")
    if any(not factor >= 0 for factor in by_site.values()):
        raise ValueError(f"multiplier should be at least 0, got {multiplier}")
    modules: dict[str, Any] = dict(model.named_modules())
    try:
        for (path, site), rate in sites.items():
            modules[path].set_rate(site, min(1.0, rate * by_site.get(site, 1.0)))
        yield
    finally:
        for (path, site), rate in sites.items():
            modules[path].set_rate(site, rate)


__all__ = ["mc_predict"]
