"""The rows of translation: each site of the encoder alone and of the decoder alone, by rate; both; and the GRU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .grid import Grid, Row, Sweep
from .task import Section, Task, figure
from .translation import TranslationSettings

SEEDS = 3
RATES = (0.1, 0.25, 0.5)
SITES = ("input_dropout", "output_dropout", "hidden_dropout", "weight_dropout", "update_dropout", "zoneout_c")
GRU_SITES = ("input_dropout", "hidden_dropout", "weight_dropout", "update_dropout", "zoneout_h")
GRU_RATE = 0.25
"""Until the LSTM's best rates are known."""

NONE, GRU_NONE = "translation: none", "translation: none, GRU"
PLACES: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder_sites",),
    "decoder": ("decoder_sites",),
    "both": ("encoder_sites", "decoder_sites"),
}


def called(place: str, site: str, rate: float, cell: str = "LSTM") -> str:
    return f"translation: {place} {site} {rate:g}" + ("" if cell == "LSTM" else f", {cell}")


def _row(base: TranslationSettings, place: str, site: str, rate: float, cell: str = "LSTM") -> Row:
    changes: dict[str, Any] = {name: {site: rate} for name in PLACES[place]}
    return Row(called(place, site, rate, cell), dataclasses.replace(base, cell=cell, **changes), SEEDS)


def study() -> Grid:
    base = TranslationSettings()
    rows, sweeps = [Row(NONE, base, SEEDS)], []
    for place in ("encoder", "decoder"):
        for site in SITES:
            made = {rate: _row(base, place, site, rate) for rate in RATES}
            rows += made.values()
            sweeps.append(Sweep(f"{place} {site}", NONE, {rate: row.name for rate, row in made.items()}))
    rows += [_row(base, "both", site, 0.25) for site in SITES]
    rows.append(Row(GRU_NONE, dataclasses.replace(base, cell="GRU"), SEEDS))
    rows += [_row(base, place, site, GRU_RATE, "GRU") for place in ("encoder", "decoder") for site in GRU_SITES]
    return Grid(tuple(rows), (), tuple(sweeps))


def tiny() -> Grid:
    base = TranslationSettings(embedding=12, hidden=16, pairs=300, valid_pairs=40, epochs=2)
    rows = [Row(NONE, base, SEEDS), _row(base, "both", "hidden_dropout", 0.25)]
    rows.append(_row(base, "decoder", "output_dropout", 0.25, "GRU"))
    return Grid(tuple(dataclasses.replace(row, seeds=2) for row in rows), (), ())


def _section(name: str, base: str, rows: list[str]) -> Section:
    return Section(name, base, dict.fromkeys([base, *rows], ""))


TASK = Task(
    study,
    tiny,
    {"BLEU": (figure("BLEU"), ".1f"), "chrF": (figure("chrF"), ".1f")},
    (
        *(
            _section(f"Sites of the {place}", NONE, [called(place, site, rate) for site in SITES for rate in RATES])
            for place in ("encoder", "decoder")
        ),
        _section("Encoder and decoder at once", NONE, [called("both", site, 0.25) for site in SITES]),
        _section(
            "GRU",
            GRU_NONE,
            [called(place, site, GRU_RATE, "GRU") for place in ("encoder", "decoder") for site in GRU_SITES],
        ),
    ),
)
