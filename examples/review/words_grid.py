"""The rows of words: AWD-LSTM without each of its parts, Zaremba's small model, Melis' toggle, fraternal dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_rnn_dropout import LockedDropout

from .grid import Builder, Grid
from .task import Section, Task, figure
from .words import ONE_WIDTH, WordSettings

SEEDS = 3
SITES = {"input_dropout": 0.4, "inter_layer_dropout": 0.25, "output_dropout": 0.4, "weight_dropout": 0.5}
EXTRAS = {"embedding_dropout": 0.1, "ar": 2.0, "tar": 1.0, "weight_decay": 1.2e-6, "random_bptt": 0.05,
          "sgd": 30.0, "nt_asgd": 5, "fine_tuning": 8}  # fmt: skip
"""The recipe of AWD-LSTM for the Penn Treebank, but for the length of its fine-tuning."""

WHOLE = "words: AWD-LSTM"
NOTHING = "words: AWD-LSTM, nothing dropped"
REMOVED: Mapping[str, tuple[str, ...]] = {
    "fine-tuning": ("fine_tuning",),
    "NT-ASGD": ("nt_asgd", "fine_tuning"),
    "variable length": ("random_bptt",),
    "embedding dropout": ("embedding_dropout",),
    "weight decay": ("weight_decay",),
    "AR, TAR": ("ar", "tar"),
    "weight drop": ("weight_dropout",),
}
"""What the rows of the ablation lack; the full-sized embedding beside them. Averages go with the trigger that begins
them, so that the row without NT-ASGD is not fine-tuned either."""

PLACES = ("input_dropout", "inter_layer_dropout", "output_dropout")
ONE_LAYER = "words: one layer"
KAPPAS = (0.05, 0.1, 0.15, 0.3)
TUNING = 10


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _awd(made: Builder) -> None:
    sgd = {"sgd": EXTRAS["sgd"], "nt_asgd": EXTRAS["nt_asgd"]}
    made.row(WHOLE, SITES, SEEDS, extras=EXTRAS, tuning=TUNING)
    made.row(NOTHING, {}, SEEDS, extras=sgd)
    for part, names in REMOVED.items():
        made.row(f"{WHOLE} without {part}", _without(SITES, names), SEEDS, extras=_without(EXTRAS, names))
    made.row(f"{WHOLE} with full-sized embedding", SITES, SEEDS, extras=EXTRAS, embedding=made.base.hidden)
    for rate in (3.0, 10.0):  # the neighbours of the published learning rate
        made.row(f"{NOTHING}, SGD {rate:g}", {}, 1, extras=sgd | {"sgd": rate})


def _zaremba(made: Builder) -> None:
    """The paper sums losses over 20 steps, of which ours is the mean: its rate of 1 is 20 here, its norm of 5 0.25."""
    extras = {"sgd": 20.0, "constant": 8, "decay": 1.3}
    small = {"kind": ONE_WIDTH, "hidden": 200, "embedding": 200, "steps": 20, "spread": 0.1, "extras": extras}
    made.row("words: Zaremba small", {}, SEEDS, **small)
    dropped = {place: LockedDropout(0.5, per="step") for place in PLACES}
    made.row("words: Zaremba small, per step 0.5", dropped, SEEDS, **small)


def _melis(made: Builder) -> None:
    """All places outside the recurrence, per step or per sequence, with one layer and with two."""
    stack = {"kind": ONE_WIDTH, "hidden": 256, "embedding": 256, "clip": 1.0}
    for layers in (1, 2):
        called = f"{layers} layer{'s' if layers > 1 else ''}"
        made.row(f"words: none, {called}", {}, SEEDS, layers=layers, **stack)
        for per in ("sequence", "step"):
            sites = {place: LockedDropout(0.5, per=per) for place in PLACES if layers > 1 or place != PLACES[1]}
            tuning = TUNING if per == "sequence" and layers == 1 else 0
            made.row(f"words: per {per} 0.5, {called}", sites, SEEDS, layers=layers, tuning=tuning, **stack)


def _fraternal(made: Builder) -> None:
    """One layer at the rates published for it, which two passes can afford; AR and TAR are of one pass."""
    sites = {"input_dropout": 0.65, "output_dropout": 0.4, "weight_dropout": 0.5}
    extras = _without(EXTRAS, ("ar", "tar", "fine_tuning"))
    made.row(ONE_LAYER, sites, SEEDS, layers=1, extras=extras)
    for kappa in KAPPAS:
        made.row(f"words: fraternal {kappa:g}", sites, SEEDS, layers=1, extras=extras | {"fraternal": kappa})
    made.row("words: rdrop 1", sites, SEEDS, layers=1, extras=extras | {"rdrop": 1.0})


def study() -> Grid:
    """All rows, each cut so that a cell takes five minutes of a core."""
    made = Builder(WordSettings())
    for part in (_awd, _zaremba, _melis, _fraternal):
        part(made)
    return made.grid()


def tiny() -> Grid:
    """A row of each kind, two seeds: it shows that everything runs."""
    made = Builder(WordSettings(hidden=24, embedding=16, tokens=4_000, epochs=3, passes=2))
    made.row(WHOLE, SITES, 2, extras=EXTRAS | {"sgd": 5.0, "fine_tuning": 1, "nt_asgd": 1}, tuning=2)
    made.row("words: none, 1 layer", {}, 2, kind=ONE_WIDTH, layers=1)
    return made.grid()


_PUBLISHED = {"fine-tuning": "60.7 / 58.8", "NT-ASGD": "66.3 / 63.7", "variable length": "61.3 / 58.9",
              "embedding dropout": "65.1 / 62.7", "weight decay": "63.7 / 61.0", "AR, TAR": "62.7 / 60.3",
              "weight drop": "71.1 / 68.9"}  # fmt: skip
"""Perplexities of the Penn Treebank, validation / test: Merity et al. 2017, Table 4."""

TASK = Task(
    study,
    tiny,
    {
        "perplexity": (lambda figures: 2 ** figures["best"], ".1f"),
        "MC less eval": (lambda figures: figures["mc"] - figures["best"], "+.3f"),
        **{name: (figure(name), ".3f") for name in ("tuning: eval", "tuning: eval tuned", "tuning: MC",
                                                    "tuning: MC tuned")},
    },
    (
        Section(
            "AWD-LSTM without each of its parts",
            WHOLE,
            {
                WHOLE: "60.0 / 57.3",
                **{f"{WHOLE} without {part}": published for part, published in _PUBLISHED.items()},
                f"{WHOLE} with full-sized embedding": "68.0 / 65.6",
                NOTHING: "",
                f"{NOTHING}, SGD 3": "",
                f"{NOTHING}, SGD 10": "",
            },
        ),
        Section(
            "Zaremba's small model",
            "words: Zaremba small",
            {"words: Zaremba small": "120.7 / 114.5", "words: Zaremba small, per step 0.5": "not published"},
        ),
        *(
            Section(
                f"Masks per step against masks per sequence, {called}",
                f"words: per sequence 0.5, {called}",
                {f"words: none, {called}": "", f"words: per sequence 0.5, {called}": best,
                 f"words: per step 0.5, {called}": worse},
            )
            for called, best, worse in (("1 layer", "61.8 (10M, 1 layer)", "62.9"),
                                        ("2 layers", "60.9 (24M, 4 layers)", "66.3"))
        ),
        Section(
            "Fraternal dropout by kappa",
            ONE_LAYER,
            dict.fromkeys((ONE_LAYER, *(f"words: fraternal {kappa:g}" for kappa in KAPPAS), "words: rdrop 1"), "")
            | {"words: fraternal 0.15": "67.5 / 64.9"},
        ),
    ),
)  # fmt: skip
