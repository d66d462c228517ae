"""AWD-LSTM (Merity et al. 2017): a language model, and a classifier on the same encoder."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..arguments import check_rng
from ..cell_modules import SITES_OF_CELLS
from ..modules import LSTM
from .embedding_dropout import EmbeddingDropout
from .output_dropout import OutputDropout

State: TypeAlias = list[tuple[Tensor, Tensor]]
"""h and c of each layer, (1, B, units)."""


class Encoded(NamedTuple):
    """What an encoder returns.

    Attributes:
        raw: (T, B, E), or packed: the last layer's output before dropout, which TAR takes.
        dropped: the same after dropout, which AR and the decoder take.
        state: of each layer, raw, to carry on with; cut it from its graph with :func:`detach`.
        logits: (T, B, V), or packed, where there is a decoder.
    """

    raw: Any
    dropped: Any
    state: State
    logits: Any = None


def detach(state: State) -> State:
    """The same state, cut from the graph that computed it."""
    return [(h.detach(), c.detach()) for h, c in state]


def derived(rng: Tensor | None, number: int) -> Tensor | None:
    """A pair of its own for each module of a model that is given one: equal pairs would give layers equal masks.

    Raises:
        TypeError, ValueError: ``rng`` is not int64[2].
    """
    if rng is None:
        return None
    pair = check_rng("rng", rng)
    if not isinstance(pair, Tensor):
        raise TypeError("rng of a model should be an int64 tensor of shape (2,), got a dict")
    return torch.stack((pair[0], pair[1] + number))


class AWDLSTMEncoder(nn.Module):
    """Embedding and stack of LSTMs; the last one is as wide as the embedding, so that a decoder can be tied.

    Args: those of :class:`AWDLSTM`.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int = 400,
        hidden_size: int = 1150,
        num_layers: int = 3,
        *,
        embedding_dropout: float = 0.1,
        input_dropout: Any = 0.4,
        inter_layer_dropout: Any = 0.25,
        output_dropout: float = 0.4,
        weight_dropout: Any = 0.5,
        padding_idx: int | None = None,
        backend: str | None = None,
        recompute: bool = False,
        **sites: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers should be at least 1, got {num_layers}")
        for name in sites:  # anything else that LSTM takes would change the layers alone, and not what is around them
            if name not in SITES_OF_CELLS:
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}")
        embedding = nn.Embedding(vocabulary, embedding_size, padding_idx=padding_idx)
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
        self.words = EmbeddingDropout(embedding, embedding_dropout)
        widths = [embedding_size, *[hidden_size] * (num_layers - 1), embedding_size]
        self.rnns = nn.ModuleList(
            LSTM(
                widths[layer],
                widths[layer + 1],
                # What is dropped between two layers is the input of the upper one.
                input_dropout=inter_layer_dropout if layer else input_dropout,
                weight_dropout=weight_dropout,
                backend=backend,
                recompute=recompute,
                **sites,
            )
            for layer in range(num_layers)
        )
        self.output = OutputDropout(output_dropout)

    def forward(
        self,
        words: Tensor | PackedSequence,
        state: State | None = None,
        *,
        rng: Tensor | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Encoded:
        """Encodes words.

        Args:
            words: int64 (T, B), or packed.
            state: of each layer; zeros if None.
            rng: int64[2], from which every module gets a pair of its own. Each draws for itself if None.
            example_ids: int64 (B,), as in :meth:`LSTM.forward`.
            step_offset: as in :meth:`LSTM.forward`.

        Raises:
            ValueError: a state for another number of layers, or words of another number of dimensions.
            TypeError, ValueError, IndexError: as :class:`EmbeddingDropout` and :class:`LSTM`.
        """
        if isinstance(words, Tensor) and words.dim() != 2:
            raise ValueError(f"words should have 2 dimensions (T, B), got {words.dim()}")
        if state is not None and len(state) != len(self.rnns):
            raise ValueError(f"state should have a pair (h, c) for each of {len(self.rnns)} layers, got {len(state)}")
        counters = {"example_ids": example_ids, "step_offset": step_offset}
        raw = self.words(words, rng=derived(rng, 0), **counters)
        last: State = []
        for layer, rnn in enumerate(self.rnns):
            raw, (h, c) = rnn(raw, None if state is None else state[layer], rng=derived(rng, layer + 1), **counters)
            last.append((h, c))
        dropped = self.output(raw, rng=derived(rng, len(self.rnns) + 1), example_ids=example_ids)
        return Encoded(raw, dropped, last)


class AWDLSTM(nn.Module):
    """The language model of Merity et al. 2017: embedding, LSTMs with weight drop, tied decoder, all of its dropout.

    The defaults are those of the paper's command for the Penn Treebank. Its loss adds AR and TAR to the cross entropy,
    in training; :class:`NTASGD` and :func:`random_bptt_slices` are the rest of the recipe:

        encoded = model.encode(words, state)
        loss = F.cross_entropy(encoded.logits.flatten(0, 1), targets.flatten())
        loss = loss + activation_regularization(encoded.dropped) + temporal_activation_regularization(encoded.raw)

    The traps: AR takes the output behind dropout, TAR in front of it; the state that is carried on is raw; and the
    tied decoder reads the matrix without the embedding's mask.

    Args:
        vocabulary: number of words V.
        embedding_size: width E of the embedding and of the last layer.
        hidden_size: width of the layers below.
        num_layers: number of layers.
        embedding_dropout: p by word type, see :class:`EmbeddingDropout`; the tied decoder reads the undropped matrix.
        input_dropout: of the first layer's input, one mask per sequence.
        inter_layer_dropout: between layers, one mask per sequence.
        output_dropout: of the last output, one mask per sequence.
        weight_dropout: of the recurrent weights.
        tied: whether decoder and embedding share one matrix.
        padding_idx: of the embedding.
        backend: of the layers, as in :class:`LSTM`.
        recompute: of the layers, as in :class:`LSTM`.
        sites: other sites of the layers, such as ``zoneout_c=0.1``: those of a step.

    Raises:
        ValueError: no layer; as :class:`LSTM`.
        TypeError: another keyword; as :class:`LSTM`.
    """

    def __init__(self, vocabulary: int, *sizes: int, tied: bool = True, **options: Any) -> None:
        super().__init__()
        self.encoder = AWDLSTMEncoder(vocabulary, *sizes, **options)
        embedding = self.encoder.words.embedding
        self.decoder = nn.Linear(embedding.embedding_dim, vocabulary)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = embedding.weight

    def forward(self, words: Tensor | PackedSequence, state: State | None = None, **counters: Any) -> tuple[Any, State]:
        """From words int64 (T, B) to logits (T, B, V), and the state to carry on with.

        Args:
            words: int64 (T, B), or packed: then logits are too.
            state: of each layer; zeros if None.
            counters: ``rng``, ``example_ids``, ``step_offset``, see :meth:`AWDLSTMEncoder.forward`.
        """
        encoded = self.encode(words, state, **counters)
        return encoded.logits, encoded.state

    def encode(self, words: Tensor | PackedSequence, state: State | None = None, **counters: Any) -> Encoded:
        """As :meth:`forward`, with the outputs that AR and TAR take."""
        encoded = self.encoder(words, state, **counters)
        dropped = encoded.dropped
        if isinstance(dropped, PackedSequence):
            return encoded._replace(logits=dropped._replace(data=self.decoder(dropped.data)))
        return encoded._replace(logits=self.decoder(dropped))


class AWDLSTMClassifier(nn.Module):
    """Classes of whole texts, from [last, maximum, mean] of the encoder's outputs (Howard & Ruder 2018, ULMFiT).

    Args:
        encoder: such as that of a language model, ``AWDLSTM(...).encoder``, trained before. Its ``output_dropout`` is
            not used: the head has dropout of its own.
        classes: number of classes.
        hidden_size: width of the head.
        dropout: of the head's input and of its hidden units.
    """

    def __init__(
        self, encoder: AWDLSTMEncoder, classes: int, hidden_size: int = 50, dropout: tuple[float, float] = (0.4, 0.1)
    ) -> None:
        super().__init__()
        width = 3 * encoder.words.embedding.embedding_dim
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.BatchNorm1d(width), nn.Dropout(dropout[0]), nn.Linear(width, hidden_size), nn.ReLU(),
            nn.BatchNorm1d(hidden_size), nn.Dropout(dropout[1]), nn.Linear(hidden_size, classes),
        )  # fmt: skip

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """From words int64 (T, B), padded behind ``lengths`` int64 (B,) on the CPU, to logits (B, classes)."""
        encoded = self.encoder(pack_padded_sequence(words, lengths, enforce_sorted=False))
        out, _ = pad_packed_sequence(encoded.raw, total_length=words.size(0))
        lengths = lengths.to(out.device)
        valid = (torch.arange(out.size(0), device=out.device)[:, None] < lengths)[..., None]
        last = out[lengths - 1, torch.arange(out.size(1), device=out.device)]
        largest = torch.where(valid, out, -torch.inf).amax(0)
        mean = out.sum(0) / lengths[:, None]  # outputs behind the end are 0
        result: Tensor = self.head(torch.cat((last, largest, mean), dim=-1))
        return result


__all__ = ["AWDLSTM", "AWDLSTMClassifier", "AWDLSTMEncoder", "Encoded", "State", "detach"]
