"""Drop-in ``LSTM``, ``GRU`` and ``RNN``: torch.nn's modules with every dropout of the RNN literature as a keyword.

They derive from ``nn.RNNBase``, whose parameters, names and checks they keep, and not from ``nn.LSTM``, a subclass of
which ``torch.compile(fullgraph=True)`` refuses. :class:`NNLSTM` and its like are torch.nn's too, at that price.

The constructors call ``nn.RNNBase.__init__`` by name: in a class that derives from nn.LSTM as well, ``super()`` is
nn.LSTM, which puts the mode in front of its arguments once more.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .arguments import Rng, check_rng
from .cells import A_MODULE, CELLS
from .held import Hold, Slot
from .options import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout
from .rnn_base import RegularizedRNN
from .sites import SITE, check_combination, make_spec
from .thresholds import Thresholds


def _keep_order(cls: type, ours: type, theirs: type) -> None:
    """Puts ``ours`` before torch.nn's class in the order in which a new subclass looks for its methods.

    In ``class Mine(Theirs, LSTM)``, where Theirs is an nn.LSTM, Python would look at nn.LSTM first, whose forward knows
    no site. With the class that derives from both in place of LSTM the order is Theirs, LSTM, nn.LSTM.

    Raises:
        TypeError: a class between ``ours`` and ``cls`` stands in the way.
    """
    order = cls.__mro__
    if theirs not in order or order.index(ours) < order.index(theirs):
        return
    both = next(row.both for row in CLASSES if row.ours is ours)
    if ours not in cls.__bases__:
        raise TypeError(
            f"{cls.__name__} would find nn.{theirs.__name__}'s forward before this package's: the class of its bases "
            f"that derives from {ours.__name__} should derive from {both.__name__}"
        )
    cls.__bases__ = tuple(both if base is ours else base for base in cls.__bases__)


def _refuse(cell: str, unsupported: Mapping[str, Any]) -> None:
    """Says why a constructor does not take these keyword arguments.

    Raises:
        ValueError: a projection, or a site that the cell does not have.
        TypeError: any other.
    """
    if "proj_size" in unsupported:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    for name in unsupported:
        if name in SITE:
            check_combination(cell, {name: make_spec(name, 0.0)}, num_layers=1, proj_size=0)
        raise TypeError(f"{CELLS[cell].module} got an unexpected keyword argument {name!r}")


class LSTM(RegularizedRNN):
    """A drop-in for ``torch.nn.LSTM`` with every RNN dropout inside the recurrence.

    Everything up to ``dtype``, positions included, is ``nn.LSTM``'s; ``state_dict`` is the same both ways. The other
    arguments take a rate (the probability to drop; for zoneout to keep the old value) or an options object. Each is an
    attribute too: ``rnn.weight_dropout = 0.3`` changes the rate and keeps the options, 0.0 takes the site away, and
    :meth:`set_rate` changes a rate without recompiling anything.

    Args:
        dropout: between layers, a fresh mask at each step: what ``nn.LSTM`` means by it.
        input_dropout: on the input (Gal & Ghahramani 2016); a rate means ``LockedDropout(p)``, one mask per sequence.
        inter_layer_dropout: between layers, one mask per sequence (Merity et al. 2017).
        output_dropout: on the last layer's output, one mask per sequence; h_n and c_n do not have it.
        hidden_dropout: on h before the recurrent product, one mask per sequence (Gal & Ghahramani 2016).
        weight_dropout: on the recurrent weights of every layer and direction (Wan et al. 2013; Merity et al. 2017).
        update_dropout: on the candidate g (Semeniuta et al. 2016).
        cell_dropout: on the memory c (Moon et al. 2015).
        zoneout_c: keeps old values of c; the expectation in eval (Krueger et al. 2017).
        zoneout_h: keeps old values of h.
        mc: masks on in eval too (MC dropout).
        backend: None for the best fused one that is there, "cpu", "cuda", "triton" or "reference".
        recompute: keep less for backward and compute it again there.

    Raises:
        ValueError: a rate outside [0, 1], options or sites that cannot be combined, an unknown backend.
        TypeError: an argument of the wrong type, such as another site's options object.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _keep_order(cls, LSTM, nn.LSTM)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        inter_layer_dropout: float | LockedDropout = 0.0,
        output_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        cell_dropout: float | CellDropout = 0.0,
        zoneout_c: float | Zoneout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        sites = {
            "dropout": dropout,
            "input_dropout": input_dropout,
            "inter_layer_dropout": inter_layer_dropout,
            "output_dropout": output_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "cell_dropout": cell_dropout,
            "zoneout_c": zoneout_c,
            "zoneout_h": zoneout_h,
        }
        self._configure(sites, mc=mc, backend=backend, recompute=recompute, stacklevel=2)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs the layers over a batch of sequences.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a ``PackedSequence``.
            hx: h_0 (layers * directions, B, P) and c_0 (layers * directions, B, H), without B for an unbatched input;
                zeros if None. P is ``proj_size``, or H without one.
            rng: int64[2] from :func:`draw_rng`, or a dict of such by group of sites with the default under None: the
                same pair gives the same masks. Drawn from torch's generator if None, a site is configured and masks
                are on.
            example_ids: int64 (B,), what the masks of each row are a function of; 0..B-1 if None.
            step_offset: absolute step of the first step, for a sequence that comes in several calls; 0 if None.

        Inside :func:`hold_masks` None, for ``rng`` and ``step_offset``, means what is held there.

        Returns:
            The output, shaped as the input with directions * P features, and (h_n, c_n), shaped as ``hx``.

        Raises:
            RuntimeError, ValueError, TypeError: a bad argument, in ``nn.LSTM``'s words where it has some.
            NotImplementedError: a ``torch.func`` transform on a fused backend.
        """
        out, (h_n, c_n) = self._call(input, hx, rng, example_ids, step_offset)
        return out, (h_n, c_n)


class GRU(RegularizedRNN):
    """A drop-in for ``torch.nn.GRU`` with every RNN dropout inside the recurrence.

    As :class:`LSTM`, without ``proj_size`` and ``zoneout_c``; ``cell_dropout`` sits on the memory, which is h, and
    ``update_dropout`` on the candidate n. The reset gate is applied after the recurrent product, as ``nn.GRU`` and
    cuDNN do (unlike Cho et al. 2014).

    Args:
        reset_after: False applies the reset gate before the product; computed by ``backend="reference"`` only.
    """

    _own_switches = types.MappingProxyType({"reset_after": True})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _keep_order(cls, GRU, nn.GRU)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        inter_layer_dropout: float | LockedDropout = 0.0,
        output_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        cell_dropout: float | CellDropout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
        reset_after: bool = True,
        **unsupported: Any,
    ) -> None:
        _refuse("GRU", unsupported)
        nn.RNNBase.__init__(
            self,
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
        )
        sites = {
            "dropout": dropout,
            "input_dropout": input_dropout,
            "inter_layer_dropout": inter_layer_dropout,
            "output_dropout": output_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "cell_dropout": cell_dropout,
            "zoneout_h": zoneout_h,
        }
        self._configure(sites, mc=mc, backend=backend, recompute=recompute, reset_after=reset_after, stacklevel=2)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate is applied after the recurrent product, as nn.GRU does."""
        return self.__dict__["_reset_after"]

    @reset_after.setter
    def reset_after(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(value).__name__}")
        self.__dict__["_reset_after"] = value
        self._commit(self._sites, stacklevel=4)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers over a batch of sequences: as :meth:`LSTM.forward`, with h_0 alone as ``hx``.

        Returns:
            The output, shaped as the input with directions * H features, and h_n, shaped as ``hx``.
        """
        out, (h_n,) = self._call(input, hx, rng, example_ids, step_offset)
        return out, h_n


class RNN(RegularizedRNN):
    """A drop-in for ``torch.nn.RNN`` with every RNN dropout inside the recurrence.

    As :class:`LSTM`, without ``proj_size``, ``zoneout_c`` and ``cell_dropout``: a step takes nothing over from the one
    before but through the recurrent product. ``update_dropout`` sits on the candidate, tanh or relu of the sum.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
    """

    _own_switches = types.MappingProxyType({"nonlinearity": "tanh"})
    nonlinearity: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _keep_order(cls, RNN, nn.RNN)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float | LockedDropout = 0.0,
        inter_layer_dropout: float | LockedDropout = 0.0,
        output_dropout: float | LockedDropout = 0.0,
        hidden_dropout: float | HiddenDropout = 0.0,
        weight_dropout: float | WeightDropout = 0.0,
        update_dropout: float | UpdateDropout = 0.0,
        zoneout_h: float | Zoneout = 0.0,
        mc: bool = False,
        backend: str | None = None,
        recompute: bool = False,
        **unsupported: Any,
    ) -> None:
        _refuse("RNN_TANH", unsupported)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        nn.RNNBase.__init__(
            self,
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
        )
        sites = {
            "dropout": dropout,
            "input_dropout": input_dropout,
            "inter_layer_dropout": inter_layer_dropout,
            "output_dropout": output_dropout,
            "hidden_dropout": hidden_dropout,
            "weight_dropout": weight_dropout,
            "update_dropout": update_dropout,
            "zoneout_h": zoneout_h,
        }
        self.nonlinearity = nonlinearity
        self._configure(sites, mc=mc, backend=backend, recompute=recompute, stacklevel=2)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        rng: Rng | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers over a batch of sequences: as :meth:`LSTM.forward`, with h_0 alone as ``hx``.

        Returns:
            The output, shaped as the input with directions * H features, and h_n, shaped as ``hx``.
        """
        out, (h_n,) = self._call(input, hx, rng, example_ids, step_offset)
        return out, h_n

    def _wrong_dims(self, input: Tensor) -> ValueError:
        return ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")


class NNLSTM(LSTM, nn.LSTM):  # type: ignore[misc]
    """An :class:`LSTM` that is an ``nn.LSTM`` too, for code that asks ``isinstance(module, nn.LSTM)``.

    Its arguments, masks and kernels are those of :class:`LSTM`. The price: ``torch.compile`` breaks the graph at it, as
    at every ``nn.LSTM``, and refuses it with ``fullgraph=True``. ``convert(model, nn_subclass=True)`` makes them.
    """


class NNGRU(GRU, nn.GRU):  # type: ignore[misc]
    """A :class:`GRU` that is an ``nn.GRU`` too: see :class:`NNLSTM`."""


class NNRNN(RNN, nn.RNN):  # type: ignore[misc]
    """An :class:`RNN` that is an ``nn.RNN`` too: see :class:`NNLSTM`."""


class Classes(NamedTuple):
    """This package's class of a cell, torch.nn's, and the one that is both."""

    ours: type[RegularizedRNN]
    theirs: type[nn.RNNBase]
    both: type[RegularizedRNN]


CLASSES = (Classes(LSTM, nn.LSTM, NNLSTM), Classes(GRU, nn.GRU, NNGRU), Classes(RNN, nn.RNN, NNRNN))


def _layers_of(model: nn.Module, where: str) -> dict[str, Any]:
    """Every module of this package that draws masks inside ``model`` by path, once each: layers, and what is around."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where} takes an nn.Module, got {type(model).__name__}")
    found = {path: module for path, module in model.named_modules() if isinstance(module, Thresholds)}
    if not found:
        raise ValueError(f"{where} found no {A_MODULE} in the model: convert() makes them")
    return found


def mc_dropout(model: nn.Module, on: bool = True) -> nn.Module:
    """Switches MC dropout on or off in every layer of this package inside ``model``, and returns ``model``.

    With ``mc`` masks stay on in eval (Gal & Ghahramani 2016), zoneout's included, and nothing else leaves eval mode.
    Modules of :mod:`training` that draw masks, such as ``EmbeddingDropout``, are switched too.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` holds no layer of this package.
    """
    for module in _layers_of(model, "mc_dropout").values():
        module.mc = bool(on)
    return model


def hold_masks(model: nn.Module, rng: Tensor | Mapping[str, Rng | None] | None = None) -> Hold:
    """``with hold_masks(model):`` every layer of this package in ``model`` keeps its masks over all calls in the block.

    Each call of a layer goes on with the same pair of random numbers, and with the step after the last one of its call
    before. A sequence that comes one step at a time, or in chunks, so has the masks that it has in one piece: in a
    decoder's loop, recurrent policies, truncated backpropagation, in code that does not know ``rng``.

    Modules of :mod:`training` that draw masks, such as ``EmbeddingDropout``, are held as layers are.

    Layers count apart, each by the steps of its own calls, a packed input by its longest row. Calls with masks off do
    not count. A call with ``rng`` is as outside the block; one with ``step_offset`` alone uses the held pair at that
    step; neither counts. The innermost block that names a layer counts; the outer one then goes on where it was. A
    block holds for the thread or asyncio task that entered it.

    Args:
        model: any module, compiled and wrapped ones too.
        rng: None draws a pair for each layer at its first masked call. One int64[2] tensor for a model with one layer,
            or a dict by module path as ``model.named_modules()`` spells it (``""`` is the root), each value as ``rng``
            of a call: int64[2], or a dict of such by group of sites. Layers that it leaves out, or has None for, draw
            their own.

    Returns:
        The context manager, which ``as`` gives too: its ``rng`` and ``step_offset`` say by module path what the next
        call uses.

    Raises:
        TypeError, ValueError: ``model`` has no layer of this package; ``rng`` is none of these, names a path
            where none is, or is one pair for several layers, whose masks would be equal. A pair on another device than
            its layer, or a dict that lacks a group, raises at the call.
        RuntimeError: a call in the block that is recomputed inside a backward pass, exported, traced, captured in a
            CUDA graph, or made by a replica of DataParallel; a recomputation of a held call after the block.
    """
    layers = _layers_of(model, "hold_masks")
    if rng is None:
        given: dict[str, Rng | None] = {}
    elif isinstance(rng, Mapping):
        given = _by_first_path(model, layers, rng)
    else:
        pair = check_rng("rng", rng)
        if len(layers) > 1:
            raise ValueError(
                f"one rng for several layers would give them equal masks: pass a dict by module path, of "
                f"{', '.join(map(repr, layers))}, or None, which draws a pair for each"
            )
        given = dict.fromkeys(layers, pair)
    return Hold({path: Slot(module, given.get(path)) for path, module in layers.items()})


def _by_first_path(model: nn.Module, layers: Mapping[str, Any], rng: Mapping[Any, Any]) -> dict[str, Rng | None]:
    """``rng`` of :func:`hold_masks`, checked, under the path that comes first of each module that has several."""
    paths = dict(model.named_modules(remove_duplicate=False))
    first = {module: path for path, module in layers.items()}
    given: dict[str, Rng | None] = {}
    for path, value in rng.items():
        if path not in paths or paths[path] not in first:
            raise ValueError(
                f"rng of hold_masks goes by module path, and at {path!r} there is no {A_MODULE}; "
                f"those of this model are at {', '.join(map(repr, layers))}"
            )
        same = first[paths[path]]
        if same in given:
            raise ValueError(f"rng names one module twice, the one at {same!r}")
        given[same] = None if value is None else check_rng(f"rng[{path!r}]", value)
    return given


__all__ = ["GRU", "LSTM", "NNGRU", "NNLSTM", "NNRNN", "RNN", "RegularizedRNN", "hold_masks", "mc_dropout"]
