"""Speech-like: frames of unequal numbers to symbols, by a bidirectional LSTM with projections and CTC.

    python -m examples.speech

The frames are made up: each symbol is a direction in feature space, held for some frames, and buried in noise. The
model is that of many recognisers: two layers, both directions, h projected to fewer units (Sak et al. 2014), packed
batches, and the sites that such models take: recurrent dropout without memory loss, and masks per sequence between the
layers, which one ``LSTM`` computes in both directions in one call.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, pad_sequence

import fused_rnn_dropout as frd

SYMBOLS, FEATURES, BLANK = 12, 20, 0


class Utterances(NamedTuple):
    """Frames, packed; symbols (B, longest), padded behind ``lengths`` (B,)."""

    frames: PackedSequence
    symbols: Tensor
    lengths: Tensor


def utterances(count: int, directions: Tensor, noise: float = 0.6) -> Utterances:
    """``count`` utterances of 3 to 8 symbols, each held for 3 to 6 frames."""
    frames, symbols = [], []
    for _ in range(count):
        spoken = torch.randint(1, SYMBOLS + 1, (int(torch.randint(3, 9, ())),))
        held = spoken.repeat_interleave(torch.randint(3, 7, spoken.shape))
        frames.append(directions[held] + noise * torch.randn(len(held), FEATURES))
        symbols.append(spoken)
    lengths = torch.tensor([len(one) for one in symbols])
    return Utterances(pack_sequence(frames, enforce_sorted=False), pad_sequence(symbols, batch_first=True), lengths)


class Recogniser(nn.Module):
    """From packed frames to log probabilities (T, B, SYMBOLS + 1), and their lengths (B,)."""

    def __init__(self, units: int, projected: int) -> None:
        super().__init__()
        self.rnn = frd.LSTM(
            FEATURES,
            units,
            num_layers=2,
            bidirectional=True,
            proj_size=projected,
            input_dropout=0.1,
            inter_layer_dropout=0.2,
            update_dropout=0.2,
            weight_dropout=frd.WeightDropout(0.1, projection=True),
        )
        self.head = nn.Linear(2 * projected, SYMBOLS + 1)

    def forward(self, frames: PackedSequence) -> tuple[Tensor, Tensor]:
        out, lengths = pad_packed_sequence(self.rnn(frames)[0])
        return self.head(out).log_softmax(-1), lengths


def collapse(path: Sequence[int]) -> list[int]:
    """The symbols of a path: repeats and blanks taken away."""
    return [now for before, now in zip([BLANK, *path], path, strict=False) if now not in (before, BLANK)]


def distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Symbols to insert, delete or replace (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, symbol in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (symbol != other))
    return row[-1]


@torch.no_grad()
def error_rate(model: Recogniser, spoken: Utterances) -> float:
    """Edits over symbols, decoded greedily, masks off."""
    best, lengths = model.eval()(spoken.frames)
    edits = sum(
        distance(collapse(path[:n].tolist()), wanted[:m].tolist())
        for path, n, wanted, m in zip(best.argmax(-1).t(), lengths, spoken.symbols, spoken.lengths, strict=True)
    )
    return edits / int(spoken.lengths.sum())


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Returns the error rate on new utterances before and after training."""
    parser = argparse.ArgumentParser(prog="python -m examples.speech", description="Trains a small recogniser.")
    for name, default in (("updates", 250), ("batch", 32), ("units", 96), ("projected", 48)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    directions = nn.functional.normalize(torch.randn(SYMBOLS + 1, FEATURES)) * 2
    test = utterances(200, directions)
    model = Recogniser(options.units, options.projected)
    ctc = nn.CTCLoss(BLANK, zero_infinity=True)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    before = error_rate(model, test)
    for update in range(options.updates):
        spoken = utterances(options.batch, directions)
        log_probabilities, lengths = model.train()(spoken.frames)
        loss = ctc(log_probabilities, spoken.symbols, lengths, spoken.lengths)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (update + 1) % max(1, options.updates // 5) == 0:
            print(f"update {update + 1}: loss {float(loss.detach()):.3f}", flush=True)
    after = error_rate(model, test)
    print(f"errors on new utterances: {100 * before:.0f} % before training, {100 * after:.1f} % after")
    return before, after


if __name__ == "__main__":
    main()
