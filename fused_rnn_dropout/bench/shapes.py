"""The shapes that are measured, those of a user's own, and the cells."""

from __future__ import annotations

from typing import NamedTuple

from fused_rnn_dropout.cells import CELLS, Cell


def cell_of(cell: str) -> Cell:
    """Of the table of cells, by its name, or that of a class: with its default nonlinearity, where it has several."""
    return CELLS[cell] if cell in CELLS else next(row for row in CELLS.values() if row.module == cell)


class Shape(NamedTuple):
    """A batch of sequences and a layer, or some layers.

    ``kind`` is what the criteria speak of: large, small, other or packed.
    """

    name: str
    steps: int
    batch: int
    inputs: int
    units: int
    kind: str
    meaning: str
    layers: int = 1
    directions: int = 1

    @property
    def rows(self) -> int:
        """Steps of all sequences."""
        return self.steps * self.batch

    @property
    def sizes(self) -> str:
        sizes = f"{self.steps}, {self.batch}, {self.inputs}, {self.units}"
        return f"{sizes}{f', {self.layers} layers' * (self.layers > 1)}{', both directions' * (self.directions > 1)}"

    @property
    def width(self) -> int:
        """Of the output."""
        return self.units * self.directions

    def lengths(self) -> list[int] | None:
        """Of a packed batch: spread evenly over 1 .. T, longest first. None for a padded one."""
        if self.kind != "packed":
            return None
        return [max(1, round(self.steps * (self.batch - b) / self.batch)) for b in range(self.batch)]

    def useful(self) -> float:
        """The fraction of a padded batch that its sequences fill."""
        lengths = self.lengths()
        return 1.0 if lengths is None else sum(lengths) / self.rows

    def flops(self, cell: str, task: str) -> float:
        """Floating-point operations of the matrix products of all layers; backward has twice those of forward."""
        columns = self.inputs + self.units + (self.layers - 1) * (self.width + self.units)
        forward = 2.0 * self.rows * self.useful() * columns * cell_of(cell).gates * self.units * self.directions
        return 3 * forward if task == "train" else forward


SHAPES = (
    Shape("awd", 70, 20, 400, 1150, "large", "first layer of AWD-LSTM"),
    Shape("awd-wide", 70, 80, 1150, 1150, "large", "its middle layer, batch 80"),
    Shape("zaremba", 35, 20, 650, 650, "large", "the medium model of Zaremba et al. 2014"),
    Shape("medium", 100, 32, 256, 256, "large", ""),
    Shape("wide", 200, 64, 512, 512, "large", ""),
    Shape("pixels", 784, 32, 1, 128, "small", "sequential MNIST"),
    Shape("small", 100, 8, 128, 128, "small", ""),
    Shape("latency", 100, 1, 256, 256, "small", "one sequence"),
    Shape("hydrology", 365, 256, 32, 256, "other", "a year of daily forcings"),
    Shape("packed", 200, 64, 512, 512, "packed", "lengths spread over 1 .. 200"),
)
QUICK = (
    Shape("quick", 12, 4, 24, 32, "small", "only to try the bench out"),
    Shape("quick-packed", 12, 4, 24, 32, "packed", "only to try the bench out"),
)
BY_NAME = {shape.name: shape for shape in (*SHAPES, *QUICK)}
