"""One walk chooses a schedule: what ``explain`` names is what is launched, forward and backward."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import host_run
import pytest
import torch
from grids import CELLS, UNPROJECTED, call, fits, inputs_for, leaves_of, module, pack, with_gradients
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import cells, cudnn_library, schedules
from fused_rnn_dropout.functional import split_weights
from fused_rnn_dropout.schedules import ALTERNATING, CUDNN, PERSISTENT, SCHEDULES, SEQUENCE, Layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
    reason="needs triton, and no device, so that its kernels run in the interpreter",
)

T, B = 3, 4
LENGTHS = [2, 3, 1, 3]


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in schedules.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    torch.set_num_threads(1)


def named(rnn: Any, x: Any) -> str:
    """The schedule that ``explain`` says is taken."""
    told = frd.explain(rnn, x)
    (name,) = [name for name, what in told.walk.items() if what == "taken"]
    assert told.schedule.startswith(f"{name}: ") and list(told.walk)[-1] == name
    return name


def forward_and_backward(rnn: Any, lengths: list[int] | None = None) -> tuple[Any, Callable[[], None]]:
    """An input, and a call that runs forward and gives back the call of its backward."""
    x, states = inputs_for(rnn, T, B)
    results = call(rnn, pack(x, lengths), states)
    return pack(x, lengths), lambda: with_gradients(results, leaves_of(rnn, x, states), x.dtype) and None


# --------------------------------------------------------------------------------------------------------------------
# The rows
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", SCHEDULES)
def test_the_last_row_takes_everything(backend: str) -> None:
    """Its number is 0, which can always be run."""
    rows = SCHEDULES[backend]
    assert sorted(row.number for row in rows) == list(range(len(rows)))
    assert len({row.name for row in rows}) == len(rows)
    assert rows[-1].number == 0
    assert rows[-1].obstacle is rows[-1].worth is schedules._nothing


@pytest.mark.parametrize(("backend", "name"), [("cpu", "fused CPU"), ("reference", "step by step")])
def test_a_backend_with_one_schedule(backend: str, name: str) -> None:
    rnn = frd.LSTM(3, 4, backend=backend, hidden_dropout=0.5)
    told = frd.explain(rnn, torch.zeros(T, B, 3))
    assert told.walk == {name: "taken"}
    assert told.schedule == f"{name}: {SCHEDULES[backend][0].says}"
    assert f"  walk       {name}: taken\n" in str(told)


# --------------------------------------------------------------------------------------------------------------------
# Triton, in the interpreter
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels of steps that are launched, in order."""
    from fused_rnn_dropout.triton import operators  # noqa: F401  imports every module that launches
    from fused_rnn_dropout.triton.launch import launch as launched

    seen: list[str] = []

    def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        seen.append(kernel.__name__)
        launched(kernel, programs, *args, **constants)

    for name, of in list(sys.modules.items()):
        if name.startswith("fused_rnn_dropout.triton.") and getattr(of, "launch", None) is launched:
            monkeypatch.setattr(of, "launch", launch)
    return seen


PREFIXES = tuple(dict.fromkeys(cell.module.lower() for cell in cells.CELLS.values()))
AGAIN = [f"{prefix}_activate_kernel" for prefix in PREFIXES]
"""Of what recompute=True computes again, for all steps at once."""


def of_steps(kernels: list[str]) -> str:
    """The schedule whose kernels were launched; forgets them."""
    sequence = [name for name in kernels if "sequence" in name]
    step = [name for name in kernels if name.startswith(PREFIXES) and name not in sequence + AGAIN]
    kernels.clear()
    assert bool(sequence) != bool(step), (sequence, step)
    return SEQUENCE if sequence else ALTERNATING


@needs_triton
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("asked", [None, SEQUENCE, ALTERNATING])
@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize("cell", CELLS)
def test_triton_launches_what_explain_names(
    kernels: list[str], cell: str, small: bool, asked: str | None, recompute: bool, lengths: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if asked is not None:
        monkeypatch.setenv("FRD_TRITON_SCHEDULE", asked)
    if not small:
        monkeypatch.setattr(schedules, "SEQUENCE_BYTES", 0)
    rnn = module(cell, {"zoneout_h": 0.2}, (3, 4, 2), layers=1, backend="triton", recompute=recompute)
    if cell == "LSTM_proj" and asked == SEQUENCE:
        for run in (lambda: named(rnn, inputs_for(rnn, T, B)[0]), lambda: forward_and_backward(rnn, lengths)):
            with pytest.raises(ValueError, match="FRD_TRITON_SCHEDULE asks for the sequence schedule: a projection"):
                run()
        return
    x, backward = forward_and_backward(rnn, lengths)
    name = named(rnn, x)
    assert of_steps(kernels) == name
    backward()
    assert of_steps(kernels) == name
    want = asked or (SEQUENCE if small and cell != "LSTM_proj" else ALTERNATING)
    assert name == want


@needs_triton
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_backward_runs_the_schedule_of_its_forward(
    kernels: list[str], cell: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for meanwhile."""
    torch.compiler.reset()
    rnn = module(cell, {"zoneout_h": 0.2}, (3, 4, 2), layers=1, backend="triton")
    x, _ = inputs_for(rnn, T, B)
    run = torch.compile(rnn, backend="aot_eager", fullgraph=True) if compiled else rnn
    for name, other in ((SEQUENCE, ALTERNATING), (ALTERNATING, SEQUENCE)):
        monkeypatch.setenv("FRD_TRITON_SCHEDULE", name)
        out = run(x)[0]
        assert named(rnn, x) == of_steps(kernels) == name
        monkeypatch.setenv("FRD_TRITON_SCHEDULE", other)
        out.sum().backward()
        assert of_steps(kernels) == name


@needs_triton
def test_an_operator_refuses_a_schedule_that_cannot_run() -> None:
    """Whoever calls it by hand: a number that no schedule has, or one that this layer has an obstacle for."""
    rnn = frd.LSTM(3, 4, proj_size=2)
    x, h0, c0 = torch.zeros(T, B, 3), torch.zeros(B, 2), torch.zeros(B, 4)
    weights = [w.detach() for w in rnn._flat_weights]

    def run(number: int, directions: int = 1) -> Any:
        given = (x, [h0, c0] * directions, weights * directions, None, None, None, None, torch.float32, 0, 0)
        return torch.ops.fused_rnn_dropout.triton_layer(0, *given, 1 if directions == 1 else 3, 0, number, 1)

    run(0)
    for directions in (1, 2):
        with pytest.raises(RuntimeError, match="schedule asks for the sequence schedule: a projection needs a product"):
            run(1, directions)
    for number in (2, -1):
        with pytest.raises(RuntimeError, match=rf"schedule must be one of \[0, 1\], got {number}"):
            run(number)


def on_a_device(packed: bool, **kwargs: Any) -> Layers:
    """Layers of an LSTM on a device that is not there."""
    rnn = frd.LSTM(3, 4, device="meta", **kwargs)
    with FakeTensorMode():
        x = torch.empty((T * B, 3) if packed else (T, B, 3), device="cuda")
    weights = split_weights(rnn._flat_weights, 1, True, False)
    return Layers(rnn._plan, True, False, x, T, packed, x.dtype, weights, B)


@pytest.mark.parametrize("packed", [False, True])
def test_a_packed_batch_in_a_graph(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table of rows comes from the host, once."""
    layers = on_a_device(packed)
    assert schedules.choose("triton", layers).schedule.name == SEQUENCE
    with monkeypatch.context() as context:
        context.setattr(cudnn_library, "capturing", lambda device: True)
        found = schedules.choose("triton", layers)
        assert found.schedule.name == (ALTERNATING if packed else SEQUENCE)
        if packed:
            assert found.walk[SEQUENCE].startswith("not taken, a graph is being captured, and a packed batch's table")
            context.setenv("FRD_TRITON_SCHEDULE", SEQUENCE)
            with pytest.raises(ValueError, match="asks for the sequence schedule: a graph is being captured"):
                schedules.choose("triton", layers)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # a graph may capture such code later
    assert schedules.choose("triton", layers).schedule.name == (ALTERNATING if packed else SEQUENCE)
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", SEQUENCE)
    assert schedules.choose("triton", layers).schedule.name == SEQUENCE


# --------------------------------------------------------------------------------------------------------------------
# A GPU's, on the host
# --------------------------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Writes down the operators of this package that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fused_rnn_dropout":
            self.seen.append(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))

    def schedule(self) -> str:
        """The one whose operators ran; forgets them."""
        seen, self.seen = self.seen, []
        weights = [name for name in seen if name.startswith("masked_weights")]
        layers = [name for name in seen if name.startswith("layer")]
        assert bool(weights) != bool(layers), seen
        return CUDNN if weights else ALTERNATING


CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "weight": {"weight_dropout": 0.4},
    "around": {"input_dropout": 0.2, "output_dropout": 0.3},
    "between": {"inter_layer_dropout": 0.2},
    "hidden": {"hidden_dropout": 0.2},
    "update": {"update_dropout": 0.2},
    "update_paper": {"update_dropout": frd.UpdateDropout(0.2, scale="paper")},
    "cell": {"cell_dropout": 0.2},
    "zoneout": {"zoneout_h": 0.2},
}
INSIDE = ("hidden", "update", "update_paper", "cell", "zoneout")


@pytest.fixture
def on_host() -> Iterator[None]:
    with host_run.run_on_host():
        yield


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("cell", "sites"), [(c, name) for c in CELLS for name, of in CASES.items() if fits(c, of)])
def test_cuda_runs_what_explain_names(
    on_host: None, cell: str, sites: str, training: bool, recompute: bool, lengths: list[int] | None
) -> None:
    rnn = module(cell, CASES[sites], (3, 4, 2), backend="cuda", recompute=recompute).train(training)
    with Operators() as operators:
        x, backward = forward_and_backward(rnn, lengths)
        name = named(rnn, x)
        assert operators.schedule() == name
        backward()
        assert operators.schedule() == name
    assert bool(host_run.stand_in().log) == (name == CUDNN)
    acts = sites in (INSIDE if training else ("update_paper", "zoneout"))
    assert name == (ALTERNATING if acts or recompute else CUDNN)


def test_explain_prints_the_walk(on_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(**kwargs: Any) -> str:
        rnn = frd.GRU(3, 4, **kwargs)
        (line,) = [line for line in str(frd.explain(rnn, torch.zeros(T, B, 3))).splitlines() if "  walk " in line]
        return line.removeprefix("  walk       ")

    hidden: dict[str, Any] = {"hidden_dropout": 0.5, "backend": "cuda"}
    why = (
        "cuDNN with masked weights: not taken, hidden_dropout acts inside a step; persistent: not taken, it runs only "
        "where FRD_CUDA_SCHEDULE asks for it or a table of the device's times names it; alternating: taken"
    )
    assert walk(**hidden) == why
    assert walk(backend="cuda") == "cuDNN with masked weights: taken"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert walk(backend="triton") == "sequence: taken"
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", ALTERNATING)
    assert walk(backend="triton") == "sequence: not taken, FRD_TRITON_SCHEDULE asks for alternating; alternating: taken"
    assert walk(**hidden) == why


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("asked", ["persistent", "alternating"])
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_cuda_runs_what_is_asked_for(
    on_host: None, cell: str, asked: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, and the backward that belongs to it, whatever is asked for meanwhile."""
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", asked)
    rnn = module(cell, {}, (3, 4, 2), backend="cuda", dtype=torch.float32)
    shim = host_run.host_module()

    def ran() -> str:
        return PERSISTENT if "persistent_kernel" in shim.take_launches() else ALTERNATING

    shim.take_launches()
    x, backward = forward_and_backward(rnn, lengths)
    assert named(rnn, x) == ran() == asked
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "alternating" if asked == "persistent" else "persistent")
    backward()
    assert ran() == asked


def test_cuda_is_asked_for_a_schedule_by_name(on_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = frd.GRU(3, 4, hidden_dropout=0.5, backend="cuda")
    x = torch.zeros(T, B, 3)
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "quick")
    with pytest.raises(
        ValueError, match="FRD_CUDA_SCHEDULE should be one of alternating, cudnn, persistent, got 'quick'"
    ):
        rnn(x)
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "cudnn")
    with pytest.raises(
        ValueError, match="asks for the cuDNN with masked weights schedule: hidden_dropout acts inside a"
    ):
        rnn(x)
    assert named(frd.GRU(3, 4, backend="cuda"), x) == CUDNN
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "persistent")
    told = frd.explain(rnn, x).schedule
    assert "forward: 1 blocks of 4 units x 4 rows" in told and "backward: 1 blocks" in told and "3xTF32" in told
    with torch.no_grad():
        assert "backward" not in frd.explain(rnn, x).schedule
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="asks for the persistent schedule: a tracer runs, which asks no device"):
        rnn(x)
