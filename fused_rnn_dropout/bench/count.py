"""What a layer's schedules on a GPU do, counted from their sources: products, launches, bytes, FLOPs.

One layer in one direction with every site of :data:`contenders.RATES`, forward and backward, everything kept for
backward. H units, I inputs, G gates; a value takes ``e`` bytes, a number of the state ``STATE``. Counted are the
library's kernels and the matrix products. torch's own small ones (zeros for h_0, casts, the draw of ``rng``) are a few
a call, whatever T is.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from fused_rnn_dropout.cells import Cell

from .shapes import Shape, cell_of

STATE = 4
"""Bytes of a number of the running state, which is float32 for float32, bfloat16 and float16."""

MOST_PACKED_STEPS = 64
"""Steps of a packed batch that one launch over all steps takes (``csrc/cuda/rows.h``)."""

COLUMN_SUM_ROWS = 256
"""Rows beyond which a sum over rows takes a second launch (``csrc/cuda/column_sums.cu``)."""

TILE_ROWS = 16
"""Rows of the batch that one program of Triton's whole-sequence kernels owns."""


class Work(NamedTuple):
    """``times`` equal launches: each one's FLOPs, the bytes it asks for, and those of them that caches cannot hold.

    ``far``: bytes of tensors as long as the sequence, and of a recurrent weight (``weight``) on its own, since that is
    read again at each step. ``programs``: how many multiprocessors share the work, None where all do.
    """

    name: str
    product: bool
    times: int
    flops: float
    moved: float
    far: float
    weight: float = 0
    programs: int | None = None


class Layer(NamedTuple):
    """A cell on a shape, with values of ``e`` bytes. Its output carries a mask, so that h is stored beside it."""

    cell: str
    shape: Shape
    e: int

    @property
    def row(self) -> Cell:
        return cell_of(self.cell)

    @property
    def gates(self) -> int:
        return self.row.gates

    @property
    def wide(self) -> int:
        """Values of a unit and a step that are kept, and gradients that are sent on: of gates, and of what is apart."""
        return self.row.gates + self.row.apart

    @property
    def before(self) -> int:
        """Bytes of the memory before a step that its backward reads."""
        return 0 if not self.row.carries else STATE if self.row.has_c else self.e

    @property
    def rows(self) -> int:
        lengths = self.shape.lengths()
        return self.shape.rows if lengths is None else sum(lengths)

    def sizes(self) -> list[int]:
        """Rows of each step."""
        lengths = self.shape.lengths()
        if lengths is None:
            return [self.shape.batch] * self.shape.steps
        return [sum(length > t for length in lengths) for t in range(max(lengths))]

    @property
    def pieces(self) -> int:
        """Launches of a kernel that goes over all steps."""
        return 1 if self.shape.lengths() is None else -(-len(self.sizes()) // MOST_PACKED_STEPS)

    @property
    def runs(self) -> int:
        """Launches of a kernel of Triton's that goes over all steps: one for each number of rows."""
        return len(set(self.sizes()))

    @property
    def chunks(self) -> int:
        """Parts in which Triton's schedules compute W x, in float32: steps of no more than 64 MiB, at least one."""
        most, found, rows = max(1, 2**26 // (self.gates * self.shape.units * STATE)), 0, 0
        for size in self.sizes():
            if not found or rows + size > most:
                found, rows = found + 1, 0
            rows += size
        return found

    @property
    def recurrent_weight(self) -> int:
        """Bytes of U."""
        return self.gates * self.shape.units**2 * self.e

    @property
    def kept(self) -> int:
        """Bytes kept for backward beside the input and h."""
        return self.rows * self.shape.units * self.wide * self.e + self.kept_states

    @property
    def kept_states(self) -> int:
        """The same with ``recompute=True``."""
        return self.rows * self.shape.units * (STATE if self.row.has_c else 0)


def _product(layer: Layer, name: str, m: int, k: int, n: int, times: int = 1, out: int | None = None) -> Work:
    """(m, k) times (k, n) over all rows: every operand is read once, the result written once."""
    moved = layer.e * (m * k + k * n) + (layer.e if out is None else out) * m * n
    return Work(name, True, times, 2.0 * m * k * n, moved, moved)


def _kernel(name: str, elements: float, moved: float, far: float, times: int = 1) -> Work:
    return Work(name, False, times, 0, elements * moved, elements * far)


def _steps(layer: Layer, sizes: list[int], name: str, reads: int, writes: int, e_out: int) -> list[Work]:
    """A step's product with U or its transpose, which reads ``reads`` numbers of a row and writes ``writes``."""
    return [
        Work(name, True, times, 2.0 * b * layer.gates * layer.shape.units**2,
             layer.recurrent_weight + b * (reads * layer.e + writes * e_out), 0, layer.recurrent_weight)
        for b, times in Counter(sizes).items() if b
    ]  # fmt: skip


def _pointwise(sizes: list[int], units: int, name: str, moved: float, far: float, of_unit: float = 0) -> list[Work]:
    """A step's kernel: bytes of an element of (rows, H), and of a unit whatever the rows are."""
    return [
        Work(name, False, times, 0, b * units * moved + units * of_unit, b * units * far)
        for b, times in Counter(sizes).items()
    ]


def _drop_rows(layer: Layer, width: int, pieces: int) -> list[Work]:
    """Dropout of rows as a pass of its own."""
    return [_kernel("drop_rows", layer.rows / pieces * width, 2 * layer.e, 2 * layer.e, pieces)]


def _input_site(layer: Layer, pieces: int) -> list[Work]:
    """Of the input; in backward of its gradient, and of the input once more for the gradient of W: a layer that masks
    what it reads keeps no copy.
    """
    return _drop_rows(layer, layer.shape.inputs, pieces)


def _sites_around(layer: Layer, pieces: int) -> list[Work]:
    """Of the input and of the output, forward or backward, where no step of ours writes the output."""
    return [*_input_site(layer, pieces), *_drop_rows(layer, layer.shape.units, pieces)]


def _once(layer: Layer) -> list[Work]:
    """Keys and rates, masks of a sequence, the masked U: in forward, and again in backward."""
    shape, e = layer.shape, layer.e
    return [
        Work("prepare", False, 1, 0, 0, 0),
        _kernel("sequence_masks", shape.batch * shape.units, 1, 0),
        _kernel("written_masks", shape.batch * -(-shape.units // 8), 1, 0),
        _kernel("masked_weight", layer.gates * shape.units**2, 2 * e, e),
    ]


def _gradients(layer: Layer, out: int | None = None) -> list[Work]:
    """The products of all steps after the last one."""
    N, I, H, G = layer.rows, layer.shape.inputs, layer.shape.units, layer.gates
    if not layer.row.apart or out is not None:
        of_input = [_product(layer, "dW", G * H, N, I, out=out)]
    else:  # the rows of the last gate by themselves
        of_input = [_product(layer, "dW", rows * H, N, I) for rows in (G - 1, 1)]
    return [_product(layer, "dx", N, G * H, I), *of_input, _product(layer, "dU", G * H, N, H, out=out)]


def alternating(layer: Layer) -> tuple[list[Work], list[Work]]:
    """``csrc/cuda/schedules/alternating.cpp``: forward and backward."""
    shape, e, s = layer.shape, layer.e, STATE
    N, B, I, H, G, sizes = layer.rows, shape.batch, shape.inputs, shape.units, layer.gates, layer.sizes()
    row, kept, before, masks = layer.row, layer.wide * e, layer.before, 1 + 1 / 8
    # W x, U h, each state twice, a byte of masks and a bit, the operand, out, h, what is kept of the gates.
    forward = 2 * G * e + 2 * s * row.states + masks + 3 * e + kept
    # Gradients at out and through U, each state's twice, what was kept, masks, gradients of the gates.
    backward = 2 * e + 2 * s * row.states + kept + before + masks + kept
    far = (G * e + kept + s * row.has_c + 2 * e, e + kept + before + kept)
    first = [
        *_input_site(layer, layer.pieces),
        *_once(layer),
        _kernel("sum_biases", G * H, 3 * s, 0),
        _product(layer, "W x", N, I, G * H),
        _kernel("first_operand", B * H, s + 1 + e, 0),
        *_steps(layer, sizes, "U h", H, G * H, e),
        *_pointwise(sizes, H, "step", forward, far[0], (G + row.apart) * s),
    ]
    sums = 2 if N > COLUMN_SUM_ROWS else 1  # the second pass sums what the blocks of the first one leave
    columns = ((G - 1) * H, H, G * H) if row.apart else (G * H,)
    last = [
        *2 * _input_site(layer, layer.pieces),
        *_once(layer),
        *([_kernel("masked_weight", G * H * I, 2 * e, e)] * row.apart),  # W with its rows in another order
        _kernel("operand", N * H / layer.pieces, 2 * e + 1, 2 * e, layer.pieces),
        *_steps(layer, sizes, "through U", G * H, H, e),
        *_pointwise(sizes, H, "step", backward, far[1]),
        _kernel("leave", B * H, 2 * s + e + 1, 0),
        *([_kernel("leave", B * H, 2 * s + 1, 0)] * row.has_c),  # of c, which no product read
        *_gradients(layer),
        _kernel("masked_weight", G * H * H, 2 * e, e),
        *[_kernel("column_sums", N * width, e, e) for width in columns],
        *[_kernel("column_sums", width, s, 0) for width in columns if sums == 2],
    ]
    return first, last


def cudnn(layer: Layer) -> tuple[list[Work], list[Work]]:
    """What cuDNN with masked weights cannot do without; how many launches cuDNN takes for it is its own affair.

    Ours: one launch for each of four weights and one before them, in either direction. cuDNN's: the products, U once if
    it stays on chip, and to read and write each tensor that is as long as the sequence once.
    """
    shape, e = layer.shape, layer.e
    N, I, H, G = layer.rows, shape.inputs, shape.units, layer.gates
    weights = [
        Work("prepare", False, 1, 0, 0, 0),
        *[_kernel("masked_weight", n, 2 * e, e) for n in (G * H * I, G * H * H, G * H, G * H)],
    ]
    recurrence = 2.0 * N * G * H * H
    kept = N * H * (G + 1) * e
    first = [
        *_sites_around(layer, layer.pieces), *weights, _product(layer, "W x", N, I, G * H),
        Work("cuDNN's steps", True, 1, recurrence, kept + N * G * H * e, kept + N * G * H * e, layer.recurrent_weight),
    ]  # fmt: skip
    last = [
        *_sites_around(layer, layer.pieces), *weights,
        Work("cuDNN's steps", True, 1, recurrence, kept + N * G * H * e, kept + N * G * H * e, layer.recurrent_weight),
        *_gradients(layer, out=e),
    ]  # fmt: skip
    return first, last


def _triton_once(layer: Layer) -> list[Work]:
    e, H = layer.e, layer.shape.units
    return [Work("prepare", False, 1, 0, 0, 0), _kernel("mask_weight", layer.gates * H * H, 2 * e, e)]


def _input_products(layer: Layer) -> list[Work]:
    rows = layer.rows / layer.chunks
    flops, gates = 2.0 * rows * layer.shape.inputs * layer.gates * layer.shape.units, layer.gates * layer.shape.units
    moved = layer.e * layer.shape.inputs * (rows + gates) + STATE * rows * gates
    return [Work("W x", True, layer.chunks, flops, moved, moved)]


def _triton(layer: Layer, steps: tuple[list[Work], list[Work]]) -> tuple[list[Work], list[Work]]:
    """What both schedules of Triton's share, around their steps."""
    e, s, H = layer.e, STATE, layer.shape.units
    state, has_c = layer.shape.batch * H, layer.row.has_c
    around = [*_input_site(layer, layer.runs), *_triton_once(layer)]
    # Of c neither is what a product reads written, nor the gradient of that read.
    enters = [*([_kernel("enter", state, 2 * s, 0)] * has_c), _kernel("enter", state, 2 * s + e, 0)]
    leaves = [_kernel("leave", state, 3 * s, 0), *([_kernel("leave", state, 2 * s, 0)] * has_c)]
    first = [*around, *enters, *_input_products(layer), *steps[0]]
    last = [
        *around,
        *_input_site(layer, layer.runs),
        _kernel("operands", layer.rows * H / layer.runs, 2 * e, 2 * e, layer.runs),
        *steps[1],
        *leaves,
        *_gradients(layer, out=s),
        _kernel("mask_weight", layer.gates * H * H, s + e, s + e),
    ]
    return first, last


def triton_alternating(layer: Layer) -> tuple[list[Work], list[Work]]:
    """Triton's step kernels between torch's products, which write sums of the state's type."""
    e, s, H, G, sizes = layer.e, STATE, layer.shape.units, layer.gates, layer.sizes()
    row, kept, before = layer.row, layer.wide * e, layer.before
    forward = 2 * G * s + 2 * s * row.states + 3 * e + kept + s * row.has_c
    backward = s + e + 2 * s * row.states + kept + before + kept
    far = (G * s + kept + s * row.has_c + 2 * e, e + kept + before + kept)
    first = [
        *_steps(layer, sizes, "U h", H, G * H, s),
        *_pointwise(sizes, H, "step", forward, far[0], (G + row.apart) * s),
    ]
    last = [*_steps(layer, sizes, "through U", G * H, H, s), *_pointwise(sizes, H, "step", backward, far[1])]
    return _triton(layer, (first, last))


def triton_sequence(layer: Layer) -> tuple[list[Work], list[Work]]:
    """Triton's whole-sequence kernels: a program does all steps of 16 rows, and reads all of U at each of them."""
    e, s, H, G = layer.e, STATE, layer.shape.units, layer.gates
    programs, steps = -(-layer.shape.batch // TILE_ROWS), len(layer.sizes())
    row, kept, before = layer.row, layer.wide * e, layer.before
    forward = G * s + 2 * s * row.states + 3 * e + kept + s * row.has_c
    backward = e + 2 * s * row.states + kept + before + kept
    far = (G * s + kept + s * row.has_c + 2 * e, e + kept + before + kept)

    def whole(name: str, moved: float, far: float, times: int) -> Work:
        flops = 2.0 * programs * TILE_ROWS * steps * G * H * H / times
        elements, weight = layer.rows * H / times, programs * steps * layer.recurrent_weight / times
        return Work(
            name, False, times, flops, elements * moved + weight, elements * far, layer.recurrent_weight, programs
        )

    last_product = Work("through U", True, 1, 2.0 * layer.shape.batch * G * H * H, layer.recurrent_weight, 0)
    return _triton(
        layer,
        (
            [whole("all steps", forward, far[0], layer.chunks)],
            [whole("all steps", backward, far[1], 1), last_product],
        ),
    )


SCHEDULES = {
    "alternating": alternating,
    "cuDNN": cudnn,
    "Triton, alternating": triton_alternating,
    "Triton, sequence": triton_sequence,
}


def launches(works: list[Work], product: bool) -> int:
    return sum(work.times for work in works if work.product == product)
