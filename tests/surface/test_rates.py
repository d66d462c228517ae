"""The options are the only truth about rates: whoever loads, copies, averages or moves a module changes none."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.export import export
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import CELLS, MODULES
from fused_rnn_dropout.sites import SITE_INDEX

T, B, I, H = 7, 3, 5, 40
RNG = torch.tensor([3, 4])
DATA = Path(__file__).parents[1] / "data"


def build(cell: str, **kwargs: Any) -> Any:
    return getattr(frd, cell)(I, H, **{"weight_dropout": 0.4, "zoneout_h": 0.3, **kwargs})


def inputs() -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(0))


def flat(result: Any) -> list[Tensor]:
    out, last = result
    return [out, *(last if isinstance(last, tuple) else (last,))]


def assert_same_function(mine: nn.Module, other: nn.Module) -> None:
    """The same outputs in training and in eval, where zoneout acts, and the same masks."""
    x = inputs()
    for training in (True, False):
        mine.train(training), other.train(training)
        for a, b in zip(flat(mine(x, rng=RNG)), flat(other(x, rng=RNG)), strict=True):
            assert torch.equal(a, b), f"differs by {(a - b).abs().max()} with training={training}"
        masks, right = (frd.export_masks(rnn, x, RNG) for rnn in (mine, other))
        assert masks.keys() == right.keys() and all(torch.equal(masks[name], right[name]) for name in right)
    mine.train(), other.train()


def assert_right(rnn: Any) -> None:
    """What ``rnn`` computes is what a new module with its weights and its options computes."""
    fresh = getattr(frd, CELLS[rnn.mode].module)(rnn.input_size, rnn.hidden_size, **dict(rnn.sites))
    fresh.load_state_dict(rnn.state_dict())
    assert_same_function(rnn, fresh)


# --------------------------------------------------------------------------------------------------------------------
# Loaders
# --------------------------------------------------------------------------------------------------------------------


def _by_attribute(rnn: nn.Module, source: nn.Module) -> None:
    for name, weight in source.named_parameters():
        setattr(rnn, name, nn.Parameter(weight.detach().clone()))


def _in_the_dictionary(rnn: nn.Module, source: nn.Module) -> None:
    for name, weight in source.named_parameters():
        rnn._parameters[name] = nn.Parameter(weight.detach().clone())


def _to_empty(rnn: nn.Module, source: nn.Module) -> None:
    rnn.to_empty(device="cpu").load_state_dict(source.state_dict())


def _assign(rnn: nn.Module, source: nn.Module) -> None:
    rnn.load_state_dict(source.state_dict(), assign=True)


def _swapped(rnn: nn.Module, source: nn.Module) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        rnn.to_empty(device="cpu").double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    rnn.load_state_dict(source.state_dict())


LOADERS = (_by_attribute, _in_the_dictionary, _to_empty, _assign, _swapped)
PLACES = {"meta": functools.partial(torch.device, "meta"), "fake": FakeTensorMode}


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__.strip("_"))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("converted", [False, True], ids=["made", "converted"])
@pytest.mark.parametrize("cell", MODULES)
def test_loaded_by_whoever_allocates_every_buffer(cell: str, converted: bool, place: str, load: Any) -> None:
    source = build(cell)
    if place == "fake" and load not in (_by_attribute, _in_the_dictionary, _assign):
        pytest.skip("a fake tensor has no to_empty on a real device")
    with PLACES[place]():
        rnn = frd.convert(getattr(nn, cell)(I, H), weight_dropout=0.4, zoneout_h=0.3) if converted else build(cell)
    for name, buffer in list(rnn.named_buffers()):
        rnn._buffers[name] = torch.zeros_like(buffer, device="cpu")
    load(rnn, source)
    assert_same_function(rnn, source)
    rnn.set_rate("weight_dropout", 0.7)
    source.set_rate("weight_dropout", 0.7)
    assert_same_function(rnn, source)


@pytest.mark.parametrize("cell", MODULES)
def test_a_rate_set_before_the_weights_are_there(cell: str) -> None:
    with torch.device("meta"):
        rnn = build(cell)
    rnn.weight_dropout = 0.6
    rnn.hidden_dropout = 0.2
    _by_attribute(rnn, build(cell))
    assert_right(rnn)


@pytest.mark.parametrize("cell", MODULES)
def test_weights_that_come_for_a_call_and_go(cell: str) -> None:
    """As with offloading: on the meta device between calls, where rates are set."""
    rnn, source = build(cell), build(cell)
    for rate in (0.4, 0.1, 0.8):
        for name in dict(source.named_parameters()):
            rnn._parameters[name] = nn.Parameter(torch.empty_like(rnn._parameters[name], device="meta"))
        rnn.set_rate("weight_dropout", rate)
        source.set_rate("weight_dropout", rate)
        _in_the_dictionary(rnn, source)
        assert_same_function(rnn, source)


@pytest.mark.parametrize("cell", MODULES)
def test_weights_that_are_no_parameters(cell: str) -> None:
    """As FSDP and functional code hold them: tensors set for a call, and nothing between calls."""
    rnn, source = build(cell), build(cell)
    weights = {name: weight.detach() for name, weight in source.named_parameters()}
    for name in weights:
        delattr(rnn, name)
    rnn.double().float()
    rnn.set_rate("weight_dropout", 0.8)
    source.set_rate("weight_dropout", 0.8)
    for name, weight in weights.items():
        setattr(rnn, name, weight)
    assert_same_function(rnn, source)


@pytest.mark.parametrize("cell", MODULES)
def test_moved_and_cast(cell: str) -> None:
    rnn = build(cell)
    for move in (nn.Module.bfloat16, nn.Module.double, nn.Module.float, nn.Module.share_memory):
        move(rnn)
    assert_right(rnn)
    rnn.to("meta").to_empty(device="cpu").reset_parameters()
    assert_right(rnn)


@pytest.mark.parametrize("cell", MODULES)
def test_no_buffer_and_no_parameter(cell: str) -> None:
    rnn, theirs = build(cell), getattr(nn, cell)(I, H)
    assert list(rnn.named_buffers()) == [] and list(rnn.state_dict()) == list(theirs.state_dict())
    assert list(dict(rnn.named_parameters())) == list(dict(theirs.named_parameters()))
    reverted = frd.revert(rnn)
    assert reverted.__dict__.keys() == theirs.__dict__.keys()


# --------------------------------------------------------------------------------------------------------------------
# Copies
# --------------------------------------------------------------------------------------------------------------------


def _saved(rnn: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(rnn, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _parametrised(rnn: nn.Module) -> nn.Module:
    parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Identity())
    return copy.deepcopy(rnn)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda rnn: pickle.loads(pickle.dumps(rnn)),
    "save": _saved,
    "parametrised": _parametrised,
    "averaged": lambda rnn: AveragedModel(rnn).module,
}


def numbers(rnn: Any) -> list[int]:
    return rnn._thresholds_on(torch.device("cpu")).tolist()


@pytest.mark.parametrize("made", COPIES)
@pytest.mark.parametrize("cell", MODULES)
def test_a_copy_and_its_original_do_not_move_each_other(cell: str, made: str) -> None:
    rnn = build(cell)
    twin = COPIES[made](rnn)
    index = SITE_INDEX["weight_dropout"]
    for moved, other in ((rnn, twin), (twin, rnn)):
        for rate, change in (
            (0.125, lambda: moved.set_rate("weight_dropout", 0.125)),  # noqa: B023  called at once
            (0.25, lambda: setattr(moved, "weight_dropout", 0.25)),  # noqa: B023
        ):
            before = numbers(other), other.weight_dropout, dict(other.sites)
            change()
            assert moved.weight_dropout == rate and numbers(moved)[index] == round(rate * 2**32)
            assert (numbers(other), other.weight_dropout, dict(other.sites)) == before
        moved.weight_dropout = 0.4
    rnn.hidden_dropout = 0.5
    assert twin._plan.hidden_dropout is None and twin.hidden_dropout == 0.0
    assert numbers(twin)[SITE_INDEX["hidden_dropout"]] == 0


@pytest.mark.parametrize("cell", MODULES)
def test_copies_in_inference_mode_take_new_rates(cell: str) -> None:
    with torch.inference_mode():
        rnn = copy.deepcopy(build(cell))
        rnn.weight_dropout = 0.1
    rnn.weight_dropout = 0.6
    with torch.inference_mode():
        rnn.set_rate("zoneout_h", 0.1)
    index = SITE_INDEX["weight_dropout"]
    assert numbers(rnn)[index] == round(0.6 * 2**32)
    fresh = build(cell, weight_dropout=0.6, zoneout_h=0.1)
    _by_attribute(rnn, fresh)
    assert_same_function(rnn, fresh)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("cell", MODULES)
def test_an_averaged_copy_runs_at_the_rate_that_it_shows(cell: str, use_buffers: bool) -> None:
    model = nn.Sequential(build(cell))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    for rate in (0.1, 0.8):
        model[0].set_rate("zoneout_h", rate)
        averaged.update_parameters(model)
    mine = averaged.module[0]
    assert mine.zoneout_h == 0.3
    assert_right(mine)
    before = mine.eval()(inputs())[0]
    averaged.to("cpu")
    assert torch.equal(mine(inputs())[0], before)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])  # there was no RNN
def test_a_module_that_0_1_pickled(cell: str) -> None:
    """There the thresholds were a buffer. Its masks were others, so a new module says what is right."""
    rnn = torch.load(DATA / "modules_0_1.pt", weights_only=False)[cell]
    assert list(rnn.named_buffers()) == [] and "_thresholds" not in rnn._non_persistent_buffers_set
    if cell == "LSTM":
        sites = {
            "inter_layer_dropout": 0.3, "weight_dropout": frd.WeightDropout(0.5, mode="row", projection=True),
            "zoneout_c": 0.25, "zoneout_h": frd.Zoneout(0.125, output="unzoned"),
        }  # fmt: skip
        fresh = frd.LSTM(5, 6, 2, bidirectional=True, proj_size=3, mc=True, **sites)  # type: ignore[arg-type]
    else:
        sites = {
            "hidden_dropout": 0.5, "update_dropout": frd.UpdateDropout(0.25, scale="paper"),
            "zoneout_h": frd.Zoneout(0.75, per="sequence"),
        }  # fmt: skip
        fresh = frd.GRU(5, 6, recompute=True, **sites)  # type: ignore[arg-type]
    fresh.load_state_dict(rnn.state_dict())
    assert repr(rnn) == repr(fresh) and dict(rnn.sites) == dict(fresh.sites) and rnn._plan == fresh._plan
    assert_same_function(rnn, fresh)
    rnn.set_rate("zoneout_h", 0.5)
    fresh.set_rate("zoneout_h", 0.5)
    assert_same_function(pickle.loads(pickle.dumps(rnn)), fresh)


# --------------------------------------------------------------------------------------------------------------------
# One tensor, in place
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_the_tensor_stays_the_one_that_a_captured_graph_reads(cell: str) -> None:
    rnn = build(cell)
    x = inputs()
    rnn(x)
    address, tensor = rnn._thresholds.data_ptr(), rnn._thresholds
    meta = {name: weight.to("meta") for name, weight in rnn.named_parameters()}
    elsewhere = lambda: functional_call(rnn, meta, (x.to("meta"),), {"rng": RNG.to("meta")})  # noqa: E731
    for change in (
        lambda: rnn.set_rate("weight_dropout", 0.1),
        lambda: setattr(rnn, "weight_dropout", 0.2),
        lambda: setattr(rnn, "weight_dropout", frd.WeightDropout(0.7)),
        lambda: rnn.double().float(),
        lambda: rnn.load_state_dict(rnn.state_dict(), assign=True),
        lambda: rnn.eval()(x),
        lambda: rnn.train()(x),
        elsewhere,  # and back
        lambda: (elsewhere(), rnn.load_state_dict(rnn.state_dict())),
        lambda: (elsewhere(), rnn.double().float()),
    ):
        change()
        rnn(x)
        assert rnn._thresholds is tensor and tensor.data_ptr() == address
    assert tensor[SITE_INDEX["weight_dropout"]] == round(0.7 * 2**32)


@pytest.mark.parametrize("cell", MODULES)
def test_a_rate_set_while_calls_compute_elsewhere_acts_where_a_graph_was_captured(cell: str) -> None:
    rnn, x = build(cell), inputs()
    tensor = rnn._thresholds
    meta = {name: weight.to("meta") for name, weight in rnn.named_parameters()}
    functional_call(rnn, meta, (x.to("meta"),), {"rng": RNG.to("meta")})
    rnn.set_rate("weight_dropout", 0.75)
    assert tensor[SITE_INDEX["weight_dropout"]] == 3 * 2**30


@pytest.mark.parametrize("cell", MODULES)
def test_a_call_makes_no_tensor_of_rates(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = build(cell)
    monkeypatch.setattr(frd.modules.RegularizedRNN, "_rates", lambda self: pytest.fail("the rates are written again"))
    rnn(inputs())
    rnn.eval()(inputs())


@pytest.mark.parametrize("cell", MODULES)
def test_replicas_in_threads(cell: str) -> None:
    """Two replicas on a device that is not the original's, as ``nn.parallel.replicate`` makes them."""
    with torch.device("meta"):
        rnn = build(cell)
    sources = [build(cell) for _ in range(2)]
    replicas = []
    for source in sources:
        replica = rnn._replicate_for_data_parallel()
        for name, weight in source.named_parameters():
            setattr(replica, name, weight * 1.0)
        replicas.append(replica)
    found: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [replicas[n](inputs(), rng=RNG)[0] for _ in range(20)]}))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, source in enumerate(sources):
        assert all(torch.equal(out, source(inputs(), rng=RNG)[0]) for out in found[n])
        (gradient,) = torch.autograd.grad(found[n][0].sum(), source.weight_hh_l0)
        assert torch.count_nonzero(gradient) > 0
    replicas[0].set_rate("weight_dropout", 0.9)  # lost with the replica, as all that is set on one
    assert rnn.weight_dropout == replicas[1].weight_dropout == 0.4 and numbers(rnn) == numbers(replicas[1])
    assert torch.equal(replicas[1](inputs(), rng=RNG)[0], sources[1](inputs(), rng=RNG)[0])
    sources[0].set_rate("weight_dropout", 0.9)
    assert torch.equal(replicas[0](inputs(), rng=RNG)[0], sources[0](inputs(), rng=RNG)[0])


# --------------------------------------------------------------------------------------------------------------------
# torch.func
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_an_ensemble_on_a_skeleton_without_memory(cell: str) -> None:
    models = [build(cell, backend="reference") for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    assert buffers == {}
    base = copy.deepcopy(models[0]).to("meta")

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, weights, (x,), {"rng": RNG})[0]

    x = inputs()
    for _ in range(2):
        outs = vmap(call, in_dims=(0, None))(parameters, x)
        for out, model in zip(outs, models, strict=True):
            torch.testing.assert_close(out, model(x, rng=RNG)[0])
        base.set_rate("weight_dropout", 0.7)
        for model in models:
            model.set_rate("weight_dropout", 0.7)
    weights = {name: weight.detach() for name, weight in models[0].named_parameters()}
    base = copy.deepcopy(models[0]).to("meta")
    gradient = grad(lambda weights: call(weights, x).square().sum())(weights)  # what it makes must not outlive it
    right = torch.autograd.grad(models[0](x, rng=RNG)[0].square().sum(), list(models[0].parameters()))
    torch.testing.assert_close(list(gradient.values()), list(right))
    torch.testing.assert_close(call(weights, x), models[0](x, rng=RNG)[0])


# --------------------------------------------------------------------------------------------------------------------
# Compiled and exported
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    torch.compiler.reset()
    torch.set_num_threads(1)
    return CompileCounterWithBackend("aot_eager")


@pytest.mark.parametrize("cell", MODULES)
def test_a_rate_set_inside_compiled_code(cell: str, counter: CompileCounterWithBackend) -> None:
    rnn, twin = build(cell), build(cell)
    _by_attribute(twin, rnn)

    def by_attribute(rnn: Any, x: Tensor, rate: float) -> list[Tensor]:
        before = rnn(x, rng=RNG)[0]
        rnn.weight_dropout = rate
        return [before, rnn(x, rng=RNG)[0]]

    def by_method(rnn: Any, x: Tensor, rate: float) -> list[Tensor]:
        before = rnn(x, rng=RNG)[0]
        rnn.set_rate("weight_dropout", rate)
        return [before, rnn(x, rng=RNG)[0]]

    x = inputs()
    for change in (by_attribute, by_method):
        compiled = torch.compile(change, backend=counter, fullgraph=True)
        for rate in (0.125, 0.75):
            for mine, right in zip(compiled(rnn, x, rate), change(twin, x, rate), strict=True):
                assert torch.equal(mine, right)
            assert rnn.weight_dropout == rate and numbers(rnn) == numbers(twin)
            assert_same_function(rnn, twin)  # in eager mode after it


@pytest.mark.parametrize("cell", MODULES)
def test_no_recompilation_for_a_rate_where_a_loader_placed_the_weights(
    cell: str, counter: CompileCounterWithBackend
) -> None:
    source = build(cell)
    with torch.device("meta"):
        rnn = build(cell)
    _by_attribute(rnn, source)
    compiled = torch.compile(rnn, backend=counter, fullgraph=True)
    x = inputs()
    for rate in (0.4, 0.1, 0.5, 0.9, 0.3):
        rnn.set_rate("weight_dropout", rate)
        source.set_rate("weight_dropout", rate)
        assert torch.equal(compiled(x, rng=RNG)[0], source(x, rng=RNG)[0])
    assert counter.frame_count <= 2  # the first call makes the tensor


class Wrapped(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, rng: Tensor) -> Tensor:
        return self.rnn(x, rng=rng)[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "placed by a loader"])
@pytest.mark.parametrize("cell", MODULES)
def test_an_exported_program_has_the_rates(cell: str, loaded: bool, strict: bool) -> None:
    rnn = build(cell)
    if loaded:
        source = rnn
        with torch.device("meta"):
            rnn = build(cell)
        _by_attribute(rnn, source)
    model, x = Wrapped(rnn), inputs()
    program = export(model, (x, RNG), strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    expected = model(x, RNG)
    assert torch.equal(program.module()(x, RNG), expected)
    rnn.set_rate("weight_dropout", 0.9)  # what was saved has the rates of its time
    assert torch.equal(torch.export.load(buffer).module()(x, RNG), expected)
    assert type(rnn._thresholds) is Tensor  # none of the tracing is left behind
    assert_right(rnn)


# --------------------------------------------------------------------------------------------------------------------
# Distributed
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("meta", [False, True], ids=["made", "meta"])
@pytest.mark.parametrize("cell", MODULES)
def test_fully_sharded(cell: str, meta: bool, one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    source, x = build(cell), inputs()
    with torch.device("meta" if meta else "cpu"):
        model = nn.Sequential(build(cell))
    if not meta:
        model[0].load_state_dict(source.state_dict())
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    if meta:
        model.to_empty(device="cpu")
        for name, weight in source.named_parameters():
            with torch.no_grad():
                dict(model[0].named_parameters())[name].to_local().copy_(weight)
    for rate in (0.4, 0.8):
        model[0].set_rate("weight_dropout", rate)
        source.set_rate("weight_dropout", rate)
        out = model[0](x, rng=RNG)[0]
        assert torch.equal(out, source(x, rng=RNG)[0])
        out.sum().backward()
    assert list(model.named_buffers()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [False, True], ids=["flat", "use_orig_params"])
@pytest.mark.parametrize("cell", MODULES)
def test_flat_parameters(cell: str, original: bool, one_process: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    source, x = build(cell), inputs()
    rnn = build(cell)
    rnn.load_state_dict(source.state_dict())
    model = FullyShardedDataParallel(rnn, device_id=torch.device("cpu"), use_orig_params=original)
    rnn.set_rate("weight_dropout", 0.8)  # between calls the module has no parameters of its own
    source.set_rate("weight_dropout", 0.8)
    out = model(x, rng=RNG)[0]
    assert torch.equal(out, source(x, rng=RNG)[0])
    out.sum().backward()
    model.float()
    assert torch.equal(model(x, rng=RNG)[0], source(x, rng=RNG)[0])


@pytest.mark.parametrize("cell", MODULES)
def test_distributed_data_parallel(cell: str, one_process: None) -> None:
    rnn, source, x = build(cell), build(cell), inputs()
    rnn.load_state_dict(source.state_dict())
    model = nn.parallel.DistributedDataParallel(rnn)
    for rate in (0.4, 0.8):
        rnn.set_rate("weight_dropout", rate)
        source.set_rate("weight_dropout", rate)
        out = model(x, rng=RNG)[0]
        assert torch.equal(out, source(x, rng=RNG)[0])
        out.sum().backward()


# --------------------------------------------------------------------------------------------------------------------
# Other people's loaders
# --------------------------------------------------------------------------------------------------------------------


def converted_model(cell: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(I, I), getattr(nn, cell)(I, H))
    return frd.convert(model, weight_dropout=0.4, zoneout_h=0.3)


@pytest.mark.parametrize("include_buffers", [False, True])
@pytest.mark.parametrize("cell", MODULES)
def test_accelerate(cell: str, include_buffers: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    source = converted_model(cell)
    torch.save(source.state_dict(), tmp_path / "weights.bin")
    with accelerate.init_empty_weights(include_buffers=include_buffers):
        model = converted_model(cell)
    model = accelerate.load_checkpoint_and_dispatch(model, str(tmp_path / "weights.bin"), device_map={"": "cpu"})
    assert_same_function(model[1], source[1])
    offloaded = accelerate.cpu_offload(copy.deepcopy(source), execution_device=torch.device("cpu"))
    assert offloaded[1].weight_hh_l0.device.type == "meta"
    assert torch.equal(offloaded[1](inputs(), rng=RNG)[0], source[1](inputs(), rng=RNG)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", MODULES)
def test_transformers(cell: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):  # type: ignore[misc, name-defined]
        model_type = "recurrent-for-a-test"

    class Model(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.rnn = build(cell)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            pass

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)

    source = Model(Config())
    source.save_pretrained(tmp_path)
    assert_same_function(Model.from_pretrained(tmp_path).rnn, source.rnn)


# --------------------------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, 2**32 + 1])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_rate_out_of_range_is_named(cell: str, backend: str | None, number: int) -> None:
    """Only who calls the functions below the modules can give one."""
    rnn = build(cell, input_dropout=0.1)
    for name in ("weight_dropout", "zoneout_h", "input_dropout"):
        thresholds = rnn._thresholds.clone()
        thresholds[SITE_INDEX[name]] = number
        message = rf"thresholds must be in .*, got {number} for {name}, whose rate must be in \[0, 1\]"
        with pytest.raises((RuntimeError, ValueError), match=message):
            frd.functional.run(rnn.mode, inputs(), None, rnn._flat_weights, rnn._plan, thresholds, backend=backend)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_thresholds_of_another_kind(backend: str | None) -> None:
    rnn = build("LSTM")
    for thresholds in (rnn._thresholds.float(), rnn._thresholds[:9]):
        with pytest.raises((RuntimeError, ValueError), match="thresholds (should be|must be|must have)"):
            frd.functional.run("LSTM", inputs(), None, rnn._flat_weights, rnn._plan, thresholds, backend=backend)
