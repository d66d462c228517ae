"""The GPU's kernels and their alternating schedule against the reference in fp64, fed with exported masks.

Each test runs on the host, through the shim, and unchanged on a GPU where there is one (``-m gpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import host_run
import pytest
import torch
from grids import (
    CELLS,
    RATES,
    all_sites,
    alone,
    assert_equal,
    assert_same,
    call,
    expect,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
    module,
    options,
    pack,
    tolerance,
    with_gradients,
)
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout.sites import FLAG, SITE_INDEX, stream, threshold

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

OPS = torch.ops.fused_rnn_dropout
T, B = 5, 4
LENGTHS = [3, 5, 1, 4]
IDS = torch.tensor([7, 0, 2**32 - 2, 31])
LOW = (torch.float32, torch.bfloat16, torch.float16)
ALTERNATING = {"zoneout_h": 0.22}  # a site that acts inside a step, so that no other schedule is chosen


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the GPU's kernels run: on the host, by the shim, or on a GPU."""
    torch.set_num_threads(1)
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with host_run.run_on_host():
        yield torch.device("cpu")
    host_run.host_module().set_seed(0)


def on(
    device: torch.device, cell: str, sites: dict[str, Any], sizes: tuple[int, int, int] = (6, 19, 7), **kwargs: Any
) -> Any:
    return module(cell, sites, sizes, backend="cuda", device=device, **kwargs)


def drawn(device: torch.device, batch: int = B) -> dict[str, Any]:
    """The randomness of a call, with counters that do not start at 0."""
    rng = frd.draw_rng("cpu").to(device)
    return {"rng": rng, "example_ids": IDS[:batch].to(device) if batch <= B else None, "step_offset": 1000}


def cases(*groups: Callable[[str], dict[str, dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(cell, sites, id=f"{cell}-{name}")
        for group in groups
        for cell in CELLS
        for name, sites in group(cell).items()
    ]


def check(rnn: Any, steps: int, batch: int, lengths: list[int] | None = None) -> None:
    """Results and gradients are the reference's, with everything kept and with recompute."""
    x, states = inputs_for(rnn, steps, batch)
    given, dtype = drawn(x.device, batch), x.dtype
    layers = rnn.num_layers
    masks = frd.export_masks(rnn, pack(x, lengths), **given)
    want = expect(rnn, x, states, masks, lengths, between=dtype)
    for rnn.recompute in (True, False):
        got = measure(rnn, x, states, lengths, **given)
        assert all(value.dtype == dtype for value in got.values())
        if rnn.hidden_size == 1 and dtype in (torch.bfloat16, torch.float16):
            # A gradient of one number may be a sum that cancels, with no larger neighbour to measure its error by.
            got, want = ({name: value for name, value in of.items() if name[:2] != "d "} for of in (got, want))
        assert_same(got, want, tolerance(dtype, steps * layers))


# --------------------------------------------------------------------------------------------------------------------
# Sites, sizes, dtypes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(("cell", "sites"), cases(alone, options, lambda cell: {"all": all_sites(cell)}))
def test_every_site_and_option(device: torch.device, cell: str, sites: dict[str, Any], dtype: torch.dtype) -> None:
    """Two layers, both directions; test_cuda_for_cpu.py does the same in fp64."""
    rnn = on(device, cell, ALTERNATING | sites, (6, 20, 8), dtype=dtype)
    check(rnn, T, B)
    check(rnn, T, B, LENGTHS)


# H, B, T: every H with every B and every T.
SIZES = [
    (1, 1, 2), (1, 3, 7), (1, 17, 1), (3, 1, 7), (3, 3, 1), (3, 17, 2), (31, 1, 1), (31, 3, 7), (31, 17, 2),
    (33, 1, 2), (33, 3, 1), (33, 17, 7), (127, 1, 7), (127, 3, 2), (127, 17, 1), (200, 1, 1), (200, 3, 2), (200, 17, 7),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@pytest.mark.parametrize(
    ("cell", "units", "batch", "steps"),
    [(cell, *sizes) for cell in CELLS for sizes in SIZES if (cell, sizes[0]) != ("LSTM_proj", 1)],
)
def test_sizes(device: torch.device, cell: str, units: int, batch: int, steps: int, dtype: torch.dtype) -> None:
    """Sizes that fill no block, no warp and no wide load, and one that does."""
    rnn = on(device, cell, inner_sites(cell), (5, units, max(1, units - 4)), layers=1, dtype=dtype)
    check(rnn, steps, batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [[7, 7, 7], [1, 1, 1], [1, 7, 2], [2, 3, 7, 7, 1, 6, 4, 5, 3]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_lengths(device: torch.device, cell: str, lengths: list[int], dtype: torch.dtype) -> None:
    check(on(device, cell, all_sites(cell), (5, 33, 18), dtype=dtype), max(lengths), len(lengths), lengths)


@pytest.mark.parametrize("cell", CELLS)
def test_more_packed_steps_than_a_launch_takes(device: torch.device, cell: str) -> None:
    """The rows of 64 steps go by value with a launch; a mask per sequence goes on in the next one."""
    rnn = on(device, cell, all_sites(cell), (3, 5, 4), layers=1)
    check(rnn, 150, 3, [150, 64, 65])


@pytest.mark.parametrize("cell", CELLS)
def test_no_bias(device: torch.device, cell: str) -> None:
    check(on(device, cell, all_sites(cell), bias=False), T, B, LENGTHS)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("cell", "sites"), cases(options))
def test_eval(device: torch.device, cell: str, sites: dict[str, Any], dtype: torch.dtype, training: bool) -> None:
    rnn = on(device, cell, ALTERNATING | sites, (6, 20, 8), layers=1, dtype=dtype).train(training)
    x, states = inputs_for(rnn, 3, B)
    given = drawn(device) if training else {}
    want = expect(rnn, x, states, frd.export_masks(rnn, x, **given))
    assert_same(measure(rnn, x, states, **given), want, tolerance(dtype, 3))


# --------------------------------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------------------------------


def everywhere(device: torch.device, tensors: list[Any]) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else value for value in tensors]


def on_the_cpu(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """The CPU kernels' answer, also while the shim stands in for them."""
    installed = bool(host_run.installed)
    if installed:
        host_run.uninstall()
    try:
        return op(*everywhere(torch.device("cpu"), list(args)))
    finally:
        if installed:
            host_run.install()


@pytest.mark.parametrize("units", [1, 3, 4, 33, 200])
@pytest.mark.parametrize("kind", range(12))
def test_words_are_those_of_the_cpu(device: torch.device, kind: int, units: int) -> None:
    b, c = torch.tensor([0, 5, 2**32 - 1]), torch.tensor([7, 2**32 - 1])
    args = (torch.tensor([-3, 2**62 + 11]), b, c, units, stream(kind, 3, 1))
    assert torch.equal(OPS.words(*everywhere(device, list(args))).cpu(), on_the_cpu(OPS.words, *args))


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("width", [1, 3, 4, 8, 33, 72])
@pytest.mark.parametrize("shared", [False, True], ids=["of_each", "shared"])
@pytest.mark.parametrize("per_step", [False, True], ids=["locked", "per_step"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_dropout_has_the_bits_of_the_cpu(
    device: torch.device, packed: bool, per_step: bool, shared: bool, width: int, dtype: torch.dtype
) -> None:
    """The values too: each is rounded once, everywhere."""
    sizes = torch.tensor([4, 4, 3, *[2] * 20, 1]) if packed else None
    shape = (int(sizes.sum()), width) if sizes is not None else (21, B, width)
    thresholds = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor(1), threshold(0.3))
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    args = [x, torch.tensor([5, -6]), thresholds, sizes, IDS, 1, stream(3, 0), per_step, shared, 17]
    want = on_the_cpu(OPS.dropout, *args)
    given = everywhere(device, args)
    given[3] = sizes
    assert torch.equal(OPS.dropout(*given).cpu(), want)
    apart = torch.cat([x.flatten()[:1], x.flatten()]).to(device)[1:].view(shape)  # at an address for no wide load
    assert torch.equal(OPS.dropout(apart, *given[1:]).cpu(), want)


@pytest.mark.parametrize("cell", CELLS)
def test_exported_masks_are_those_of_the_cpu(device: torch.device, cell: str) -> None:
    rnn = on(device, cell, all_sites(cell), (7, 37, 21), dtype=torch.float32)
    x, _ = inputs_for(rnn, 3, B)
    given = drawn(device)
    got = frd.export_masks(rnn, x, **given)
    plain = module(cell, all_sites(cell), (7, 37, 21), dtype=torch.float32, backend="reference")
    want = frd.export_masks(plain, x.cpu(), **{key: value.cpu() if isinstance(value, Tensor) else value
                                               for key, value in given.items()})  # fmt: skip
    assert_equal({name: mask.cpu() for name, mask in got.items()}, want)


@pytest.mark.parametrize("cell", CELLS)
def test_rates_that_make_no_sense_are_the_nearest_that_do(device: torch.device, cell: str) -> None:
    """The host cannot look at them without waiting for the device."""
    rnn = on(device, cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, T, B)
    given = drawn(device)
    found = []
    for low, high in ((0, 2**32), (-5, 2**40)):
        for name in rnn.sites:
            rnn._thresholds[SITE_INDEX[name]] = high if name in ("update_dropout", "input_dropout") else low
        found.append(measure(rnn, x, states, **given))
    assert_equal(found[1], found[0])


def replayed(device: torch.device, run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], list[Tensor]]:
    """What replays a run with what is in the same memory by then: a CUDA graph, or on the host the same launches."""
    if device.type != "cuda":
        return lambda: list(run())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return [result.clone() for result in results]

    return replay


@pytest.mark.parametrize("cell", CELLS)
def test_a_replay_sees_new_randomness_and_new_rates(device: torch.device, cell: str) -> None:
    rnn = on(device, cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, T, B)
    rng = frd.draw_rng("cpu").to(device)
    leaves = leaves_of(rnn, x, states)

    def run() -> tuple[Tensor, ...]:
        results = call(rnn, x, states, rng=rng)
        return (*results.values(), *torch.autograd.grad(sum(map(torch.sum, results.values())), list(leaves.values())))

    replay = replayed(device, run)
    seen = [replay()]
    for change in (lambda: rng.copy_(frd.draw_rng("cpu")), lambda: rnn.set_rate("zoneout_h", 0.9)):
        change()
        seen.append(replay())
        assert_equal(dict(enumerate(seen[-1])), dict(enumerate(run())))
        assert not torch.equal(seen[-1][0], seen[-2][0])


# --------------------------------------------------------------------------------------------------------------------
# Order
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_does_not_matter(cell: str) -> None:
    """The same bits for several orders of threads and blocks. More rows than one block of column_sums takes."""
    with host_run.run_on_host():
        torch.set_num_threads(1)
        rnn = on(torch.device("cpu"), cell, all_sites(cell), (3, 37, 9), layers=1, dtype=torch.float32)
        x, states = inputs_for(rnn, 33, 17)
        given = {"rng": frd.draw_rng("cpu")}
        found = []
        for seed in (0, 1, 2, 3):
            host_run.host_module().set_seed(seed)
            found.append(measure(rnn, x, states, **given))
        host_run.host_module().set_seed(0)
        for other in found[1:]:
            assert_equal(other, found[0])
        want = expect(rnn, x, states, frd.export_masks(rnn, x, **given))
        assert_same(found[0], want, tolerance(torch.float32, 33))


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_gives_the_same_bits(device: torch.device, cell: str) -> None:
    rnn = on(device, cell, all_sites(cell), dtype=torch.bfloat16)
    x, states = inputs_for(rnn, T, B)
    results, leaves = call(rnn, pack(x, LENGTHS), states), leaves_of(rnn, x, states)
    first = with_gradients(results, leaves, torch.bfloat16, retain_graph=True)
    measure(rnn, x, states)
    assert_equal(with_gradients(results, leaves, torch.bfloat16), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_addresses_for_no_wide_load(device: torch.device, cell: str, dtype: torch.dtype) -> None:
    """A gradient that begins anywhere gives the same bits as one that begins where 16 bytes do."""
    rnn = on(device, cell, inner_sites(cell), (4, 16, 8), layers=1, bidirectional=False, dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    leaves = list(leaves_of(rnn, x, states).values())
    out = call(rnn, x, states, **drawn(device))["out"]
    probe = torch.randn(out.numel() + 1, dtype=torch.float64).to(dtype).to(device)
    aligned = torch.autograd.grad(out, leaves, probe[1:].clone().view_as(out), retain_graph=True)
    anywhere = torch.autograd.grad(out, leaves, probe[1:].view_as(out))
    assert_equal(dict(enumerate(anywhere)), dict(enumerate(aligned)))


# --------------------------------------------------------------------------------------------------------------------
# What is kept, and what is refused
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [0, 1, 2], ids=["nothing", "all", "states"])
@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("unzoned", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_a_forward_returns_is_what_its_fake_says(
    device: torch.device, cell: str, unzoned: bool, dtype: torch.dtype, save: int
) -> None:
    units, gates = 6, 4 if cell == "lstm" else 3
    flags = FLAG["ZONEOUT_H"] | FLAG["MASKS_ON"] | (FLAG["UNZONED"] if unzoned else 0)

    def arguments(where: torch.device) -> list[Any]:
        def some(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=where)

        states = [some(3, units)] * (2 if cell == "lstm" else 1)
        weights = [some(gates * units, 5), some(gates * units, units), None, None, *([None] if cell == "lstm" else [])]
        pair = torch.zeros(2, dtype=torch.int64, device=where)
        rates = torch.zeros(10, dtype=torch.int64, device=where)
        return [some(4, 3, 5), *states, *weights, None, None, pair, pair, pair, rates, dtype, flags, 0, False, 0, save]

    op = getattr(OPS, f"{cell}_forward")
    got = op(*arguments(device))
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        want = op(*arguments(device))
    for real, fake in zip(got, want, strict=True):
        assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_weights_of_another_dtype(device: torch.device, cell: str) -> None:
    """Under autocast the master weights and their gradients stay in their own dtype."""
    rnn = on(device, cell, ALTERNATING | {"weight_dropout": RATES["weight_dropout"]}, layers=1, dtype=torch.float32)
    x = torch.randn(T, B, 6, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out, _ = rnn(x, rng=frd.draw_rng("cpu").to(device))
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters()
    )


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(device: torch.device, cell: str) -> None:
    rnn = on(device, cell, all_sites(cell))
    for rnn.recompute in (False, True):
        got = measure(rnn, *inputs_for(rnn, T, 0))
        assert all(torch.count_nonzero(value) == 0 for value in got.values())
        assert got["d weight_hh_l0"].shape == rnn.weight_hh_l0.shape


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_double_backward_is_refused(device: torch.device, cell: str) -> None:
    rnn = on(device, cell, ALTERNATING)
    x, states = inputs_for(rnn, T, B)
    (gradient,) = torch.autograd.grad(call(rnn, x, states)["out"].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented.*backend='reference'"):
        gradient.sum().backward()
