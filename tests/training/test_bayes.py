"""Bayes by backprop: the weights that are drawn, their gradients and their KL, against torch.nn and Python's own."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import KIND, SEQ, stream
from fused_rnn_dropout.training import BayesByBackprop, FraternalLoss, mc_predict

T, B, I, H = 6, 3, 4, 5
RNG = torch.tensor([8, -3])
MIXTURE = (0.3, 0.8, 0.01)


def layer(cell: str = "LSTM", **options: Any) -> Any:
    torch.manual_seed(1)
    return getattr(frd, cell)(I, H, dtype=torch.float64, **options)


def x() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def noise(weight: Tensor, name: str, number: int, reverse: bool = False) -> Tensor:
    """Standard normals of a weight's numbers, by Python's inverse of the normal distribution."""
    once, place = torch.tensor([SEQ]), (number, int(reverse))
    if name.startswith("BIAS"):  # those of a mask by row of the matrix beside it
        of_rows = stream(KIND[name.replace("BIAS", "WEIGHT") + "_ROWS"], *place)
        numbers = masks.words(RNG, torch.tensor([0]), once, len(weight), of_rows)[0, 0]
    else:
        rows = torch.arange(weight.size(0))
        numbers = masks.words(RNG, rows, once, weight.size(1), stream(KIND[name], *place))[0]
    normal = NormalDist()
    found = [normal.inv_cdf((n + 0.5) / 2**32) for n in numbers.flatten().tolist()]
    return torch.tensor(found, dtype=torch.float64).view_as(weight)


def std(module: BayesByBackprop, name: str) -> Tensor:
    return module.rho[name].detach().exp().log1p()


# ---------------------------------------------------------------------------------------------------------------------
# The weights
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("ours", "biases"), [(True, False), (True, True), (False, True)])
def test_it_is_the_layer_on_the_weights_that_are_drawn(cell: str, ours: bool, biases: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True} | ({"proj_size": 3} if cell == "LSTM" else {})
    rnn = layer(cell, **options)
    theirs = getattr(nn, cell)(I, H, dtype=torch.float64, **options)
    module = BayesByBackprop(rnn if ours else theirs, inputs=True, biases=biases)
    module.layer.load_state_dict(rnn.state_dict())
    with torch.no_grad():
        for rho in module.rho.values():
            rho.add_(torch.rand_like(rho))
    expected = getattr(nn, cell)(I, H, dtype=torch.float64, **options)
    weights = {name: weight.detach().clone() for name, weight in rnn.named_parameters()}
    drawn = [name for name in weights if biases or name.startswith("weight")]
    assert sorted(module.rho) == sorted(drawn) and len(drawn) == (12 if cell == "LSTM" else 8) + 8 * biases
    for name in drawn:
        kind, number = name.removesuffix("_reverse").upper().split("_L")
        weights[name] += std(module, name) * noise(weights[name], kind, int(number), name.endswith("_reverse"))
    expected.load_state_dict(weights)
    torch.testing.assert_close(module(x(), weights_rng=RNG)[0], expected(x())[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(module.eval()(x())[0], rnn(x())[0], rtol=0, atol=1e-12)


def embedding(**options: Any) -> nn.Embedding:
    torch.manual_seed(3)
    return nn.Embedding(7, I, dtype=torch.float64, **options)


@pytest.mark.parametrize("biases", [False, True])
def test_around_a_model(biases: bool) -> None:
    """An embedding and a decoder are numbered as the W_ih of a first layer."""
    words, decoder = BayesByBackprop(embedding(), std=0.2), nn.Linear(I, 3, dtype=torch.float64)
    logits = BayesByBackprop(decoder, std=0.3, biases=biases)
    ids = torch.tensor([[2, 6], [0, 2]])
    weights = [of.layer.weight.detach() for of in (words, logits)]
    e, w = (weight + s * noise(weight, "WEIGHT_IH", 0) for weight, s in zip(weights, (0.2, 0.3), strict=True))
    b = decoder.bias.detach() + 0.3 * biases * noise(decoder.bias, "BIAS_IH", 0)
    out = logits(words(ids, weights_rng=RNG), weights_rng=RNG)
    torch.testing.assert_close(out, e[ids] @ w.T + b, rtol=0, atol=1e-12)
    out.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for m in (words, logits) for p in m.rho.values())
    assert torch.equal(words.eval()(ids), weights[0][ids])


@pytest.mark.parametrize("prior", [0.7, MIXTURE])
def test_padding_has_no_distribution(prior: Any) -> None:
    plain, padded = (BayesByBackprop(embedding(**given), prior=prior) for given in ({}, {"padding_idx": 5}))
    padded.load_state_dict(plain.state_dict())
    with torch.no_grad():
        padded.layer.weight[5] = 0
    ids = torch.arange(7)
    found = padded(ids, weights_rng=RNG)
    assert not found[5].any() and torch.equal(found[ids != 5], plain(ids, weights_rng=RNG)[ids != 5])
    others = nn.Embedding(1, I, dtype=torch.float64, _weight=plain.layer.weight[5:6].detach())
    of_padding = distributions(BayesByBackprop(others))["weight"]
    if prior == 0.7:
        apart = kl_divergence(of_padding, Normal(0.0, 0.7)).sum()
        torch.testing.assert_close(plain.kl().detach() - padded.kl().detach(), apart)
    (found.sum() + padded.kl(RNG)).backward()
    for gradient in (padded.layer.weight.grad, padded.rho["weight"].grad):
        assert not gradient[5].any() and gradient[ids != 5].all()


def test_gradients_of_mean_and_rho() -> None:
    """dL/dm is that of the weight, dL/drho = dL/dw e sigmoid(rho)."""
    module, plain = BayesByBackprop(layer(), std=0.3), nn.LSTM(I, H, dtype=torch.float64)
    assert list(module.rho) == ["weight_hh_l0"]
    e = noise(module.layer.weight_hh_l0, "WEIGHT_HH", 0)
    plain.load_state_dict(module.layer.state_dict())
    with torch.no_grad():
        plain.weight_hh_l0.add_(0.3 * e)
    out, (h, c) = plain(x())
    (out.square().sum() + h.sum() + c.sum()).backward()
    out, (h, c) = module(x(), weights_rng=RNG)
    (out.square().sum() + h.sum() + c.sum()).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(module.layer.get_parameter(name).grad, parameter.grad)
    rho = module.rho["weight_hh_l0"]
    torch.testing.assert_close(rho.grad, plain.weight_hh_l0.grad * e * torch.sigmoid(rho.detach()))


def test_one_sample_a_call_and_sites_beside_it() -> None:
    module = BayesByBackprop(layer(zoneout_h=0.5, weight_dropout=0.5))
    outs = [module(x(), rng=torch.tensor([1, 2]), weights_rng=pair)[0] for pair in (RNG, RNG, None, None)]
    assert torch.equal(outs[0], outs[1])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outs[1:], 2))
    before = torch.get_rng_state()
    assert torch.equal(module.eval()(x())[0], module(x())[0]) and torch.equal(before, torch.get_rng_state())
    module.layer.eval()
    frd.mc_dropout(module).layer.mc = False
    assert not torch.equal(module(x())[0], module(x())[0])


def test_held_weights_last_for_all_segments() -> None:
    module, whole = BayesByBackprop(layer(), std=0.4), x()
    with frd.hold_masks(module, {"": RNG}):
        first, state = module(whole[:2])
        second, _ = module(whole[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), module(whole, weights_rng=RNG)[0])
    _, state = module(whole[:2], weights_rng=RNG)
    assert not torch.equal(module(whole[2:], state)[0], second), "without a hold, other weights"


def test_compiles_as_one_graph() -> None:
    module = BayesByBackprop(layer(), std=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x(), weights_rng=RNG)[0], module(x(), weights_rng=RNG)[0])
    assert not torch.equal(compiled(x())[0], compiled(x())[0])


# ---------------------------------------------------------------------------------------------------------------------
# KL
# ---------------------------------------------------------------------------------------------------------------------


def distributions(module: BayesByBackprop) -> dict[str, Normal]:
    return {name: Normal(getattr(module.layer, name).detach(), std(module, name)) for name in module.rho}


@pytest.mark.parametrize("make", [lambda: layer(), lambda: nn.Linear(I, 3, dtype=torch.float64)])
def test_kl_of_one_gaussian(make: Any) -> None:
    made = make()
    module = BayesByBackprop(made, inputs=isinstance(made, nn.RNNBase), biases=True, std=0.2, prior=0.7)
    assert {*module.rho} == {name for name, _ in made.named_parameters()}
    with torch.no_grad():
        for rho in module.rho.values():
            rho.add_(torch.rand_like(rho))
    prior = Normal(torch.zeros((), dtype=torch.float64), 0.7)
    expected = sum(kl_divergence(q, prior).sum() for q in distributions(module).values())
    torch.testing.assert_close(module.kl().detach(), expected)
    with torch.no_grad():
        for name, rho in module.rho.items():
            rho.fill_(math.log(math.expm1(0.7)))
            getattr(module.layer, name).zero_()
    assert abs(float(module.kl().detach())) < 1e-12, "the prior itself"


def test_kl_of_a_mixture_is_of_the_sample_that_the_layer_used() -> None:
    module = BayesByBackprop(layer(), std=0.2, prior=MIXTURE)
    stds = torch.tensor(MIXTURE[1:], dtype=torch.float64)
    prior = MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)), Normal(torch.zeros_like(stds), stds)
    )
    (q,) = distributions(module).values()
    w = q.mean + q.stddev * noise(q.mean, "WEIGHT_HH", 0)
    expected = (q.log_prob(w) - prior.log_prob(w)).sum()
    torch.testing.assert_close(module.kl(RNG).detach(), expected)
    with frd.hold_masks(module, {"": RNG}):
        torch.testing.assert_close(module.kl().detach(), expected)
    torch.testing.assert_close(module.eval().kl(RNG).detach(), expected)


def test_the_estimate_has_the_mean_of_the_integral() -> None:
    torch.manual_seed(5)
    module = BayesByBackprop(layer(), std=0.2, prior=(0.3, 0.8, 0.1))
    (q,) = distributions(module).values()
    grid = torch.linspace(-7, 7, 2001, dtype=torch.float64)[:, None, None] * q.stddev + q.mean
    density = q.log_prob(grid).exp()
    prior = 0.3 * Normal(0.0, 0.8).log_prob(grid).exp() + 0.7 * Normal(0.0, 0.1).log_prob(grid).exp()
    exact = torch.trapezoid(density * (q.log_prob(grid) - prior.log()), grid, dim=0).sum()
    with torch.no_grad():
        found = torch.stack([module.kl() for _ in range(100)])
    assert abs(float(found.mean() - exact)) < 5 * float(found.std()) / 100**0.5
    assert float(found.std()) > 0


@pytest.mark.parametrize("prior", [0.7, MIXTURE])
def test_kl_has_the_gradients_of_its_formula(prior: Any) -> None:
    module = BayesByBackprop(layer("RNN"), std=0.3, prior=prior)
    mean, rho = module.layer.weight_hh_l0, module.rho["weight_hh_l0"]

    def of(new_mean: Tensor, new_rho: Tensor) -> Tensor:
        given = {"layer.weight_hh_l0": new_mean, "rho.weight_hh_l0": new_rho}
        return torch.func.functional_call(Kl(module), {f"of.{name}": value for name, value in given.items()}, ())

    assert torch.autograd.gradcheck(of, (mean, rho))


@pytest.mark.parametrize("prior", [0.7, MIXTURE])
def test_sixteen_bits_are_summed_in_more(prior: Any) -> None:
    narrow = BayesByBackprop(layer().to(torch.bfloat16), prior=prior)
    wide = BayesByBackprop(layer(), prior=prior)
    wide.load_state_dict(narrow.state_dict())
    assert narrow(x().to(torch.bfloat16))[0].dtype == torch.bfloat16 and narrow.kl(RNG).dtype == torch.float32
    torch.testing.assert_close(narrow.kl(RNG).double(), wide.kl(RNG), rtol=1e-5, atol=0)


class Kl(nn.Module):
    def __init__(self, of: BayesByBackprop) -> None:
        super().__init__()
        self.of = of

    def forward(self) -> Tensor:
        return self.of.kl(RNG)


# ---------------------------------------------------------------------------------------------------------------------
# With the rest
# ---------------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.decoder = BayesByBackprop(layer(), std=0.5), nn.Linear(H, 7, dtype=torch.float64)

    def forward(self, given: Tensor) -> Tensor:
        return self.decoder(self.rnn(given)[0])


def test_mc_predict_draws_weights_for_each_sample() -> None:
    model, calls = Model().eval(), []
    model.rnn.layer.register_forward_hook(lambda _, given, out: calls.append(out[0].detach()))
    torch.manual_seed(4)
    found = mc_predict(model, x(), samples=3)
    torch.manual_seed(4)
    model.rnn.train()
    expected = torch.stack([model(x()).softmax(-1) for _ in range(3)]).mean(0).detach()
    assert len(calls) == 6 and not torch.equal(calls[0], calls[1])
    torch.testing.assert_close(found, expected)


def test_fraternal_passes_share_weights_or_not() -> None:
    model, target = Model(), torch.randint(7, (T, B))
    penalties = [FraternalLoss(0.1, share=share)(model, x(), target=target).penalty for share in ((), ("weight",))]
    assert penalties[0] > 0 and penalties[1] == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_state(copied: Any) -> None:
    module = BayesByBackprop(layer(), std=0.1, prior=0.5)
    assert {*module.state_dict()} == {"rho.weight_hh_l0", *(f"layer.{name}" for name in layer().state_dict())}
    assert torch.equal(copied(module)(x(), weights_rng=RNG)[0], module(x(), weights_rng=RNG)[0])
    other = BayesByBackprop(layer(), std=0.9, prior=0.5)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x(), weights_rng=RNG)[0], module(x(), weights_rng=RNG)[0])
    torch.testing.assert_close(std(module, "weight_hh_l0"), torch.full((4 * H, H), 0.1, dtype=torch.float64))
    assert repr(module).startswith("BayesByBackprop(\n  prior=0.5\n")


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda: BayesByBackprop(nn.ReLU()), TypeError, "layer should be an LSTM, .* or nn.Linear, got ReLU"),
    (lambda: BayesByBackprop(layer(), inputs=1), TypeError, "inputs should be of type bool, got: int"),
    (lambda: BayesByBackprop(layer(), biases=1), TypeError, "biases should be of type bool, got: int"),
    (lambda: BayesByBackprop(layer(bias=False), biases=True), ValueError, "biases should be False for LSTM without"),
    (lambda: BayesByBackprop(nn.Linear(2, 3), inputs=True), ValueError, "inputs should be False for Linear"),
    (lambda: BayesByBackprop(embedding(sparse=True)), ValueError, "nn.Embedding without max_norm and sparse"),
    (lambda: BayesByBackprop(embedding(max_norm=1.0)), ValueError, "nn.Embedding without max_norm and sparse"),
    (lambda: BayesByBackprop(embedding(), biases=True), ValueError, "biases should be False for Embedding without any"),
    (lambda: BayesByBackprop(layer())._replicate_for_data_parallel()(x()), RuntimeError, "use DistributedData"),
    (lambda: BayesByBackprop(layer(), mc=1), TypeError, "mc should be of type bool, got: int"),
    (lambda: BayesByBackprop(layer(), std=0), ValueError, "std should be a number above 0, got 0"),
    (lambda: BayesByBackprop(layer(), std="a"), ValueError, "std should be a number above 0, got 'a'"),
    (lambda: BayesByBackprop(layer(), prior=0.0), ValueError, "prior should be a number above 0, or pi .* got 0.0"),
    (lambda: BayesByBackprop(layer(), prior=(2, 1, 1)), ValueError, r"prior should be .* got \(2, 1, 1\)"),
    (lambda: BayesByBackprop(layer(), prior=(0.5, 1)), ValueError, "prior should be"),
    (lambda: BayesByBackprop(layer(), prior=None), ValueError, "prior should be .* got None"),
    (lambda: BayesByBackprop(layer())(x(), weights_rng=torch.zeros(2)), ValueError, "rng should be an int64 tensor"),
    (lambda: BayesByBackprop(layer())(x(), weights_rng={"weight": RNG}), TypeError, "rng of a BayesByBackprop should"),
])  # fmt: skip
def test_bad_arguments(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
