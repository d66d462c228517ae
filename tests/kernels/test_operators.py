"""The operators by themselves: schemas, fakes, gradients, and bad arguments, which raise and never crash."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops
from fused_rnn_dropout.sites import FLAG, KIND, SITE_INDEX, SITES, stream

OPS = torch.ops.fused_rnn_dropout
NAMES = (
    "draw", "words", "dropout", "lstm", "lstm_forward", "lstm_backward", "gru", "gru_forward", "gru_backward"
)  # fmt: skip
CELLS = ("lstm", "gru")
T, B, I, H, P = 4, 3, 5, 7, 4
RNG = torch.tensor([5, -6])
SIZES = torch.tensor([3, 2, 1])
ACTING = ("HIDDEN", "WEIGHT_HH", "WEIGHT_IH", "WEIGHT_HR", "UPDATE", "CELL", "ZONEOUT_C", "ZONEOUT_H", "MASKS_ON")
KEEP_NOTHING, KEEP_ALL, KEEP_STATES = 0, 1, 2
EVERYTHING = 31


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sizes are tiny: on a busy machine a second thread is mostly waited for."""
    torch.set_num_threads(1)


def flags(*names: str) -> int:
    return sum(FLAG[name] for name in names)


ALL_SITES = flags(*ACTING)
NO_SITES = 0


# --------------------------------------------------------------------------------------------------------------------
# Arguments, by name and in the order of the schemas
# --------------------------------------------------------------------------------------------------------------------


def layer_arguments(
    cell: str,
    *,
    packed: bool = False,
    projected: bool = False,
    bias: bool = True,
    masks: int = ALL_SITES,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    reverse: bool = False,
    grad: bool = False,
    batch: int = B,
) -> dict[str, Any]:
    """Arguments of ``lstm`` or ``gru``; tensors in ``dtype``, of which the results are too."""
    gates, units = (4, H) if cell == "lstm" else (3, H)
    width = P if projected else units

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).mul(0.5).to(dtype).requires_grad_(grad)

    args: dict[str, Any] = {"x": some(int(SIZES.sum()), I) if packed else some(T, batch, I), "h0": some(batch, width)}
    if cell == "lstm":
        args["c0"] = some(batch, units)
    args |= {"w_ih": some(gates * units, I), "w_hh": some(gates * units, width)}
    args |= {name: some(gates * units) if bias else None for name in ("b_ih", "b_hh")}
    if cell == "lstm":
        args["w_hr"] = some(width, units) if projected else None
    return args | {
        "batch_sizes": SIZES if packed else None,
        "example_ids": torch.tensor([8, 0, 2**32 - 2]) if batch == B else None,
        "rng_state": RNG if masks else None,
        "rng_hidden": RNG + 1 if masks else None,
        "rng_weight": RNG + 2 if masks else None,
        "thresholds": torch.full((len(SITES),), 2**30) if masks else None,
        "dtype": dtype,
        "flags": masks,
        "layer": 2,
        "reverse": reverse,
        "step_offset": 11,
        "recompute": recompute,
    }


def forward_arguments(cell: str, save: int = KEEP_ALL, **options: Any) -> dict[str, Any]:
    """Arguments of ``lstm_forward`` or ``gru_forward``."""
    args = layer_arguments(cell, **options)
    del args["recompute"]
    return args | {"save": save}


def backward_arguments(
    cell: str, save: int = KEEP_ALL, needs: int = EVERYTHING, given: str = "all", **options: Any
) -> dict[str, Any]:
    """Arguments of ``lstm_backward`` or ``gru_backward``, with what the forward really kept."""
    args = forward_arguments(cell, save, **options)
    results = getattr(OPS, f"{cell}_forward")(*args.values())
    outputs = 3 if cell == "lstm" else 2
    states_name = ("grad_out", "grad_h_n", "grad_c_n")[:outputs]
    wanted = {"all": states_name, "out": ("grad_out",), "last": states_name[1:]}[given]
    grads = {
        name: torch.randn_like(result) if name in wanted else None
        for name, result in zip(states_name, results[:outputs], strict=True)
    }
    states = results[-1] if results[-1].numel() else results[0]
    saved = dict(zip(("gates", "cells" if cell == "lstm" else "resets"), results[outputs:-1], strict=True))
    del args["save"]
    where = list(args).index("dtype")
    items = list(args.items())
    return grads | dict(items[:where]) | saved | {"states": states} | dict(items[where:]) | {"needs": needs}


def dropout_arguments(
    packed: bool = False, dtype: torch.dtype = torch.float32, grad: bool = False, **changes: Any
) -> dict[str, Any]:
    return {
        "x": torch.randn(int(SIZES.sum()) if packed else T, *([] if packed else [B]), I).to(dtype).requires_grad_(grad),
        "rng": RNG,
        "thresholds": torch.full((len(SITES),), 2**31),
        "batch_sizes": SIZES if packed else None,
        "example_ids": torch.tensor([4, 2, 9]),
        "site": SITE_INDEX["input_dropout"],
        "stream": stream(KIND["INPUT"], 0),
        "per_step": True,
        "batch_shared": False,
        "step_offset": 3,
    } | changes


def words_arguments(**changes: Any) -> dict[str, Any]:
    row, step = torch.tensor([0, 7]), torch.tensor([1, 2, 2**32 - 1])
    return {"rng": RNG, "row": row, "step": step, "n": 11, "stream": stream(KIND["UPDATE"], 1, 1)} | changes


def arguments(name: str, **options: Any) -> dict[str, Any]:
    """Arguments of any operator but ``draw``."""
    if name in ("words", "dropout"):
        return (words_arguments if name == "words" else dropout_arguments)(**options)
    cell, _, half = name.partition("_")
    make = {"": layer_arguments, "forward": forward_arguments, "backward": backward_arguments}[half]
    return make(cell, **options)


def run(name: str, args: dict[str, Any]) -> list[Tensor]:
    result = getattr(OPS, name)(*args.values())
    return [result] if isinstance(result, Tensor) else list(result)


# --------------------------------------------------------------------------------------------------------------------
# Schemas
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_says_what_the_arguments_are(name: str) -> None:
    schema = getattr(OPS, name).default._schema
    given = ["like"] if name == "draw" else list(arguments(name))
    assert [argument.name for argument in schema.arguments] == given
    assert not schema.is_mutable and not any(argument.kwarg_only for argument in schema.arguments)
    assert all(str(returned.type) == "Tensor" for returned in schema.returns)
    if name not in ("draw", "words"):
        assert "SymInt step_offset" in str(schema)  # an int would be a constant of a compiled graph


def test_only_draw_is_random() -> None:
    tagged = [name for name in NAMES if torch.Tag.nondeterministic_seeded in getattr(OPS, name).default.tags]
    assert tagged == ["draw"]


# --------------------------------------------------------------------------------------------------------------------
# opcheck
# --------------------------------------------------------------------------------------------------------------------

_LAYERS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packed": True},
    "reverse": {"reverse": True, "packed": True},
    "recompute": {"recompute": True},
    "no_bias": {"bias": False},
    "no_sites": {"masks": NO_SITES},
    "eval": {"masks": ALL_SITES - FLAG["MASKS_ON"]},
    "unzoned": {"masks": flags("ZONEOUT_H", "UNZONED", "MASKS_ON")},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "bfloat16_packed_recompute": {"dtype": torch.bfloat16, "packed": True, "recompute": True},
}


@pytest.mark.parametrize("case", _LAYERS)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_the_layers(cell: str, case: str) -> None:
    torch.library.opcheck(getattr(OPS, cell).default, tuple(layer_arguments(cell, grad=True, **_LAYERS[case]).values()))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_opcheck_of_a_projected_layer(packed: bool) -> None:
    args = layer_arguments("lstm", grad=True, projected=True, packed=packed)
    torch.library.opcheck(OPS.lstm.default, tuple(args.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_with_inputs_that_are_not_dense_and_of_several_dtypes(cell: str) -> None:
    args = layer_arguments(cell, dtype=torch.bfloat16)
    args["x"] = torch.randn(B, T, I).transpose(0, 1)  # fp32, results in bf16
    args["h0"] = torch.randn(1, H, dtype=torch.float64).expand(B, H)
    args["w_hh"] = torch.randn(H, args["w_hh"].size(0), dtype=torch.float16).t()
    for name in ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"):
        args[name] = args[name].detach().requires_grad_()
    # The fake's outputs are compared with the real ones; the gradients are compared elsewhere, leaf by leaf.
    torch.library.opcheck(getattr(OPS, cell).default, tuple(args.values()))


@pytest.mark.parametrize("save", [KEEP_NOTHING, KEEP_ALL, KEEP_STATES])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_the_halves(cell: str, packed: bool, save: int) -> None:
    args = forward_arguments(cell, save, packed=packed)
    torch.library.opcheck(getattr(OPS, f"{cell}_forward").default, tuple(args.values()))
    if save != KEEP_NOTHING:
        args = backward_arguments(cell, save, packed=packed, given="last" if packed else "all")
        torch.library.opcheck(getattr(OPS, f"{cell}_backward").default, tuple(args.values()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packed": True},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64, "batch_shared": True, "per_step": False},
    ],
    ids=["padded", "packed", "bfloat16", "shared"],
)
def test_opcheck_of_dropout(options: dict[str, Any]) -> None:
    args = tuple(dropout_arguments(grad=True, **options).values())
    torch.library.opcheck(OPS.dropout.default, args)
    assert OPS.dropout(*args).requires_grad  # an operator without any gradient would pass opcheck


@pytest.mark.parametrize("kind", ["UPDATE", "WEIGHT_HH"])
def test_opcheck_of_words(kind: str) -> None:
    torch.library.opcheck(OPS.words.default, tuple(words_arguments(stream=KIND[kind]).values()))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_draw(grad: bool) -> None:
    # The fourth test compares values of two calls, which for the one random operator differ.
    torch.library.opcheck(
        OPS.draw.default,
        (torch.randn(3, requires_grad=grad),),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


# --------------------------------------------------------------------------------------------------------------------
# Fakes
# --------------------------------------------------------------------------------------------------------------------


def described(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, stride, dtype and device, with the numbers that symbols stand for."""

    def plain(sizes: Any) -> tuple[int, ...]:
        return tuple(size if type(size) is int else size.node.hint for size in sizes)

    return plain(tensor.shape), plain(tensor.stride()), tensor.dtype, tensor.device


_FAKES: list[tuple[str, dict[str, Any]]] = [
    ("words", {}),
    ("words", {"stream": KIND["WEIGHT_HH_ROWS"], "n": 0}),
    *[("dropout", {"packed": packed, "dtype": torch.float16}) for packed in (False, True)],
    ("dropout", {"dtype": torch.float64}),
]  # fmt: skip
for _cell in CELLS:
    for _packed in (False, True):
        for _dtype in (torch.float32, torch.bfloat16, torch.float64):
            _some: dict[str, Any] = {"packed": _packed, "dtype": _dtype}
            _FAKES.append((_cell, _some))
            for _masks in (NO_SITES, flags("CELL", "MASKS_ON"), flags("ZONEOUT_H", "UNZONED")):
                _FAKES += [(f"{_cell}_forward", {**_some, "save": save, "masks": _masks}) for save in (0, 1, 2)]
            for _needs in (EVERYTHING, 0, 1, 2, 4, 8, 16):
                _FAKES.append((f"{_cell}_backward", {**_some, "needs": _needs, "bias": _needs != 0}))
_FAKES += [("lstm", {"projected": True}), ("lstm_forward", {"projected": True, "dtype": torch.bfloat16})]
_FAKES += [("lstm_backward", {"projected": True, "needs": needs}) for needs in (16, 15, 31)]
_FAKES += [(name, {"batch": 0}) for name in NAMES if name.startswith(CELLS)]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_fakes_have_the_shapes_strides_and_dtypes_of_the_results(dynamic: bool) -> None:
    for name, options in _FAKES:
        args = arguments(name, **options)
        if args.get("x") is not None and args["x"].dim() == 3:
            args["x"] = args["x"].transpose(0, 1).contiguous().transpose(0, 1)  # results are dense all the same
        real = run(name, args)
        # Only the sizes of a batch change: the sizes of a layer are its own.
        moving = ("x", "h0", "c0", "batch_sizes", "example_ids", "b", "c") if dynamic else ()
        shapes = ShapeEnv() if dynamic else None
        mode = FakeTensorMode(shape_env=shapes)
        faked = {
            key: mode.from_tensor(value, static_shapes=key not in moving) if isinstance(value, Tensor) else value
            for key, value in args.items()
        }
        with mode:
            fakes = run(name, faked)
        for index, (fake, result) in enumerate(zip(fakes, real, strict=True)):
            assert described(fake) == described(result), f"result {index} of {name} with {options}"


@pytest.mark.parametrize("name", ["lstm", "gru", "dropout"])
def test_fakes_decide_nothing_about_sizes(name: str) -> None:
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    args = arguments(name)
    for key in ("x", "h0", "c0"):
        if key in args:
            args[key] = mode.from_tensor(args[key], static_shapes=False)
    rest = {key: mode.from_tensor(value) if type(value) is Tensor else value for key, value in args.items()}
    with mode:
        out = run(name, rest)[0]
    assert all(isinstance(size, torch.SymInt) for size in out.shape)
    assert not shapes.guards


# --------------------------------------------------------------------------------------------------------------------
# draw
# --------------------------------------------------------------------------------------------------------------------


def test_draw_takes_two_whole_words_from_the_default_generator() -> None:
    like = torch.empty(0, requires_grad=True)
    torch.manual_seed(3)
    pairs = torch.stack([OPS.draw(like) for _ in range(100)])
    assert pairs.dtype == torch.int64 and pairs.shape == (100, 2) and not pairs.requires_grad
    torch.manual_seed(3)
    assert torch.equal(OPS.draw(torch.empty(9, 9)), pairs[0])
    for bit in range(64):  # each bit of each word takes both values: odds of 2 * 2^-100 against
        assert len((pairs >> bit & 1).unique(dim=0)) > 1, bit
    private = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(frd.draw_rng("cpu", private), pairs[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_is_on_the_device_of_its_argument() -> None:
    assert OPS.draw(torch.empty(3, device="meta")).device.type == "meta"
    with FakeTensorMode():
        assert described(OPS.draw(torch.empty(3))) == ((2,), (1,), torch.int64, torch.device("cpu"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "draw"])
def test_the_others_are_functions_of_their_arguments(name: str) -> None:
    args = arguments(name)
    kept = {key: value.clone() for key, value in args.items() if isinstance(value, Tensor)}
    state = torch.get_rng_state()
    first, second = run(name, args), run(name, args)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(args[key], value) for key, value in kept.items())


# --------------------------------------------------------------------------------------------------------------------
# Arguments as the dispatcher may hand them over
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_lazily_negated_and_zero_tensors(cell: str) -> None:
    args = layer_arguments(cell)
    lazy = torch.complex(args["x"], -args["x"]).conj().imag
    assert lazy.is_neg() and torch.equal(lazy.resolve_neg(), args["x"])
    expected = run(cell, args)
    for mine, their in zip(run(cell, args | {"x": lazy}), expected, strict=True):
        assert torch.equal(mine, their)
    assert torch.equal(OPS.dropout(lazy, *list(dropout_arguments().values())[1:]),
                       OPS.dropout(args["x"], *list(dropout_arguments().values())[1:]))  # fmt: skip
    nothing = run(cell, args | {"x": torch._efficientzerotensor((T, B, I))})
    for mine, their in zip(nothing, run(cell, args | {"x": torch.zeros(T, B, I)}), strict=True):
        assert torch.equal(mine, their)


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_backward", "gru_backward", "dropout", "words"])
def test_no_argument_is_read_as_if_it_were_dense(name: str) -> None:
    args = arguments(name, **({"projected": True} if name.startswith("lstm") else {}))
    expected = run(name, args)
    for key, value in args.items():
        if isinstance(value, Tensor):
            spread = value.repeat_interleave(2, dim=-1)[..., ::2]
            assert not spread.is_contiguous()
            results = run(name, args | {key: spread})
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), key


@pytest.mark.parametrize("sizes", [(4, 3, 0, 7), (4, 0, 5, 7), (4, 3, 5, 0), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_zero_and_one(cell: str, sizes: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, units = sizes
    gates = 4 if cell == "lstm" else 3
    args = layer_arguments(cell) | {"example_ids": None}
    shapes = {"x": (steps, batch, inputs), "w_ih": (gates * units, inputs), "w_hh": (gates * units, units)}
    shapes |= {"b_ih": (gates * units,), "b_hh": (gates * units,), "h0": (batch, units)}
    shapes |= {"c0": (batch, units)} if cell == "lstm" else {}
    args |= {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    results = run(cell, args)
    assert results[0].shape == (steps, batch, units) and all(r.shape == (batch, units) for r in results[1:])
    sum(r.sum() for r in results).backward()
    assert all(args[name].grad.isfinite().all() and args[name].grad.shape == shape for name, shape in shapes.items())


# --------------------------------------------------------------------------------------------------------------------
# Bad arguments. Each case runs in a process of its own, so that a crash is a failure and not the end of the tests.
# --------------------------------------------------------------------------------------------------------------------

_SERVER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import test_operators as cases
torch.set_num_threads(1)  # a forked process has no pool of threads
for line in sys.stdin:
    function, rest = json.loads(line)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        signal.alarm(120)  # ends what hangs
        said = os.fdopen(write, "w")
        try:
            answer = ["returned", "", getattr(cases, function)(said, *rest) or ""]
        except BaseException as error:
            answer = ["raised", type(error).__name__, str(error)]
        print(json.dumps(answer), file=said, flush=True)
        os._exit(0)
    os.close(write)
    lines = os.fdopen(read).read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        lines.append(json.dumps(["crashed", str(status), lines[-1] if lines else ""]))
    print(lines[-1], flush=True)
"""

Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Calls a function of this file in a forked process: ["returned" or "raised" or "crashed", what, message]."""
    here = Path(__file__).parent
    folders = [str(Path(frd.__file__).parents[1]), str(here.parent), os.environ.get("PYTHONPATH")]  # grids.py is above
    path = os.pathsep.join(filter(None, folders))
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER, str(here)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert server.stdin and server.stdout

    def call(function: str, *rest: Any) -> list[str]:
        print(json.dumps([function, rest]), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    yield call
    server.stdin.close()
    server.wait(timeout=60)


def emptied(tensor: Tensor) -> Tensor:
    """A tensor whose memory has been given back, as sharded training does between uses."""
    result = tensor.clone()
    result.untyped_storage().resize_(0)
    return result


@dataclasses.dataclass
class Bad:
    """One operator, options of its arguments, what is wrong with them, and what the error must name."""

    name: str
    changes: Callable[[dict[str, Any]], dict[str, Any]]
    message: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def _longer(key: str, dim: int = 0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One more along a dimension."""
    return lambda args: {key: torch.cat([args[key], args[key].narrow(dim, 0, 1)], dim)}


def _as(key: str, dtype: torch.dtype) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: {key: args[key].to(dtype)}


def _put(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: changes


def _wide_projection(args: dict[str, Any]) -> dict[str, Any]:
    """A projection to many more units than there are; masks of a unit are kept for as many as there are."""
    wide = 200_000
    return {"h0": torch.randn(B, wide), "w_hh": torch.randn(4 * H, wide), "w_hr": torch.randn(wide, H)}


BAD: dict[str, Bad] = {}
for _cell in CELLS:
    BAD |= {
        f"{_cell}-{case}": Bad(_cell, changes, message, options)
        for case, (changes, message, options) in {
            "x_1d": (_put(x=torch.randn(I)), "x", {}),
            "x_2d": (_put(x=torch.randn(T, I)), "x must be", {}),
            "x_4d": (_put(x=torch.randn(1, T, B, I)), "x must be", {}),
            "x_3d_packed": (_put(x=torch.randn(T, B, I)), "x must be", {"packed": True}),
            "x_wide": (_longer("x", 2), "w_ih has a shape", {}),
            "x_without_steps": (_put(x=torch.randn(0, B, I)), "sequence length", {}),
            "x_of_another_batch": (_longer("x", 1), "initial state is for a batch of 3, x has 4", {}),
            "h0_3d": (_put(h0=torch.randn(1, B, H)), "h0", {}),
            "h0_wide": (_longer("h0", 1), "h0|w_", {}),
            "h0_rows": (_longer("h0"), "h0|batch", {}),
            "w_ih_rows": (_longer("w_ih"), "w_ih has a shape", {}),
            "w_ih_1d": (_put(w_ih=torch.randn(I)), "w_ih has a shape", {}),
            "w_hh_columns": (_longer("w_hh", 1), "w_hh has a shape", {}),
            "b_ih_long": (_longer("b_ih"), "b_ih has a shape", {}),
            "b_hh_2d": (_put(b_hh=torch.randn(1, H)), "b_hh has a shape", {}),
            "one_bias": (_put(b_hh=None), "b_ih and b_hh must be given together", {}),
            "sizes_sum": (_put(batch_sizes=torch.tensor([3, 2, 2])), "batch_sizes sum to 7", {"packed": True}),
            "sizes_grow": (_put(batch_sizes=torch.tensor([2, 3, 1])), "must not grow", {"packed": True}),
            "sizes_zero": (_put(batch_sizes=torch.tensor([3, 3, 0])), "must be positive", {"packed": True}),
            "sizes_negative": (_put(batch_sizes=torch.tensor([8, -2])), "must be positive", {"packed": True}),
            "sizes_int32": (_as("batch_sizes", torch.int32), "batch_sizes must be an int64", {"packed": True}),
            "sizes_empty": (_put(batch_sizes=SIZES[:0], x=torch.randn(0, I)), "sequence length", {"packed": True}),
            "sizes_overflow": (_put(batch_sizes=torch.tensor([2**62] * 4)), "batch_sizes|batch of", {"packed": True}),
            "ids_negative": (_put(example_ids=torch.tensor([0, -1, 2])), "example_ids must be in", {}),
            "ids_large": (_put(example_ids=torch.tensor([0, 2**32 - 1, 2])), "example_ids must be in", {}),
            "ids_few": (_put(example_ids=torch.tensor([0, 1])), "example_ids must have 3 elements, got 2", {}),
            "ids_float": (_as("example_ids", torch.float64), "example_ids must be an int64", {}),
            "thresholds_none": (_put(thresholds=None), "thresholds are needed", {}),
            "thresholds_few": (_put(thresholds=torch.zeros(9, dtype=torch.int64)), "thresholds must have 10", {}),
            "thresholds_large": (_put(thresholds=torch.full((10,), 2**32 + 1)), "thresholds must be in", {}),
            "thresholds_negative": (_put(thresholds=torch.full((10,), -1)), "thresholds must be in", {}),
            "thresholds_float": (_as("thresholds", torch.float32), "thresholds must be an int64", {}),
            "rng_state_none": (_put(rng_state=None), "rng_state is needed", {}),
            "rng_hidden_none": (_put(rng_hidden=None), "rng_hidden is needed", {}),
            "rng_weight_none": (_put(rng_weight=None), "rng_weight is needed", {}),
            "rng_weight_none_for_w_ih": (
                _put(rng_weight=None), "rng_weight is needed", {"masks": flags("WEIGHT_IH", "MASKS_ON")}
            ),
            "rng_long": (_put(rng_state=torch.arange(3)), "rng_state must have 2", {}),
            "rng_int32": (_as("rng_weight", torch.int32), "rng_weight must be an int64", {}),
            "offset_negative": (_put(step_offset=-1), "step_offset", {}),
            "offset_large": (_put(step_offset=2**32 - T), "step_offset", {}),
            "offset_largest": (_put(step_offset=2**63 - 1), "step_offset", {}),
            "layer_negative": (_put(layer=-1), "layer must be in", {}),
            "layer_large": (_put(layer=2**16), "layer must be in", {}),
            "flags_unknown": (_put(flags=2**40 + ALL_SITES), "flags", {}),
            "flags_negative": (_put(flags=-1), "flags", {}),
            "x_int": (_as("x", torch.int64), "x", {}),
            "x_complex": (_as("x", torch.complex64), "x", {}),
            "h0_bool": (_as("h0", torch.bool), "h0", {}),
            "w_hh_int": (_as("w_hh", torch.int32), "w_hh", {}),
            "b_ih_complex": (_as("b_ih", torch.complex64), "b_ih", {}),
            "dtype_int": (_put(dtype=torch.int32), "dtype", {}),
            "dtype_complex": (_put(dtype=torch.complex64), "dtype", {}),
            "x_meta": (_put(x=torch.empty(T, B, I, device="meta")), "", {}),
            "w_hh_meta": (lambda args: {"w_hh": args["w_hh"].to("meta")}, "", {}),
            "rng_meta": (_put(rng_state=torch.empty(2, dtype=torch.int64, device="meta")), "", {}),
            "ids_meta": (_put(example_ids=torch.empty(3, dtype=torch.int64, device="meta")), "", {}),
            "w_ih_sparse": (lambda args: {"w_ih": args["w_ih"].to_sparse()}, "Sparse", {}),
            "w_hh_mkldnn": (lambda args: {"w_hh": args["w_hh"].to_mkldnn()}, "Mkldnn", {}),
            "x_without_memory": (lambda args: {"x": emptied(args["x"])}, "", {}),
            "w_hh_without_memory": (lambda args: {"w_hh": emptied(args["w_hh"])}, "", {}),
            "bias_without_memory": (lambda args: {"b_ih": emptied(args["b_ih"])}, "", {}),
            "rng_without_memory": (_put(rng_state=emptied(RNG)), "", {}),
        }.items()
    }  # fmt: skip
    BAD |= {
        f"{_cell}_backward-{case}": Bad(f"{_cell}_backward", changes, message, options)
        for case, (changes, message, options) in {
            "grad_out": (_longer("grad_out", 2), "grad_out has a shape", {}),
            "grad_h_n": (_longer("grad_h_n"), "grad_h_n has a shape", {}),
            "grad_complex": (_as("grad_out", torch.complex64), "grad_out", {}),
            "gates_rows": (_longer("gates"), "gates has a shape", {}),
            "gates_half": (_as("gates", torch.float16), "gates", {}),
            "gates_meta": (lambda args: {"gates": args["gates"].to("meta")}, "", {}),
            "gates_without_memory": (lambda args: {"gates": emptied(args["gates"])}, "", {}),
            "states_rows": (lambda args: {"states": args["states"][1:]}, "", {}),
            "states_meta": (lambda args: {"states": args["states"].to("meta")}, "", {}),
        }.items()
    }
BAD |= {
    "lstm-c0_rows": Bad("lstm", _longer("c0"), "h0|c0"),
    "lstm-c0_1d": Bad("lstm", _put(c0=torch.randn(H)), "c0"),
    "lstm-no_projection": Bad("lstm", _put(w_hr=None), "h0 must have as many units", {"projected": True}),
    "lstm-w_hr_rows": Bad("lstm", _longer("w_hr"), "w_hr has a shape", {"projected": True}),
    "lstm-wide_projection": Bad("lstm", _wide_projection, "h0|w_hr|proj", {"projected": True}),
    "lstm-rng_weight_none_for_w_hr": Bad(
        "lstm",
        _put(rng_weight=None),
        "rng_weight is needed",
        {"projected": True, "masks": flags("WEIGHT_HR", "MASKS_ON")},
    ),
    "lstm_backward-cells_rows": Bad("lstm_backward", _longer("cells"), "cells has a shape"),
    "lstm_backward-cells_float32": Bad(
        "lstm_backward", _as("cells", torch.float32), "cells", {"dtype": torch.float64}
    ),
    "lstm_backward-cells_meta": Bad("lstm_backward", lambda args: {"cells": args["cells"].to("meta")}, ""),
    "gru_backward-resets_rows": Bad("gru_backward", _longer("resets"), "resets has a shape"),
    "gru_backward-resets_float32": Bad(
        "gru_backward", _as("resets", torch.float32), "resets", {"dtype": torch.float64}
    ),
    "dropout-x_1d": Bad("dropout", _put(x=torch.randn(I)), "x must be"),
    "dropout-x_2d": Bad("dropout", _put(x=torch.randn(T, I)), "x must be"),
    "dropout-x_int": Bad("dropout", _as("x", torch.int64), "x"),
    "dropout-x_complex": Bad("dropout", _as("x", torch.complex64), "x"),
    "dropout-x_meta": Bad("dropout", _put(rng=RNG.to("meta")), ""),
    "dropout-sizes_sum": Bad("dropout", _longer("x"), "x has 7 rows", {"packed": True}),
    "dropout-sizes_overflow": Bad(
        "dropout", _put(x=torch.randn(0, I), batch_sizes=torch.tensor([2**62] * 4), example_ids=None), "batch_sizes",
        {"packed": True},
    ),
    "dropout-sizes_overflow_again": Bad(
        "dropout", _put(batch_sizes=torch.tensor([2**62] * 4 + [6]), example_ids=None), "batch_sizes", {"packed": True}
    ),
    "dropout-ids": Bad("dropout", _put(example_ids=torch.tensor([0, 1, 2**32])), "example_ids must be in"),
    "dropout-ids_few": Bad("dropout", _put(example_ids=torch.tensor([0, 1])), "example_ids must have 3"),
    "dropout-thresholds": Bad("dropout", _put(thresholds=torch.full((10,), 2**33)), "thresholds must be in"),
    "dropout-thresholds_few": Bad("dropout", _put(thresholds=torch.zeros(1, dtype=torch.int64)), "thresholds must"),
    "dropout-rng": Bad("dropout", _put(rng=torch.arange(1)), "rng must have 2"),
    "dropout-rng_float": Bad("dropout", _put(rng=torch.randn(2)), "rng must be an int64"),
    "dropout-site": Bad("dropout", _put(site=10), "site must be in"),
    "dropout-site_negative": Bad("dropout", _put(site=-1), "site must be in"),
    "dropout-stream": Bad("dropout", _put(stream=2**40), "stream"),
    "dropout-stream_negative": Bad("dropout", _put(stream=-5), "stream"),
    "dropout-stream_low": Bad("dropout", _put(stream=2**15), "stream must have bit 15 clear"),
    "dropout-offset": Bad("dropout", _put(step_offset=2**32 - 4), "step_offset"),
    "dropout-offset_largest": Bad("dropout", _put(step_offset=2**63 - 1), "step_offset"),
    "dropout-offset_negative": Bad("dropout", _put(step_offset=-1), "step_offset"),
    "dropout-without_memory": Bad("dropout", lambda args: {"x": emptied(args["x"])}, ""),
    "words-n": Bad("words", _put(n=-1), "n must be in"),
    "words-n_large": Bad("words", _put(n=2**32), "n must be in"),
    "words-row": Bad("words", _put(row=torch.tensor([2**32])), "counter values must be in"),
    "words-step": Bad("words", _put(step=torch.tensor([-1])), "counter values must be in"),
    "words-row_float": Bad("words", _put(row=torch.tensor([1.0])), "row must be an int64"),
    "words-rng": Bad("words", _put(rng=torch.zeros(2, dtype=torch.int32)), "rng must be an int64"),
    "words-stream": Bad("words", _put(stream=2**40), "stream"),
    "words-stream_low": Bad("words", _put(stream=2**15), "stream must have bit 15 clear"),
}  # fmt: skip


def call_badly(said: Any, case: str) -> None:
    """Runs in the forked process."""
    torch.manual_seed(0)
    bad = BAD[case]
    args = arguments(bad.name, **bad.options)
    run(bad.name, args)  # what is wrong is the change, not the rest
    if "example_ids" in args and "batch_sizes" in (changes := bad.changes(args)):
        changes = {"example_ids": None} | changes
    else:
        changes = bad.changes(args)
    run(bad.name, args | changes)


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_raise_and_name_the_argument(case: str, ask: Ask) -> None:
    verdict, kind, message = ask("call_badly", case)
    assert verdict == "raised", f"{verdict} {kind} {message}"
    assert kind in ("RuntimeError", "ValueError", "TypeError", "NotImplementedError"), f"{kind}: {message}"
    assert any(part in message for part in BAD[case].message.split("|")), message


def twisted(key: str, value: Any, random: torch.Generator) -> Any:
    """Another value in place of an argument: seldom a legal one."""

    def pick(options: list[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=random))]

    if isinstance(value, bool):
        return not value
    if key == "units":
        return pick([-1, 0, 1, 2**32, 2**63 - 1, -(2**63)])  # what lies between only takes memory
    if isinstance(value, int):
        return pick([-1, 0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)])
    if isinstance(value, torch.dtype):
        return pick([torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex128])
    if not isinstance(value, Tensor):
        return pick(
            [torch.randn(H), torch.zeros(2, dtype=torch.int64), torch.ones(4, dtype=torch.int64), torch.tensor(1)]
        )
    shape = list(value.shape)
    if value.dtype == torch.int64 and int(torch.randint(2, (), generator=random)):
        return torch.full(shape, pick([-(2**63), -1, 0, 1, 3, 2**32, 2**62, 2**63 - 1]))
    return pick(
        [
            None,
            value[..., :0],
            value[:0],
            value.flatten(),
            value.unsqueeze(0),
            value.flip(0)[..., :-1],
            value.repeat(3, *[1] * (len(shape) - 1)),
            value.repeat(*[1] * (len(shape) - 1), 40),
            value.new_zeros(1).expand(shape),
            value.new_zeros(1).expand([50 * size for size in shape]),
            value.t() if len(shape) == 2 else value.transpose(0, -1),
            value.to(torch.float64),
            value.to(torch.float16),
            value.to(torch.int64),
            value.to(torch.bool),
            value.to(torch.complex64),
            emptied(value),
            value.to("meta"),
        ]
    )


def call_at_random(said: Any, seed: int, calls: int) -> str:
    """Calls every operator with one to three arguments replaced; runs in the forked process."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    raised = 0
    names = [name for name in NAMES if name != "draw"]
    for index in range(calls):
        name = names[index % len(names)]
        options: dict[str, Any] = {"packed": bool(index % 2)} if name != "words" else {}
        if name.startswith("lstm"):
            options["projected"] = index % 3 == 0
        args = arguments(name, **options)
        keys = list(args)
        changed = [keys[int(torch.randint(len(keys), (), generator=random))] for _ in range(1 + index % 3)]
        changes = {key: twisted(key, args[key], random) for key in changed}
        told = {
            k: (tuple(v.shape), str(v.dtype), v.stride()) if isinstance(v, Tensor) else str(v)
            for k, v in changes.items()
        }
        print(json.dumps([name, options, told]), file=said, flush=True)  # the last line is what a crash was about
        try:
            run(name, args | changes)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            raised += 1
    return str(raised)


@pytest.mark.parametrize("seed", range(4))
def test_random_arguments_never_crash(seed: int, ask: Ask) -> None:
    calls = 400
    verdict, kind, message = ask("call_at_random", seed, calls)
    assert verdict == "returned", f"{verdict} {kind} {message}"
    assert calls / 2 < int(message) < calls  # most are refused, and some are not


def test_a_crash_would_be_seen(ask: Ask) -> None:
    assert ask("crash_on_purpose")[0] == "crashed"
    assert ask("call_badly", "words-n")[0] == "raised"  # and the next case still runs


def crash_on_purpose(said: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


# --------------------------------------------------------------------------------------------------------------------
# About the build
# --------------------------------------------------------------------------------------------------------------------


def test_build_info() -> None:
    info = ops.build_info()
    assert set(info) == {"compiler", "torch_target", "isa", "compiled_isas", "threads"}
    assert info["isa"] == ops.cpu_isa() in info["compiled_isas"] == ops.cpu_isas()
    assert info["compiled_isas"][0] == "baseline" and set(info["compiled_isas"]) <= set(ops.ISAS)
    torch.set_num_threads(1)
    assert ops.build_info()["threads"] == 1


def test_cpu_isa_refuses_what_cannot_run() -> None:
    before = ops.cpu_isa()
    for wrong in ("sse9", "", "AVX2"):
        with pytest.raises(ValueError, match="choice should be one of 'baseline'.*got"):
            ops.cpu_isa(wrong)
    try:
        for index in (3, 99, 2**32):
            with pytest.raises(RuntimeError, match="cannot run here"):
                OPS.cpu_isa(index)
        assert ops.cpu_isa() == before
    finally:
        ops.cpu_isa(before)


@pytest.mark.parametrize("choice", ["baseline", "nonsense"])
def test_the_environment_chooses_the_instruction_set(choice: str, tmp_path: Path) -> None:
    code = (
        "import torch, fused_rnn_dropout as frd\nfrom fused_rnn_dropout import ops\n"
        "out, _ = frd.LSTM(3, 4)(torch.zeros(2, 2, 3))\nassert out.isfinite().all()\nprint(ops.cpu_isa())"
    )
    path = os.pathsep.join(filter(None, [str(Path(frd.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "FRD_CPU_ISA": choice, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode >= 0, "crashed"
    if choice == "baseline":
        assert (done.returncode, done.stdout.strip()) == (0, "baseline"), done.stderr
    else:  # an unknown one is an error that names the variable, never a silent choice
        assert done.returncode != 0 and "FRD_CPU_ISA" in done.stderr
