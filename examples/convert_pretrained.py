"""Converting a pretrained model: dropout inside its recurrence for fine-tuning, torch.nn again for whoever serves it.

    python -m examples.convert_pretrained

A tagger with ``nn.LSTM`` is trained on plenty of data. ``frd.convert`` then swaps its layer in place, and it is tuned
on twenty sequences of a related task, on which the same model without sites overfits. The optimizer, which holds the
parameters, is made before the conversion: they stay the same objects. ``frd.revert`` takes the sites back.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd

WORDS, TAGS = 30, 4
SITES: dict[str, Any] = {"input_dropout": 0.1, "hidden_dropout": 0.2, "weight_dropout": 0.4, "output_dropout": 0.3}


class Tagger(nn.Module):
    """From words (T, B) to logits (T, B, TAGS). It knows nothing of this package."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.rnn = nn.LSTM(16, units)
        self.head = nn.Linear(units, TAGS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(words))[0])


def sentences(count: int, back: int) -> tuple[Tensor, Tensor]:
    """Words (12, count), and their tags: that of a word depends on it and on the one ``back`` steps before."""
    words = torch.randint(WORDS, (12, count))
    before = torch.cat((torch.zeros(back, count, dtype=torch.int64), words[:-back]))
    return words, (words + before) % TAGS


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int, batch: int, data: Any) -> None:
    model.train()
    for _ in range(updates):
        words, tags = sentences(batch, back=1) if data is None else data
        loss = nn.functional.cross_entropy(model(words).flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    model.eval()
    return float(nn.functional.cross_entropy(model(data[0]).flatten(0, 1), data[1].flatten()))


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Returns the losses on new sequences of the related task, tuned without sites and with them."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.convert_pretrained", description="Tunes a converted model."
    )
    for name, default in (("updates", 300), ("tuning", 200), ("units", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    pretrained = Tagger(options.units)
    train(pretrained, torch.optim.Adam(pretrained.parameters(), 5e-3), options.updates, 64, None)
    new, test = sentences(20, back=2), sentences(500, back=2)

    plain, model = copy.deepcopy(pretrained), copy.deepcopy(pretrained)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    expected = model.eval()(test[0])
    frd.convert(model, **SITES)  # the same Parameters in frd.LSTM
    print(model.rnn)
    torch.testing.assert_close(model.eval()(test[0]), expected)  # in eval the same results
    train(model, optimizer, options.tuning, 20, new)
    train(plain, torch.optim.Adam(plain.parameters(), 3e-3), options.tuning, 20, new)

    losses = loss_of(plain, test), loss_of(model, test)
    print(f"loss on new sequences, tuned on {new[0].size(1)}: {losses[0]:.3f} without sites, {losses[1]:.3f} with them")
    print(f"on the {new[0].size(1)} themselves: {loss_of(plain, new):.3f} and {loss_of(model, new):.3f}")

    served = Tagger(options.units).eval()  # torch alone
    served.load_state_dict(model.state_dict())
    torch.testing.assert_close(served(test[0]), model.eval()(test[0]))
    assert type(frd.revert(model).rnn) is nn.LSTM  # or in place
    return losses


if __name__ == "__main__":
    main()
