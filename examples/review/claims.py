"""What a reader expects of these techniques, each answered by the results: yes, no, or not run yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .grid import NONE, Grid, Sweep
from .summary import Estimate, Summary, best_rate

_NOT_ALONE = ("input, output", "AR, TAR", "embedding_dropout")
"""How the names of sweeps begin that start from no dropout, and are of two sites or of none."""


@dataclass(frozen=True)
class Answer:
    """A claim, its verdict ("yes", "no" or "not run yet"), and the figure that says so."""

    claim: str
    verdict: str
    figure: str


def below(difference: Estimate | None) -> tuple[bool | None, str]:
    """Whether a paired difference is below 0 by more than its interval; None where it is not to be said."""
    if difference is None or difference.half is None:
        return None, ""
    return difference.mean + difference.half < 0, f"{difference.text('+')} (n {difference.count})"


def answered(claim: str, holds: bool | None, figure: str) -> Answer:
    return Answer(claim, "not run yet" if holds is None else "yes" if holds else "no", figure)


def _rates(summary: Summary, sweep: Sweep | None) -> dict[float, str] | None:
    """The rows of a sweep with its base; None where not all of them were run, or the grid has no such sweep."""
    if sweep is None:
        return None
    rows = {0.0: sweep.base, **sweep.rows}
    return rows if summary.has(*rows.values()) else None


def pair(claim: str, summary: Summary, row: str, other: str, measure: str = "best") -> Answer:
    """Whether ``row`` lies below ``other``."""
    return answered(claim, *below(summary.difference(row, other, measure)))


def _forward(summary: Summary, sweeps: dict[str, Sweep]) -> Iterator[Answer]:
    for site in ("weight_dropout", "hidden_dropout", "update_dropout", "cell_dropout"):
        claim = f"the best rate of {site} falls when forward dropout is on"
        names = (site, f"{site} with locked in 0.2, out 0.5")
        alone, with_forward = (_rates(summary, sweeps.get(name)) for name in names)
        if alone is None or with_forward is None:
            yield answered(claim, None, "")
            continue
        best, other = best_rate(summary, alone), best_rate(summary, with_forward)
        yield answered(claim, other < best, f"{best:g} alone, {other:g} with it")


def _width(summary: Summary, sweeps: dict[str, Sweep]) -> Answer:
    claim = "the best rate rises with H (weight_dropout, H 128, 256, 512)"
    found = [_rates(summary, sweeps.get(f"weight_dropout{width}")) for width in (", H 128", "", ", H 512")]
    if None in found:
        return answered(claim, None, "")
    best = [best_rate(summary, rows) for rows in found if rows]
    return answered(claim, best[0] < best[-1] and best == sorted(best), ", ".join(f"{rate:g}" for rate in best))


def _best_alone(summary: Summary, sweeps: dict[str, Sweep]) -> Answer:
    claim = "weight_dropout is the best site alone"
    alone = [sweep for sweep in sweeps.values() if sweep.base == NONE and not sweep.name.startswith(_NOT_ALONE)]
    found = {sweep.name: _rates(summary, sweep) for sweep in alone}
    if len(found) < 2 or None in found.values():  # of one site alone it says nothing
        return answered(claim, None, "")
    lowest = {name: summary.level(rows[best_rate(summary, rows)], "best") for name, rows in found.items() if rows}
    order = sorted(lowest, key=lambda name: lowest[name].mean)
    figure = ", then ".join(f"{name} {lowest[name].text()}" for name in order[:2])
    return answered(claim, order[0] == "weight_dropout", figure)


def _gaps(summary: Summary, grid: Grid) -> Answer:
    claim = "every technique among the named rows shrinks the gap"
    rows = [row.name for row in grid.named if row.name != NONE]
    found = {name: below(summary.difference(name, NONE, "gap"))[0] for name in rows}
    if None in found.values():
        return answered(claim, None, "")
    failing = [name for name, holds in found.items() if not holds]
    return answered(claim, not failing, f"all {len(rows)}" if not failing else f"not {', '.join(failing)}")


def _tied(summary: Summary) -> Answer:
    claim = "tied and untied hidden_dropout are equal within seeds"
    difference = summary.difference("hidden_dropout untied 0.3", "hidden_dropout 0.3", "best")
    if difference is None or difference.half is None:
        return answered(claim, None, "")
    return answered(claim, abs(difference.mean) <= difference.half, f"untied less tied {difference.text('+')}")


def _monte_carlo(summary: Summary) -> Iterator[Answer]:
    for row in ("hidden_dropout 0.3", "hidden_dropout untied 0.3"):
        seeds = summary.rows.get(row, {}).values()
        differences = [figures["mc"] - figures["best"] for figures in seeds]
        yield answered(
            f"MC dropout is better than eval mode ({row})",
            *below(Estimate.of(differences) if differences else None),
        )


def interaction(claim: str, summary: Summary, rows: tuple[str, str, str, str]) -> Answer:
    """Whether the first row less the second is more than the third less the fourth, seed by seed."""
    found = [summary.rows.get(row, {}) for row in rows]
    seeds = sorted(set.intersection(*map(set, found)))
    if len(seeds) < 2:
        return answered(claim, None, "")
    best = [[figures[seed]["best"] for seed in seeds] for figures in found]
    more = Estimate.of([(a - b) - (c - d) for a, b, c, d in zip(*best, strict=True)])
    assert more.half is not None
    return answered(claim, more.mean - more.half > 0, f"{more.text('+')} more (n {more.count})")


def _depth(summary: Summary) -> Answer:
    claim = "masks per step hurt more, against masks per sequence, with two layers than with one (rate 0.5)"
    rows = ("all places per step 0.5, 2 layers", "all places per sequence 0.5, 2 layers", "input, output per step 0.5",
            "input, output locked 0.5")  # fmt: skip
    return interaction(claim, summary, rows)


def answers(summary: Summary, grid: Grid) -> list[Answer]:
    """Every claim, in the order of the page."""
    sweeps = {sweep.name: sweep for sweep in grid.sweeps}
    step, sequence = "update_dropout 0.5", "update_dropout per sequence 0.5"
    return [
        *_forward(summary, sweeps),
        _width(summary, sweeps),
        _best_alone(summary, sweeps),
        pair("zoneout_c is better than zoneout_h (rate 0.5)", summary, "zoneout_c 0.5", "zoneout_h 0.5"),
        pair("update_dropout per step is better than per sequence (rate 0.5)", summary, step, sequence),
        _gaps(summary, grid),
        _depth(summary),
        _tied(summary),
        *_monte_carlo(summary),
    ]


def of_sweep(summary: Summary, sweep: Sweep) -> dict[str, str] | None:
    """What a sweep should show, by claim; None where a rate was not run, or for one seed alone.

    (a) the training loss in eval mode rises with the rate, (b) the gap falls with it, (c) the validation loss has its
    minimum inside the sweep, more than two standard errors below the base, (d) the best epoch there is later.
    """
    rows = _rates(summary, sweep)
    if rows is None or any(summary.level(row, "best").error is None for row in rows.values()):
        return None
    rates = sorted(rows)
    best = best_rate(summary, rows)
    train, gap = ([summary.level(rows[rate], measure).mean for rate in rates] for measure in ("train", "gap"))
    difference = summary.difference(rows[best], sweep.base, "best")
    later = summary.difference(rows[best], sweep.base, "epoch")
    lower = bool(best and difference and difference.error is not None and difference.mean < -2 * difference.error)
    held = {
        "a": train == sorted(train),
        "b": gap == sorted(gap, reverse=True),
        "c": lower and best != rates[-1],
        "d": bool(best and later and later.mean > 0),
    }
    verdicts = {name: "yes" if holds else "no" for name, holds in held.items()}
    return {"rate": f"{best:g}", "difference": difference.text("+") if best and difference else "", **verdicts}
