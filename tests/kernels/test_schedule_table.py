"""FRD_SCHEDULE_TABLE: what a device's times say is what runs; a file that is no table is refused before any kernel."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import host_run
import pytest
import torch
from grids import UNPROJECTED, module
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library, schedule_table, schedules
from fused_rnn_dropout.cells import CELLS
from fused_rnn_dropout.schedules import ALTERNATING, CUDNN, PERSISTENT, SEQUENCE

H, T, B, INPUTS = 4, 3, 5, 3
ROW: dict[str, Any] = {
    "device": "cpu",  # which the tests' modules are on while a GPU's kernels run on the host
    "backend": "cuda",
    "cell": "GRU",
    "dtype": "float32",
    "directions": 1,
    "inside": True,
    "gradients": True,
    "hidden_size": [4, 8],
    "batch": [2, 5],
    "steps": [3, 9],
    "schedule": "persistent",
    "microseconds": {"persistent": [1, 1.5], "alternating": [4, 6]},
}
"""Of ``layer()`` in training."""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a table, of a name of its own since each file is read once, and has the variable name it."""
    for variable in schedules.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)

    def made(*rows: Any, text: str | None = None, **more: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"version": 1, "rows": rows, **more}) if text is None else text)
        monkeypatch.setenv("FRD_SCHEDULE_TABLE", str(path))
        return path

    return made


@pytest.fixture
def on_host() -> Iterator[None]:
    with host_run.run_on_host():
        yield


def layer(cell: str = "GRU", sites: dict[str, Any] | None = None, **options: Any) -> Any:
    options = {"backend": "cuda", "layers": 1, "directions": 1, **options}
    directions = options.pop("directions")
    rnn = module(cell, {"zoneout_h": 0.2} if sites is None else sites, (INPUTS, H, 2), bidirectional=directions == 2,
                 dtype=torch.float32, **options)  # fmt: skip
    return rnn.train()


def told(rnn: Any, steps: int = T, batch: int = B) -> tuple[str, str, dict[str, str]]:
    """What ``explain`` says: the name of the schedule, why, and the walk."""
    found = frd.explain(rnn, torch.zeros(steps, batch, INPUTS))
    (name,) = [name for name, what in found.walk.items() if what == "taken"]
    return name, found.schedule, dict(found.walk)


# --------------------------------------------------------------------------------------------------------------------
# The choice
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", UNPROJECTED)
def test_what_the_table_names_runs(on_host: None, write: Write, cell: str) -> None:
    """Forward and backward."""
    shim = host_run.host_module()
    rnn = layer(cell)
    for schedule in ("persistent", "alternating"):
        write({**ROW, "cell": rnn.mode, "schedule": schedule})
        shim.take_launches()
        out, _ = rnn(torch.zeros(T, B, INPUTS))
        for _ in range(2):
            assert ("persistent_kernel" in shim.take_launches()) == (schedule == "persistent")
            out.sum().backward(retain_graph=True)
        name, why, walk = told(rnn)
        assert name == schedule
        assert "(the table of cpu, in us a step: persistent 1 to 1.5, alternating 4 to 6)" in why
        others = {other: what for other, what in walk.items() if other != name}
        assert set(others.values()) == {f"not taken, the table names {schedule}"}


def test_it_goes_before_the_order_of_the_rows(on_host: None, write: Write) -> None:
    """cuDNN, which would be taken by itself, where no site acts inside a step."""
    rnn = layer(sites={"weight_dropout": 0.5})
    assert told(rnn)[0] == CUDNN
    row = {**ROW, "inside": False, "microseconds": {"persistent": [1, 2], "alternating": [3, 4], "cudnn": [1, 1]}}
    for schedule, name in (("persistent", PERSISTENT), ("alternating", ALTERNATING), ("cudnn", CUDNN)):
        write({**row, "schedule": schedule})
        assert told(rnn)[0] == name
    write({**ROW, "schedule": "persistent"})  # of layers with such a site
    name, why, _ = told(rnn)
    assert name == CUDNN and "no site acts inside a step; the table of cpu has no layer of this kind and size" in why


BESIDE: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "another cell": ({"cell": "LSTM"}, layer),
    "another dtype": ({"dtype": "bfloat16"}, layer),
    "two directions": ({"directions": 2}, layer),
    "one direction": ({}, lambda: layer(directions=2)),
    "no site inside": ({"inside": False}, layer),
    "without gradients": ({"gradients": False}, layer),
    "fewer units": ({"hidden_size": [1, 3]}, layer),
    "more units": ({"hidden_size": [5, 9]}, layer),
    "fewer rows": ({"batch": [1, 4]}, layer),
    "more rows": ({"batch": [6, 6]}, layer),
    "fewer steps": ({"steps": [1, 2]}, layer),
    "more steps": ({"steps": [4, 4]}, layer),
}


@pytest.mark.parametrize("what", BESIDE)
def test_a_row_speaks_for_its_own_layers_alone(on_host: None, write: Write, what: str) -> None:
    change, made = BESIDE[what]
    write({**ROW, **change})
    name, why, walk = told(made())
    assert name == ALTERNATING and "the table of cpu has no layer of this kind and size" in why
    assert walk[PERSISTENT].startswith("not taken, it runs only where FRD_CUDA_SCHEDULE asks for it or a table")


def test_bounds_are_within(on_host: None, write: Write) -> None:
    for change in ({"hidden_size": [4, 4]}, {"batch": [5, 5]}, {"steps": [3, 3]}, {"steps": [1, 3]}):
        write({**ROW, **change})
        assert told(layer())[0] == PERSISTENT


def test_the_first_row_that_holds_a_layer_counts(on_host: None, write: Write) -> None:
    apart, other = {**ROW, "batch": [9, 9]}, {**ROW, "schedule": "alternating"}
    write(apart, other, ROW)
    assert "(the table of cpu" in told(layer())[1] and told(layer())[0] == ALTERNATING
    write(apart, ROW, other)
    assert told(layer())[0] == PERSISTENT


def test_gradients_are_of_the_call(on_host: None, write: Write) -> None:
    write({**ROW, "gradients": False})
    with torch.no_grad():
        assert told(layer())[0] == PERSISTENT
    assert told(layer())[0] == ALTERNATING


def test_another_device_s_table_is_passed_over(on_host: None, write: Write) -> None:
    write({**ROW, "device": "Made-up GPU"}, {**ROW, "device": "Another"})
    name, why, _ = told(layer())
    assert name == ALTERNATING
    assert "FRD_SCHEDULE_TABLE has nothing of cpu, but of Another, Made-up GPU)" in why
    write()
    assert "has nothing of cpu, but of no device" in told(layer())[1]


def test_what_cannot_run_is_passed_over_with_its_reason(on_host: None, write: Write) -> None:
    """A table is no request: what is asked for by name raises instead."""
    write({**ROW, "cell": "LSTM"})
    name, why, _ = told(layer("LSTM_proj"))
    assert name == ALTERNATING and "; persistent was the fastest, but forward, a projection: h has not the" in why


def test_what_is_asked_for_by_name_goes_first(on_host: None, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ROW)
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "alternating")
    name, why, _ = told(layer())
    assert name == ALTERNATING and "(FRD_CUDA_SCHEDULE asks for it)" in why
    write(text="no table")  # is not read then
    assert told(layer())[0] == ALTERNATING


def test_packed_batches_were_not_measured(on_host: None, write: Write) -> None:
    write(ROW)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(T, B, INPUTS), torch.tensor([T] * B))
    found = frd.explain(layer(), packed)
    assert found.schedule.startswith("alternating") and "FRD_SCHEDULE_TABLE is about padded batches" in found.schedule


def test_a_tracer_reads_no_file(on_host: None, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ROW)
    rnn = layer()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        name, why, _ = told(rnn)
        assert name == ALTERNATING and "a tracer runs, which does not read FRD_SCHEDULE_TABLE" in why
    out = torch.compile(rnn, backend="aot_eager", fullgraph=True)(torch.zeros(T, B, INPUTS))[0]
    assert out.shape == (T, B, H)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_triton_s_schedules_too(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where W_hh is as small as the sequence schedule is for, and where it is larger."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    times = {"sequence": [1, 2], "alternating": [1, 2]}
    rnn = layer(backend="triton")
    for bytes_worth in (0, 2**20):
        monkeypatch.setattr(schedules, "SEQUENCE_BYTES", bytes_worth)
        for schedule, name in (("sequence", SEQUENCE), ("alternating", ALTERNATING)):
            write(ROW, {**ROW, "backend": "triton", "schedule": schedule, "microseconds": times})
            assert told(rnn)[0] == name


def test_the_cpu_has_one_schedule_and_reads_no_table(write: Write) -> None:
    write(text="no table")
    frd.GRU(3, 4, backend="cpu")(torch.zeros(T, B, 3))


def test_the_name_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: asked.append(index) or f"GPU {index}")
    schedule_table._gpu_name.cache_clear()
    with FakeTensorMode():
        device = torch.empty(1, device="cuda").device
    assert [schedule_table.device_name(device) for _ in range(3)] == ["GPU 0"] * 3 and asked == [0]
    schedule_table._gpu_name.cache_clear()


# --------------------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------------------


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != key}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not JSON": ({"text": "{"}, "is not JSON"),
    "an array": ({"text": "[]"}, 'should be an object with "version" and "rows"'),
    "no rows": ({"text": '{"version": 1}'}, 'should be an object with "version" and "rows"'),
    "no version": ({"text": '{"rows": []}'}, "should have version 1, got None"),
    "another version": ({"version": 2}, "should have version 1, got 2"),
    "a version that is true": ({"version": True}, "should have version 1, got True"),
    "an unknown key": ({"color": "red"}, "has the unknown key 'color'; allowed are version, about, rows"),
    "a row that is none": ({"row": 3}, r"rows\[1\] should be an object, got 3"),
    "an unknown key of a row": ({"row": {**ROW, "hidden": 3}}, r"rows\[1\] has the unknown key 'hidden'; allowed are"),
    "a key that lacks": ({"row": without("steps")}, r"rows\[1\] lacks steps"),
    "times that lack": ({"row": {**ROW, "microseconds": {"alternating": [1, 2]}}}, "its schedule, persistent, got alt"),
    "times that are none": ({"row": {**ROW, "microseconds": {"persistent": "1"}}}, "for each schedule, got {'persi"),
    "times out of order": ({"row": {**ROW, "microseconds": {"persistent": [2, 1]}}}, "for each schedule, got"),
    "times without end": ({"row": {**ROW, "microseconds": {"persistent": [1, float("inf")]}}}, "for each schedule"),
    **{
        f"{key} {value!r}": ({"row": {**ROW, key: value}}, rf"rows\[1\] {key} should be")
        for key, values in {
            "device": (0,),
            "backend": ("cpu", None),
            "cell": ("LSTMCell", ["GRU"]),
            "dtype": ("torch.float32", "int8"),
            "directions": (3, True, 1.0),
            "inside": (1, "yes"),
            "gradients": (0,),
            "hidden_size": (4, [4], [8, 4], [0, 4], [4.0, 8.0], [True, 4]),
            "batch": ([1, None],),
            "steps": ({}, [1, 2, 3]),
            "schedule": ("sequence", "cuDNN with masked weights"),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_no_table_is_refused_by_name(on_host: None, write: Write, what: str) -> None:
    """By a call, before any kernel runs, and by ``explain``."""
    given, said = WRONG[what]
    given = dict(given)
    path = write(ROW, *([given.pop("row")] if "row" in given else []), **given)
    rnn, shim = layer(), host_run.host_module()
    shim.take_launches()
    for run in (lambda: rnn(torch.zeros(T, B, INPUTS)), lambda: told(rnn)):
        with pytest.raises(ValueError, match=f"the environment variable FRD_SCHEDULE_TABLE: {path} ") as error:
            run()
        error.match(said)
    assert not shim.take_launches()


def test_a_file_that_cannot_be_read(on_host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        monkeypatch.setenv("FRD_SCHEDULE_TABLE", str(path))
        with pytest.raises(ValueError, match=rf"FRD_SCHEDULE_TABLE: {path} cannot be read \({why}"):
            told(layer())


def test_what_is_written_is_read() -> None:
    kind = schedule_table.Kind("a GPU", "triton", "LSTM", "bfloat16", 2, False, True)
    rows = [
        schedule_table.Row(kind, (1, 2), (3, 4), (5, 6), "sequence", {"sequence": (0.5, 1.0), "alternating": (2, 3)}),
        schedule_table.Row(kind._replace(backend="cuda"), (1, 1), (1, 1), (1, 1), "cudnn", {"cudnn": (0.0, 0.0)}),
    ]
    for some in (rows, rows[:1], []):
        text = schedule_table.text_of(some, {"torch": "2.14"})
        assert json.loads(text)["about"] == {"torch": "2.14"}
        table = schedule_table.parse(text, schedules.NAMES, tuple(CELLS))
        assert [row for of in table.values() for row in of] == some


def test_a_file_is_read_once(on_host: None, write: Write) -> None:
    path = write(ROW)
    assert told(layer())[0] == PERSISTENT
    path.write_text("no table")
    assert told(layer())[0] == PERSISTENT


def test_without_a_table_nothing_is_read(on_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("FRD_SCHEDULE_TABLE", raising=False)
        else:
            monkeypatch.setenv("FRD_SCHEDULE_TABLE", value)
        name, why, _ = told(layer())
        assert name == ALTERNATING and "TABLE" not in why and "table of cpu" not in why


@pytest.mark.usefixtures("on_host")
def test_cudnn_s_refusal_is_an_obstacle_here_too(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write({**ROW, "inside": False, "schedule": "cudnn", "microseconds": {"cudnn": [1, 1]}})
    monkeypatch.setattr(cudnn_library, "obstacle", lambda *_: "it is not there")
    name, why, _ = told(layer(sites={}))
    assert name == ALTERNATING and "; cudnn was the fastest, but it is not there" in why
