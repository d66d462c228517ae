"""The operators by themselves: schemas, fakes, gradients, and bad arguments, which raise and never crash."""

from __future__ import annotations

import dataclasses
import functools
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
from fused_rnn_dropout.cells import CELLS
from fused_rnn_dropout.layer_call import BOTH, FORWARD, REVERSE, Keep, Kept, LayerCall
from fused_rnn_dropout.sites import FLAG, GROUPS, KIND, SITE_INDEX, SITES, stream

OPS = torch.ops.fused_rnn_dropout
NAMES = ("draw", "words", "dropout", "layer", "layer_forward", "layer_backward")
LAYERS = NAMES[3:]
T, B, I, H, P = 4, 3, 5, 7, 4
RNG = torch.tensor([5, -6])
RNG_OF_EACH = RNG + torch.arange(len(GROUPS)).unsqueeze(1)
SIZES = torch.tensor([3, 2, 1])
OUTER = ("INPUT", "OUTPUT")
EVERYTHING = 2**9 - 1


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sizes are tiny: on a busy machine a second thread is mostly waited for."""
    torch.set_num_threads(1)


def flags(*names: str) -> int:
    return sum(FLAG[name] for name in names)


NO_SITES = 0


def all_sites(cell: str, projected: bool = False) -> int:
    """The bits of the sites that a layer of this cell may have at once, without MASKS_ON."""
    inside = (site.flag for site in SITES if not site.outer and site.fits(cell))
    return flags(*OUTER, *inside, "WEIGHT_IH", *["WEIGHT_HR"] * projected)


# --------------------------------------------------------------------------------------------------------------------
# Arguments, by name and in the order of the schemas
# --------------------------------------------------------------------------------------------------------------------


def layer_arguments(
    cell: str,
    *,
    packed: bool = False,
    projected: bool = False,
    bias: bool = True,
    masks: int | None = None,
    dtype: torch.dtype = torch.float32,
    keep: int = Keep.ALL,
    directions: int = FORWARD,
    grad: bool = False,
    batch: int = B,
) -> dict[str, Any]:
    """Arguments of ``layer``, and so of ``layer_forward``; tensors in ``dtype``, of which the results are too.

    ``masks`` are the flags; None: those of every site, with masks on.
    """
    row = CELLS[cell]
    masks = all_sites(cell, projected) | FLAG["MASKS_ON"] if masks is None else masks
    gates, units, width = row.gates, H, P if projected else H

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).mul(0.5).to(dtype).requires_grad_(grad)

    x = some(int(SIZES.sum()), I) if packed else some(T, batch, I)
    states, weights = [], []
    for _ in range(2 if directions == BOTH else 1):
        states += [some(batch, width)] + [some(batch, units)] * row.has_c
        weights += [some(gates * units, I), some(gates * units, width)]
        weights += [some(gates * units), some(gates * units)] * bias + [some(width, units)] * projected
    return {
        "cell": row.number,
        "x": x,
        "states": states,
        "weights": weights,
        "batch_sizes": SIZES if packed else None,
        "example_ids": torch.tensor([8, 0, 2**32 - 2]) if batch == B else None,
        "rng": RNG_OF_EACH if masks else None,
        "thresholds": torch.full((len(SITES),), 2**30) if masks else None,
        "dtype": dtype,
        "flags": masks,
        "layer": 2,
        "directions": directions,
        "step_offset": 11,
        "schedule": 0,
        "keep": int(keep),
    }


def backward_arguments(cell: str, needs: int = EVERYTHING, given: str = "all", **options: Any) -> dict[str, Any]:
    """Arguments of ``layer_backward``, with what the forward really kept."""
    args = layer_arguments(cell, **options)
    y, last, kept = OPS.layer_forward(*args.values())
    grads = {
        "grad_y": torch.randn_like(y) if given != "last" else None,
        "grad_last": [torch.randn_like(state) if given != "out" else None for state in last],
    }
    apart = Kept.of_each(kept)[0].states.dim() == 2
    return grads | args | {"y": None if apart else y, "kept": kept, "needs": needs}


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
    return (backward_arguments if name == "layer_backward" else layer_arguments)(**options)


def leaves(values: Any) -> list[Tensor]:
    """The tensors among arguments or results, whose lists are one level deep."""
    flat = [part for value in values for part in (value if isinstance(value, (list, tuple)) else (value,))]
    return [part for part in flat if isinstance(part, Tensor)]


def run(name: str, args: dict[str, Any]) -> list[Tensor]:
    result = getattr(OPS, name)(*args.values())
    return leaves(result if isinstance(result, (list, tuple)) else [result])


def each(changed: Callable[[Tensor], Any], value: Any) -> Any:
    """Of a tensor or a list of some."""
    if isinstance(value, (list, tuple)):
        return [each(changed, part) for part in value]
    return changed(value) if isinstance(value, Tensor) else value


# --------------------------------------------------------------------------------------------------------------------
# Schemas
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_says_what_the_arguments_are(name: str) -> None:
    schema = getattr(OPS, name).default._schema
    options = {"cell": "LSTM"} if name in LAYERS else {}
    given = ["like"] if name == "draw" else list(arguments(name, **options))
    assert [argument.name for argument in schema.arguments] == given
    assert not schema.is_mutable and not any(argument.kwarg_only for argument in schema.arguments)
    assert all(str(returned.type) in ("Tensor", "List[Tensor]") for returned in schema.returns)
    if name not in ("draw", "words"):
        assert "SymInt step_offset" in str(schema)  # an int would be a constant of a compiled graph


@pytest.mark.parametrize("prefix", ["", "triton_"])
@pytest.mark.parametrize("name", LAYERS)
def test_python_calls_the_arguments_of_a_layer_what_the_schema_does(name: str, prefix: str) -> None:
    names = [argument.name for argument in getattr(OPS, prefix + name).default._schema.arguments]
    at = names.index("cell")
    assert tuple(names[at : at + len(LayerCall._fields)]) == LayerCall._fields


def test_only_draw_is_random() -> None:
    tagged = [name for name in NAMES if torch.Tag.nondeterministic_seeded in getattr(OPS, name).default.tags]
    assert tagged == ["draw"]


# --------------------------------------------------------------------------------------------------------------------
# opcheck
# --------------------------------------------------------------------------------------------------------------------

_LAYERS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packed": True},
    "reverse": {"directions": REVERSE, "packed": True},
    "both": {"directions": BOTH},
    "both_packed": {"directions": BOTH, "packed": True},
    "recompute": {"keep": Keep.STATES},
    "no_bias": {"bias": False},
    "no_sites": {"masks": NO_SITES},
    "eval": {},
    "unzoned": {"masks": flags("ZONEOUT_H", "UNZONED", "MASKS_ON")},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "bfloat16_packed_recompute": {"dtype": torch.bfloat16, "packed": True, "keep": Keep.STATES},
    "bfloat16_both": {"dtype": torch.bfloat16, "directions": BOTH},
}


@pytest.mark.parametrize("case", _LAYERS)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_the_layers(cell: str, case: str) -> None:
    masks = {"masks": all_sites(cell)} if case == "eval" else {}
    args = layer_arguments(cell, grad=True, **_LAYERS[case], **masks)
    torch.library.opcheck(OPS.layer.default, tuple(args.values()))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_opcheck_of_a_projected_layer(packed: bool) -> None:
    args = layer_arguments("LSTM", grad=True, projected=True, packed=packed, directions=BOTH)
    torch.library.opcheck(OPS.layer.default, tuple(args.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_with_inputs_that_are_not_dense_and_of_several_dtypes(cell: str) -> None:
    args = layer_arguments(cell, dtype=torch.bfloat16)
    args["x"] = torch.randn(B, T, I).transpose(0, 1)  # fp32, results in bf16
    args["states"][0] = torch.randn(1, H, dtype=torch.float64).expand(B, H)
    args["weights"][1] = torch.randn(H, args["weights"][1].size(0), dtype=torch.float16).t()
    for name in ("x", "states", "weights"):
        args[name] = each(lambda tensor: tensor.detach().requires_grad_(), args[name])
    # The fake's outputs are compared with the real ones; the gradients are compared elsewhere, leaf by leaf.
    torch.library.opcheck(OPS.layer.default, tuple(args.values()))


@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_the_halves(cell: str, packed: bool, keep: int) -> None:
    options: dict[str, Any] = {"packed": packed, "keep": keep, "directions": BOTH if packed else REVERSE}
    torch.library.opcheck(OPS.layer_forward.default, tuple(layer_arguments(cell, **options).values()))
    if keep != Keep.NOTHING:
        args = backward_arguments(cell, given="last" if packed else "all", **options)
        torch.library.opcheck(OPS.layer_backward.default, tuple(args.values()))


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


def faked(args: dict[str, Any], mode: FakeTensorMode, moving: tuple[str, ...]) -> dict[str, Any]:
    """Arguments without values; ``moving``: those whose sizes are symbols."""

    def fake(name: str, tensor: Tensor) -> Tensor:
        return mode.from_tensor(tensor, static_shapes=name not in moving)

    return {name: each(functools.partial(fake, name), value) for name, value in args.items()}


_FAKES: list[tuple[str, dict[str, Any]]] = [
    ("words", {}),
    ("words", {"stream": KIND["WEIGHT_HH_ROWS"], "n": 0}),
    *[("dropout", {"packed": packed, "dtype": torch.float16}) for packed in (False, True)],
    ("dropout", {"dtype": torch.float64}),
]  # fmt: skip
for _cell in CELLS:
    for _packed in (False, True):
        for _dtype in (torch.float32, torch.bfloat16, torch.float64):
            _some: dict[str, Any] = {"cell": _cell, "packed": _packed, "dtype": _dtype}
            _FAKES += [("layer", _some), ("layer", {**_some, "directions": BOTH})]
            for _masks in (NO_SITES, all_sites(_cell) | FLAG["MASKS_ON"], flags("ZONEOUT_H", "UNZONED")):
                _FAKES += [("layer_forward", {**_some, "keep": keep, "masks": _masks}) for keep in Keep]
            for _needs in (EVERYTHING, 0, *(2**bit for bit in range(9))):
                _both = {"directions": BOTH if _needs > 16 else FORWARD}
                _FAKES.append(("layer_backward", {**_some, "needs": _needs, "bias": _needs != 0, **_both}))
_projected: dict[str, Any] = {"cell": "LSTM", "projected": True}
_FAKES += [("layer", _projected), ("layer_forward", {**_projected, "dtype": torch.bfloat16, "directions": BOTH})]
_projected_both: dict[str, Any] = {**_projected, "directions": BOTH}
_FAKES += [("layer_backward", {**_projected_both, "needs": needs}) for needs in (16, 15, 256, EVERYTHING)]
_FAKES += [(name, {"cell": cell, "batch": 0}) for name in LAYERS for cell in CELLS]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_fakes_have_the_shapes_strides_and_dtypes_of_the_results(dynamic: bool) -> None:
    for name, options in _FAKES:
        args = arguments(name, **options)
        if args.get("x") is not None and args["x"].dim() == 3:
            args["x"] = args["x"].transpose(0, 1).contiguous().transpose(0, 1)  # results are dense all the same
        real = run(name, args)
        # Only the sizes of a batch change: the sizes of a layer are its own.
        moving = ("x", "states", "batch_sizes", "example_ids", "b", "c") if dynamic else ()
        shapes = ShapeEnv() if dynamic else None
        mode = FakeTensorMode(shape_env=shapes)
        with mode:
            fakes = run(name, faked(args, mode, moving))
        for index, (fake, result) in enumerate(zip(fakes, real, strict=True)):
            assert described(fake) == described(result), f"result {index} of {name} with {options}"


@pytest.mark.parametrize("cell", [*CELLS, None])
def test_fakes_decide_nothing_about_sizes(cell: str | None) -> None:
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    name = "layer" if cell else "dropout"
    args = arguments(name, **({"cell": cell, "directions": BOTH} if cell else {}))
    with mode:
        out = run(name, faked(args, mode, ("x", "states")))[0]
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


OF_EACH_CELL = [
    ("words", {}),
    ("dropout", {}),
    *[(name, {"cell": cell, "directions": BOTH}) for cell in CELLS for name in LAYERS],
]


@pytest.mark.parametrize(("name", "options"), OF_EACH_CELL)
def test_the_others_are_functions_of_their_arguments(name: str, options: dict[str, Any]) -> None:
    args = arguments(name, **options)
    kept = [tensor.clone() for tensor in leaves(args.values())]
    state = torch.get_rng_state()
    first, second = run(name, args), run(name, args)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves(args.values()), kept, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Arguments as the dispatcher may hand them over
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_lazily_negated_and_zero_tensors(cell: str) -> None:
    args = layer_arguments(cell)
    lazy = torch.complex(args["x"], -args["x"]).conj().imag
    assert lazy.is_neg() and torch.equal(lazy.resolve_neg(), args["x"])
    expected = run("layer", args)
    for mine, their in zip(run("layer", args | {"x": lazy}), expected, strict=True):
        assert torch.equal(mine, their)
    assert torch.equal(OPS.dropout(lazy, *list(dropout_arguments().values())[1:]),
                       OPS.dropout(args["x"], *list(dropout_arguments().values())[1:]))  # fmt: skip
    nothing = run("layer", args | {"x": torch._efficientzerotensor((T, B, I))})
    for mine, their in zip(nothing, run("layer", args | {"x": torch.zeros(T, B, I)}), strict=True):
        assert torch.equal(mine, their)


@pytest.mark.parametrize(("name", "options"), OF_EACH_CELL)
def test_no_argument_is_read_as_if_it_were_dense(name: str, options: dict[str, Any]) -> None:
    args = arguments(name, **options, **({"projected": True} if options.get("cell") == "LSTM" else {}))
    expected = run(name, args)

    def spread(tensor: Tensor) -> Tensor:
        if tensor.dim() == 1 and tensor.numel() < 2:
            return tensor
        found = tensor.repeat_interleave(2, dim=-1)[..., ::2]
        assert not found.is_contiguous()
        return found

    for key, value in args.items():
        if isinstance(value, (Tensor, list)):
            results = run(name, args | {key: each(spread, value)})
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), key


@pytest.mark.parametrize("cell", CELLS)
def test_one_pair_of_all_groups_may_be_the_same_memory(cell: str) -> None:
    args = layer_arguments(cell)
    expanded = RNG.expand(len(GROUPS), 2)
    results = [run("layer", args | {"rng": rng}) for rng in (expanded, expanded.contiguous(), RNG_OF_EACH)]
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("cell", CELLS)
def test_each_group_reads_its_own_pair(cell: str, group: str) -> None:
    sites = dict(zip(GROUPS, ("INPUT", "INTER_LAYER", "OUTPUT", "HIDDEN", "WEIGHT_HH", "UPDATE"), strict=True))
    for name, flag in sites.items():
        args = layer_arguments(cell, masks=flags(flag, "MASKS_ON"))
        other = RNG_OF_EACH.clone()
        other[GROUPS.index(group)] += 1
        same = torch.equal(run("layer", args)[0], run("layer", args | {"rng": other})[0])
        assert same == (name != group)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"dtype": torch.bfloat16}, {"keep": Keep.STATES}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_are_each_alone_side_by_side(cell: str, options: dict[str, Any]) -> None:
    inside = all_sites(cell) + FLAG["MASKS_ON"] - FLAG["OUTPUT"]  # the masks of an output go over the columns of both
    args = backward_arguments(cell, directions=BOTH, masks=inside, **options)
    shared = {name: args[name] for name in LayerCall._fields}
    y, last, kept = OPS.layer_forward(*shared.values())
    dx, dstates, dweights = OPS.layer_backward(*args.values())
    of_x = []
    for number, direction in enumerate((FORWARD, REVERSE)):

        def half(values: Any, number: int = number) -> Any:
            return values[len(values) // 2 * number : len(values) // 2 * (number + 1)]

        columns = slice(H * number, H * (number + 1))
        own = shared | {"states": half(args["states"]), "weights": half(args["weights"]), "directions": direction}
        y_, last_, kept_ = OPS.layer_forward(*own.values())
        assert torch.equal(y[..., columns], y_)
        assert all(torch.equal(a, b) for a, b in zip((*half(last), *half(kept)), (*last_, *kept_), strict=True))
        gradients = {"grad_y": args["grad_y"][..., columns], "grad_last": half(args["grad_last"])}
        given = {"y": None if args["y"] is None else y_, "kept": kept_, "needs": EVERYTHING}
        dx_, *others = OPS.layer_backward(*(gradients | own | given).values())
        of_x.append(dx_)
        assert all(torch.equal(a, b) for a, b in zip(half(dstates), others[0], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(half(dweights), others[1], strict=True))
    # The mask of the input goes over the sum or over each, which are rounded as they are stored: two roundings of
    # either part, one of the sum.
    largest = (of_x[0].abs() + of_x[1].abs()).max().item()
    torch.testing.assert_close(dx, of_x[0] + of_x[1], rtol=0, atol=3 * torch.finfo(dx.dtype).eps * largest)


@pytest.mark.parametrize("sizes", [(4, 3, 0, 7), (4, 0, 5, 7), (4, 3, 5, 0), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_zero_and_one(cell: str, sizes: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, units = sizes
    row = CELLS[cell]
    args = layer_arguments(cell) | {"example_ids": None}
    gates = row.gates * units
    shapes = [(gates, inputs), (gates, units), (gates,), (gates,)]
    args["x"] = torch.randn(steps, batch, inputs, requires_grad=True)
    args["states"] = [torch.randn(batch, units, requires_grad=True) for _ in range(2 * row.states)]
    args["weights"] = [torch.randn(shape, requires_grad=True) for shape in 2 * shapes]
    args["directions"] = BOTH
    y, *last = run("layer", args)
    assert y.shape == (steps, batch, 2 * units) and all(state.shape == (batch, units) for state in last)
    sum(result.sum() for result in (y, *last)).backward()
    for leaf in (args["x"], *args["states"], *args["weights"]):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and leaf.grad.isfinite().all()


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


# What a bad argument is called: its name in the schema, or that of a tensor in a list of one direction.
_PLACES = {
    "states": ("h0", "c0"),
    "weights": ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"),
    "grad_last": ("grad_h_n", "grad_c_n"),
    "kept": ("gates", "beside", "kept_states"),
}


def _get(args: dict[str, Any], key: str) -> Any:
    for name, parts in _PLACES.items():
        if key in parts:
            return args[name][parts.index(key)]
    return args[key]


def _with(args: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The arguments that change where these take the place of what was there."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        name = next((name for name, parts in _PLACES.items() if key in parts), None)
        if name is None:
            changed[key] = value
        else:
            changed.setdefault(name, list(args[name]))[_PLACES[name].index(key)] = value
    return changed


def _longer(key: str, dim: int = 0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One more along a dimension."""

    def change(args: dict[str, Any]) -> dict[str, Any]:
        value = _get(args, key)
        return _with(args, **{key: torch.cat([value, value.narrow(dim, 0, 1)], dim)})

    return change


def _as(key: str, dtype: torch.dtype) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: _with(args, **{key: _get(args, key).to(dtype)})


def _meta(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: _with(args, **{key: _get(args, key).to("meta")})


def _emptied(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: _with(args, **{key: emptied(_get(args, key))})


def _put(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda args: _with(args, **changes)


def _cut(key: str, count: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A list with fewer tensors at its end."""
    return lambda args: {key: args[key][:-count]}


def _wide_projection(args: dict[str, Any]) -> dict[str, Any]:
    """A projection to many more units than there are; masks of a unit are kept for as many as there are."""
    wide = 200_000
    return _with(args, h0=torch.randn(B, wide), w_hh=torch.randn(4 * H, wide), w_hr=torch.randn(wide, H))


_H_IN_Y = {"masks": NO_SITES}
_H_APART = {"masks": flags("ZONEOUT_H", "UNZONED", "MASKS_ON")}
BAD: dict[str, Bad] = {}
for _cell in CELLS:
    BAD |= {
        f"{_cell}-{case}": Bad("layer", changes, message, {"cell": _cell} | options)
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
            "cell_unknown": (_put(cell=len(CELLS)), "cell must be in [0, ", {}),
            "cell_negative": (_put(cell=-1), "cell must be in [0, ", {}),
            "states_few": (_cut("states"), "states must hold h0", {}),
            "states_of_one_direction": (_put(directions=BOTH), "states must hold h0", {}),
            "states_none": (_put(states=[]), "states must hold h0", {}),
            "weights_few": (_cut("weights", 3), "weights must hold w_ih and w_hh", {}),
            "weights_none": (_put(weights=[]), "weights must hold w_ih and w_hh", {}),
            "weights_many": (lambda args: {"weights": args["weights"] * 3}, "weights must hold w_ih and w_hh", {}),
            "weights_of_two": (_cut("weights"), "weights must hold w_ih and w_hh", {"directions": BOTH}),
            "directions_none": (_put(directions=0), "directions must be 1, 2 or 3, got 0", {}),
            "directions_many": (_put(directions=4), "directions must be 1, 2 or 3, got 4", {}),
            "schedule": (_put(schedule=7), "schedule must be", {}),
            "keep": (_put(keep=3), "keep must be 0, 1 or 2, got 3", {}),
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
            "rng_none": (_put(rng=None), "rng is needed where sites draw masks", {}),
            "rng_none_for_w_ih": (
                _put(rng=None), "rng is needed where sites draw masks", {"masks": flags("WEIGHT_IH", "MASKS_ON")}
            ),
            "rng_of_one": (_put(rng=RNG), "rng must have 6 rows", {}),
            "rng_wide": (_put(rng=torch.ones(6, 3, dtype=torch.int64)), "rng must have 6 rows", {}),
            "rng_int32": (_as("rng", torch.int32), "rng must be an int64", {}),
            "offset_negative": (_put(step_offset=-1), "step_offset", {}),
            "offset_large": (_put(step_offset=2**32 - T), "step_offset", {}),
            "offset_largest": (_put(step_offset=2**63 - 1), "step_offset", {}),
            "layer_negative": (_put(layer=-1), "layer must be in", {}),
            "layer_large": (_put(layer=2**16), "layer must be in", {}),
            "flags_unknown": (_put(flags=2**40), "flags", {}),
            "flags_negative": (_put(flags=-1), "flags", {}),
            "flags_read_twice": (_put(flags=flags(*OUTER, "DROPOUT", "MASKS_ON")), "more than one site on what", {}),
            "layer_of_the_output": (
                _put(layer=2**16 - 1), "layer must be in [0, 65535), got 65535", {"masks": flags("OUTPUT", "MASKS_ON")}
            ),
            "rng_none_for_x": (
                _put(rng=None), "rng is needed where sites draw masks", {"masks": flags("INPUT", "MASKS_ON")}
            ),
            "thresholds_none_for_y": (
                _put(thresholds=None), "thresholds are needed", {"masks": flags("OUTPUT", "MASKS_ON")}
            ),
            "x_int": (_as("x", torch.int64), "x", {}),
            "x_complex": (_as("x", torch.complex64), "x", {}),
            "h0_bool": (_as("h0", torch.bool), "h0", {}),
            "w_hh_int": (_as("w_hh", torch.int32), "w_hh", {}),
            "b_ih_complex": (_as("b_ih", torch.complex64), "b_ih", {}),
            "dtype_int": (_put(dtype=torch.int32), "dtype", {}),
            "dtype_complex": (_put(dtype=torch.complex64), "dtype", {}),
            "x_meta": (_put(x=torch.empty(T, B, I, device="meta")), "", {}),
            "w_hh_meta": (_meta("w_hh"), "", {}),
            "rng_meta": (_meta("rng"), "", {}),
            "ids_meta": (_put(example_ids=torch.empty(3, dtype=torch.int64, device="meta")), "", {}),
            "w_ih_sparse": (lambda args: _with(args, w_ih=_get(args, "w_ih").to_sparse()), "Sparse", {}),
            "w_hh_mkldnn": (lambda args: _with(args, w_hh=_get(args, "w_hh").to_mkldnn()), "Mkldnn", {}),
            "x_without_memory": (_emptied("x"), "", {}),
            "w_hh_without_memory": (_emptied("w_hh"), "", {}),
            "bias_without_memory": (_emptied("b_ih"), "", {}),
            "rng_without_memory": (_emptied("rng"), "", {}),
        }.items()
    }  # fmt: skip
    BAD |= {
        f"{_cell}_backward-{case}": Bad("layer_backward", changes, message, {"cell": _cell} | options)
        for case, (changes, message, options) in {
            "grad_y": (_longer("grad_y", 2), "grad_y has a shape", {}),
            "grad_y_of_one_direction": (
                lambda args: {"grad_y": args["grad_y"][..., :H]}, "grad_y has a shape", {"directions": BOTH}
            ),
            "grad_last_few": (_cut("grad_last"), "grad_last must have an element for each of states", {}),
            "kept_few": (_cut("kept"), "kept must hold gates, beside and states of each direction", {}),
            "keep_nothing": (_put(keep=0), "keep must be 1 or 2 in a backward", {}),
            "y_none": (_put(y=None), "y is needed", _H_IN_Y),
            "y_half": (_as("y", torch.float16), "y must be what the forward returned", _H_IN_Y),
            "y_rows": (lambda args: {"y": args["y"][1:]}, "y has a shape", _H_IN_Y),
            "y_meta": (_meta("y"), "", _H_IN_Y),
            "y_without_memory": (_emptied("y"), "", _H_IN_Y),
            "beside_meta": (_meta("beside"), "", {}),
            "grad_h_n": (_longer("grad_h_n"), "grad_h_n has a shape", {}),
            "grad_complex": (_as("grad_y", torch.complex64), "grad_y", {}),
            "gates_rows": (_longer("gates"), "gates has a shape", {}),
            "gates_half": (_as("gates", torch.float16), "gates", {}),
            "gates_meta": (_meta("gates"), "", {}),
            "gates_without_memory": (_emptied("gates"), "", {}),
            "states_rows": (lambda args: _with(args, kept_states=_get(args, "kept_states")[1:]), "", _H_APART),
            "states_meta": (_meta("kept_states"), "", _H_APART),
        }.items()
    }  # fmt: skip
BAD |= {
    f"{_cell}_backward-{case}": Bad("layer_backward", changes, message, {"cell": _cell} | options)
    for _cell in CELLS
    if CELLS[_cell].has_c or CELLS[_cell].apart
    for case, (changes, message, options) in {
        "beside_rows": (_longer("beside"), "beside has a shape", {}),
        "beside_float32": (_as("beside", torch.float32), "beside", {"dtype": torch.float64}),
    }.items()
}
BAD |= {
    "LSTM-c0_rows": Bad("layer", _longer("c0"), "h0|c0", {"cell": "LSTM"}),
    "LSTM-c0_1d": Bad("layer", _put(c0=torch.randn(H)), "c0", {"cell": "LSTM"}),
    "LSTM-no_projection": Bad("layer", _cut("weights"), "h0 must have as many units", _projected | {"masks": NO_SITES}),
    "LSTM-w_hr_rows": Bad("layer", _longer("w_hr"), "w_hr has a shape", _projected),
    "LSTM-wide_projection": Bad("layer", _wide_projection, "h0|w_hr|proj", _projected),
    "LSTM-rng_none_for_w_hr": Bad(
        "layer", _put(rng=None), "rng is needed", _projected | {"masks": flags("WEIGHT_HR", "MASKS_ON")}
    ),
    "GRU-projection": Bad(
        "layer",
        lambda args: {"weights": [*args["weights"], torch.randn(P, H)]},
        "weights must hold w_ih and w_hh, then b_ih and b_hh where there are biases, of each",
        {"cell": "GRU"},
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
    """Another value in place of an argument, or of one tensor in a list: seldom a legal one."""

    def pick(options: list[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=random))]

    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        place = int(torch.randint(len(value), (), generator=random))
        found = twisted(key, value[place], random)
        return [*value[:place], *[found] * pick([0, 1, 1, 1, 1, 2]), *value[place + 1 :]]
    if key == "n":
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
        if name in LAYERS:
            options["cell"] = list(CELLS)[index // len(names) % len(CELLS)]
            options["directions"] = 1 + index % 3
            options["projected"] = CELLS[options["cell"]].projects and index % 2 == 0
        args = arguments(name, **options)
        keys = list(args)
        changed = [keys[int(torch.randint(len(keys), (), generator=random))] for _ in range(1 + index % 3)]
        changes = {key: twisted(key, args[key], random) for key in changed}
        told = {
            k: [(tuple(t.shape), str(t.dtype), t.stride()) for t in leaves([v])] or str(v) for k, v in changes.items()
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
    assert set(info) == {"compiler", "torch_target", "isa", "compiled_isas", "bf16", "threads"}
    assert info["bf16"] in ("exact", "native", "emulated")
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
