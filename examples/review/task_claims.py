"""What a reader expects of the tasks beside the character model, each answered by the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import digits, intervals, memory, words_grid
from .claims import Answer, answered, below, interaction, pair
from .results import Line
from .summary import Estimate, Summary


def _within(claim: str, summary: Summary, row: str, figure: str, other: str) -> Answer:
    """Whether one figure of a row lies below another of the same row, seed by seed."""
    seeds = summary.rows.get(row, {}).values()
    differences = [figures[figure] - figures[other] for figures in seeds if figure in figures and other in figures]
    return answered(claim, *below(Estimate.of(differences) if differences else None))


def _ablation(summary: Summary) -> Answer:
    claim = "of AWD-LSTM's parts, weight drop is missed most"
    names = [f"{words_grid.WHOLE} without {part}" for part in words_grid.REMOVED]
    names.append(f"{words_grid.WHOLE} with full-sized embedding")
    if not summary.has(*names):
        return answered(claim, None, "")
    order = sorted(names, key=lambda name: -summary.level(name, "best").mean)
    figure = ", then ".join(f"{name.removeprefix(words_grid.WHOLE).strip()} {summary.level(name, 'best').text()}"
                            for name in order[:2])  # fmt: skip
    return answered(claim, order[0].endswith("without weight drop"), figure)


def _memory(summary: Summary) -> Iterator[Answer]:
    for problem, lengths in memory.LENGTHS.items():
        length = max(lengths)
        none, update, per_step = (memory.called(problem, length, sites) for sites in
                                  ("none", "update_dropout 0.5", "cell_dropout per step 0.25"))  # fmt: skip
        claim = f"update_dropout remembers what masks on the memory at each step forget ({problem}, T {length})"
        yield pair(claim, summary, update, per_step)
        difference = summary.difference(update, none, "best")
        claim = f"update_dropout remembers as well as no dropout ({problem}, T {length})"
        if difference is None or difference.half is None:
            yield answered(claim, None, "")
        else:
            holds = difference.mean <= difference.half
            yield answered(claim, holds, f"{difference.text('+')} (n {difference.count})")


def answers(lines: Iterable[Line]) -> list[Answer]:
    """Every claim, in the order of the page, from the lines of rows as they are now."""
    summary = Summary(lines)
    zoneout = "digits: zoneout shared 0.15"
    tuned = ("tuning: MC tuned", "tuning: eval tuned")
    return [
        _ablation(summary),
        interaction(
            "masks per step hurt more, against masks per sequence, with two layers of words than with one (rate 0.5)",
            summary,
            ("words: per step 0.5, 2 layers", "words: per sequence 0.5, 2 layers",
             "words: per step 0.5, 1 layer", "words: per sequence 0.5, 1 layer"),
        ),
        _within("MC dropout, tuned, is better than eval mode, tuned (AWD-LSTM)", summary, words_grid.WHOLE, *tuned),
        pair("fraternal dropout is better than none of it (kappa 0.15)", summary, "words: fraternal 0.15",
             words_grid.ONE_LAYER),
        pair("zoneout is better than no dropout (permuted digits)", summary, zoneout, digits.NONE),
        pair("zoneout is better than update_dropout (permuted digits)", summary, zoneout,
             "digits: update_dropout 0.5"),
        *_memory(summary),
        _within("intervals of noise alone hold better than those of masks alone (hidden_dropout 0.25)", summary,
                "intervals: hidden_dropout 0.25", f"{intervals.NOISE}: off", f"{intervals.MASKS}: off"),
    ]  # fmt: skip
