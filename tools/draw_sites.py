"""Draws what each site drops, from masks that the package exports: python -m tools.draw_sites [FILE]

FILE is docs/sites.svg by default. The masks come from a fixed pair of numbers, so the file is always the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import torch

import fused_rnn_dropout as frd

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "sites.svg"
STEPS, EXAMPLES, UNITS = 8, 2, 12
PAIR = (5, 7)

COLUMNS = 3
CELL, GAP = 8.0, 12.0
PANEL = (EXAMPLES * UNITS * CELL + GAP, STEPS * CELL)  # of what is drawn, without its text
PITCH = (PANEL[0] + 40, PANEL[1] + 62)
COLOURS = {"kept": "#4051b5", "dropped": "#dfe2f0", "old": "#f2902f"}
LEGEND = {"kept": "kept", "dropped": "dropped", "old": "old value stays (zoneout; blue: the new one)"}


class Panel(NamedTuple):
    """One site: how it is asked for, the mask that is drawn, and how often that mask is drawn."""

    site: str
    rate: Any
    code: str
    key: str
    drawn: str


PANELS = (
    Panel("dropout", 0.4, "dropout=0.4", "inter_layer_l1", "between layers; each step and example"),
    Panel("inter_layer_dropout", 0.4, "inter_layer_dropout=0.4", "inter_layer_l1", "once a sequence and example"),
    Panel("output_dropout", 0.4, "output_dropout=0.4", "output", "once a sequence and example"),
    Panel("input_dropout", 0.4, "input_dropout=0.4", "input", "once a sequence and example"),
    Panel("input_dropout", frd.LockedDropout(0.4, batch_shared=True), "… batch_shared=True", "input",
          "once a sequence, for the whole batch"),
    Panel("hidden_dropout", 0.4, "hidden_dropout=0.4", "hidden_l0", "once a sequence and example"),
    Panel("weight_dropout", 0.4, "weight_dropout=0.4", "weight_hh_l0", "once a call, for all steps and examples"),
    Panel("weight_dropout", frd.WeightDropout(0.4, mode="row"), '… mode="row"', "weight_hh_l0",
          "once a call; what enters a gate of a unit"),
    Panel("cell_dropout", 0.4, "cell_dropout=0.4", "cell_l0", "once a sequence and example"),
    Panel("update_dropout", 0.4, "update_dropout=0.4", "update_l0", "each step and example"),
    Panel("update_dropout", frd.UpdateDropout(0.4, per="sequence"), '… per="sequence"', "update_l0",
          "once a sequence and example"),
    Panel("zoneout_c", 0.4, "zoneout_c=0.4", "zoneout_c_l0", "each step and example"),
    Panel("zoneout_h", 0.4, "zoneout_h=0.4", "zoneout_h_l0", "each step and example, not c's mask"),
    Panel("zoneout_h", frd.Zoneout(0.4, shared=True), "… shared=True", "zoneout_h_l0",
          "each step and example, c's mask"),
)  # fmt: skip


def mask(panel: Panel) -> torch.Tensor:
    """The mask of a panel: (T or 1, B or 1, units), or that of a weight, (rows, columns or 1)."""
    rnn = frd.LSTM(UNITS, UNITS, num_layers=2, backend="reference", **{panel.site: panel.rate})
    x = torch.zeros(STEPS, EXAMPLES, UNITS)
    return frd.export_masks(rnn, x, rng=torch.tensor(PAIR))[panel.key]


def squares(values: torch.Tensor, size: tuple[float, float], at: tuple[float, float], old: bool) -> list[str]:
    """Values (rows, columns) as rectangles of one size, those of one colour in one path."""
    width, height = size
    paths: dict[str, list[str]] = {"kept": [], "dropped": [], "old": []}
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            colour = ("old" if value else "kept") if old else ("kept" if value else "dropped")
            x, y = at[0] + column * width, at[1] + row * height
            paths[colour].append(f"M{x:g} {y:g}h{width - 1:g}v{height - 1:g}h{1 - width:g}z")
    return [f'<path fill="{COLOURS[name]}" d="{"".join(parts)}"/>' for name, parts in paths.items() if parts]


def drawn(panel: Panel, left: float, top: float) -> list[str]:
    """A panel with its two lines of text. Units run to the right, steps down; a weight lies on its side."""
    lines = [
        f'<text x="{left:g}" y="{top + 12:g}" class="code">{escape(panel.code)}</text>',
        f'<text x="{left:g}" y="{top + 27:g}">{escape(panel.drawn)}</text>',
    ]
    top, values = top + 34, mask(panel)
    if panel.site == "weight_dropout":
        rows = values.shape[0]
        whole = values.expand(rows, UNITS).T
        return lines + squares(whole, (PANEL[0] / rows, PANEL[1] / UNITS), (left, top), old=False)
    whole = values.expand(STEPS, EXAMPLES, UNITS)
    for example in range(EXAMPLES):
        at = (left + example * (UNITS * CELL + GAP), top)
        lines += squares(whole[:, example], (CELL, CELL), at, old=panel.site.startswith("zoneout"))
    return lines


def picture() -> str:
    """All panels as SVG."""
    width, height = COLUMNS * PITCH[0], -(-len(PANELS) // COLUMNS) * PITCH[1] + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11" fill="#222">',
        "<title>Which elements each site drops</title>",
        "<style>.code{font-family:monospace;font-size:12px;font-weight:bold}</style>",
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for index, panel in enumerate(PANELS):
        row, column = divmod(index, COLUMNS)
        lines += drawn(panel, 20 + column * PITCH[0], 12 + row * PITCH[1])
    left = 20.0
    for name, said in LEGEND.items():
        lines.append(f'<rect x="{left:g}" y="{height - 26:g}" width="10" height="10" fill="{COLOURS[name]}"/>')
        lines.append(f'<text x="{left + 16:g}" y="{height - 17:g}">{escape(said)}</text>')
        left += 100
    return "\n".join([*lines, "</svg>", ""])


def main(arguments: list[str] | None = None) -> int:
    """Writes the picture; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.draw_sites", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    parser.parse_args(arguments).file.write_text(picture(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
