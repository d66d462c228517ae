"""A LightningModule around a layer with sites, its rates on a schedule.

    pip install lightning
    python -m examples.lightning_module

Nothing of the layer is in Lightning's way: it is a module with parameters, checkpoints hold torch.nn's names, and
masks follow ``seed_everything``. ``CurriculumSchedule`` (Morerio et al. 2017) raises the rates with the trainer's
updates; its callback keeps its place in checkpoints.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fused_rnn_dropout as frd
from fused_rnn_dropout import training

if importlib.util.find_spec("lightning") is not None:
    import lightning.pytorch as pl
else:
    import pytorch_lightning as pl


def sums(count: int, steps: int = 20) -> TensorDataset:
    """Sequences (steps, 2), and the sum of their numbers that are marked (Hochreiter & Schmidhuber 1997)."""
    numbers = torch.rand(count, steps)
    marks = torch.zeros(count, steps).scatter_(1, torch.rand(count, steps).topk(2).indices, 1.0)
    return TensorDataset(torch.stack((numbers, marks), dim=-1), (numbers * marks).sum(1))


class Adder(pl.LightningModule):
    """Reads a sequence and answers with one number."""

    def __init__(self, units: int = 64, rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = frd.LSTM(2, units, batch_first=True, hidden_dropout=0.05, zoneout_c=0.05, zoneout_h=0.05)
        self.head = nn.Linear(units, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])[:, 0]

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        self.log("zoneout_c", self.rnn.zoneout_c)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("valid_loss", nn.functional.mse_loss(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams.rate)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the trainer's metrics at the end."""
    parser = argparse.ArgumentParser(prog="python -m examples.lightning_module", description="Trains with Lightning.")
    for name, default in (("epochs", 30), ("sequences", 4000), ("units", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    pl.seed_everything(0, verbose=False)
    model = Adder(options.units)
    schedule = training.CurriculumSchedule(model, steps=options.epochs * options.sequences // 64 // 2)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="auto",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[schedule.lightning_callback()],
    )
    trainer.fit(
        model,
        DataLoader(sums(options.sequences), batch_size=64, shuffle=True),
        DataLoader(sums(1000), batch_size=250),
    )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"mean squared error on new sequences {metrics['valid_loss']:.4f}; answering 1 always has {1 / 6:.4f}")
    return metrics


if __name__ == "__main__":
    main()
