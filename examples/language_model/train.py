"""One training of the demonstration, in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Corpus, columns, load_file, load_sotu
from .model import LanguageModel, detach, digest


@dataclass(frozen=True)
class Settings:
    """Everything that both trainings share.

    Attributes:
        level: ``"word"`` or ``"char"``.
        tokens: how many tokens of the training text to use at most.
        width: units of the embedding and of each layer.
        layers: layers of the RNN.
        epochs: passes over the training text.
        batch: parallel sequences.
        steps: length of a segment; the state is carried over, the gradient is not.
        rate: Adam's learning rate, constant.
        cell: ``"lstm"`` or ``"gru"``.
        text: the user's own file, or None for the addresses.
        spread: standard deviation of the embedding at the start.
        clip: largest norm of the gradient.
        seed: of the parameters and the masks.
        threads: of torch in the training process; None leaves torch's choice.
    """

    level: str
    tokens: int
    width: int
    layers: int
    epochs: int
    batch: int
    steps: int
    rate: float
    cell: str = "lstm"
    text: str | None = None
    spread: float = 0.25
    clip: float = 1.0
    seed: int = 1
    threads: int | None = None

    def corpus(self) -> Corpus:
        """Loads the text. Raises ``CorpusError`` where it cannot be had."""
        if self.text is None:
            return load_sotu(self.level, self.tokens)
        return load_file(self.text, self.level, self.tokens)


@dataclass(frozen=True)
class Epoch:
    """Losses after an epoch, both in eval mode, in nats per token."""

    train_loss: float
    valid_loss: float


@dataclass(frozen=True)
class Progress:
    """Where a training stands: ``epoch`` from 1, ``done`` of ``of`` steps of it."""

    epoch: int
    done: int
    of: int


@dataclass
class Outcome:
    """What one training gave.

    Attributes:
        name: what the table calls it.
        module: ``repr`` of the RNN.
        ran: what computed it: torch's module, or the backend and schedule.
        parameters: how many.
        start: sha256 of the parameters before the first step.
        epochs: losses after each epoch.
        updates: optimizer steps.
        trained_tokens: tokens in them.
        training_seconds: wall time of the updates, evaluation left out.
        seconds: wall time of the whole training, evaluation included.
        threads: of torch.
        memory: largest resident memory of the process in bytes, Python and torch included; None where it is not known.
        memory_before: the same before the first step.
    """

    name: str
    module: str
    ran: str
    parameters: int
    start: str
    threads: int
    memory_before: int | None
    epochs: list[Epoch] = field(default_factory=list)
    updates: int = 0
    trained_tokens: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    memory: int | None = None

    @property
    def best(self) -> int:
        """Index of the epoch with the lowest validation loss."""
        return min(range(len(self.epochs)), key=lambda index: self.epochs[index].valid_loss)

    @property
    def tokens_per_second(self) -> float:
        """Over all updates, evaluation left out."""
        return self.trained_tokens / self.training_seconds

    def record(self) -> dict[str, Any]:
        """All of it, for JSON; no speed where the training did not come to its end."""
        derived = {"best_epoch": self.best + 1, "tokens_per_second": self.tokens_per_second if self.seconds else None}
        return dataclasses.asdict(self) | derived


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not say."""
    # VmHWM belongs to the program that runs; ru_maxrss may be the parent's, from the moment of the fork.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def segments(ids: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for begin in range(0, len(ids) - 1, steps):
        end = min(begin + steps, len(ids) - 1)
        yield ids[begin:end], ids[begin + 1 : end + 1]


def _loss(model: nn.Module, ids: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
    logits, state = model(ids, state)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), state


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor, steps: int) -> float:
    """Mean loss over ids (T, B) in nats per token, in eval mode, the state carried throughout."""
    model.eval()
    total, count, state = 0.0, 0, None
    for inputs, targets in segments(ids, steps):
        loss, state = _loss(model, inputs, targets, state)
        total += loss.item() * targets.numel()
        count += targets.numel()
    return total / count


def build(settings: Settings, sites: dict[str, Any], vocabulary: int) -> tuple[LanguageModel, str]:
    """The model, its parameters drawn from the seed, converted where there are sites; and what will compute it."""
    torch.manual_seed(settings.seed)
    model = LanguageModel(vocabulary, settings.cell, settings.width, settings.layers, settings.spread)
    if not sites:
        return model, f"torch.nn.{settings.cell.upper()}"
    import fused_rnn_dropout as frd

    frd.convert(model, **sites)
    explanation = frd.explain(model.rnn, torch.zeros(settings.steps, settings.batch, settings.width))
    return model, f"backend {explanation.backend}; {explanation.schedule}"


def train(
    settings: Settings, name: str, sites: dict[str, Any], tell: Callable[[Progress | Epoch | Outcome], None]
) -> Outcome:
    """Trains one model; tells of its progress, of each epoch, and at the start and the end of the outcome."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    began = time.perf_counter()
    corpus = settings.corpus()
    model, ran = build(settings, sites, len(corpus.vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    ids, valid = columns(corpus.train, settings.batch), columns(corpus.valid, settings.batch, "validate")
    seen = ids[: len(valid)]  # of the training text, as much as there is to validate on
    updates = math.ceil((len(ids) - 1) / settings.steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outcome = Outcome(
        name, repr(model.rnn), ran, parameters, digest(model), torch.get_num_threads(), peak_memory()
    )  # fmt: skip
    tell(outcome)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        state = None
        for update, (inputs, targets) in enumerate(segments(ids, settings.steps), 1):
            start = time.perf_counter()
            loss, state = _loss(model, inputs, targets, detach(state))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            outcome.training_seconds += time.perf_counter() - start
            outcome.trained_tokens += targets.numel()
            outcome.updates += 1
            tell(Progress(epoch, update, updates))
        # Segments of evaluation are as long as those of training, so that they never set the peak of memory.
        outcome.epochs.append(Epoch(*(evaluate(model, part, settings.steps) for part in (seen, valid))))
        tell(outcome.epochs[-1])
    outcome.memory = peak_memory()
    outcome.seconds = time.perf_counter() - began
    tell(outcome)
    return outcome


def _child(connection: Connection, settings: Settings, name: str, sites: dict[str, Any]) -> None:
    try:
        train(settings, name, sites, connection.send)
    except Exception:
        connection.send(traceback.format_exc())
    finally:
        connection.close()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started within does not hear of Ctrl-C, not even while it imports: its parent ends it.

    A signal that comes in the meantime waits for the parent. A process inherits what is blocked; handlers it does not.
    In the parent only this thread is blocked: another may take the signal, for which Python would interrupt this one.
    So the handler waits too. Otherwise the new process might come alive and never be told what to do.
    """
    resource_tracker.ensure_running()  # which otherwise is started within, and unblocks the signal when it is
    heard = False

    def later(*_: Any) -> None:
        nonlocal heard
        heard = True

    handles = threading.current_thread() is threading.main_thread()  # Python interrupts no other thread
    handler = signal.signal(signal.SIGINT, later) if handles else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handles:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


def train_apart(
    settings: Settings, name: str, sites: dict[str, Any], tell: Callable[[Progress | Epoch | Outcome], None]
) -> Outcome:
    """:func:`train` in a fresh process.

    Raises:
        RuntimeError: that process raised or died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, settings, name, sites), daemon=True)
    with _deaf_to_interrupts():
        process.start()
    theirs.close()
    last: Any = None
    try:
        with contextlib.suppress(EOFError):  # the other end is closed: it is done, or died
            while True:
                last = ours.recv()
                if isinstance(last, str):
                    raise RuntimeError(f"the training of {name} failed:\n{last}")
                tell(last)
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        ours.close()
    if not isinstance(last, Outcome) or len(last.epochs) < settings.epochs or process.exitcode:
        raise RuntimeError(f"the training of {name} ended early: its process died with exit code {process.exitcode}")
    return last
