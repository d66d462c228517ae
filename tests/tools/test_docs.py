"""The documentation: that a site is made of all of it, and that figures which a page repeats are their source's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_sites_list() -> None:
    listed = re.findall(r": ([a-z]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*(page.name for page in DOCS.glob("*.md")), "changelog.md"])


def test_figures_of_choosing_are_the_reviews() -> None:
    """By row: what the page says that a site gained is what docs/review.md has measured."""
    review, page = ((DOCS / name).read_text("utf-8") for name in ("review.md", "choosing.md"))
    gained = dict(re.findall(r"^\| (\S.*?) +\| [\d.]+ ± [\d.]+ \| -([\d.]+ ± [\d.]+) ", review, re.M))
    assert gained["locked in 0.2, out 0.5"] in page
    alone = re.search(r"alone they gained ([\d.]+), ([\d.]+) and ([\d.]+\d)", page)
    assert alone is not None
    rows = ("cell_dropout 0.3", "weight_dropout 0.5", "hidden_dropout 0.3")
    assert list(alone.groups()) == [gained[row].split()[0] for row in rows]
    clear = sorted(float(value.split()[0]) for row, value in gained.items() if "per sequence" not in row)
    span = re.search(r"lower validation loss, by ([\d.]+) to ([\d.]+) bits", page)
    assert span is not None
    assert len(clear) == 12 and (round(clear[0], 2), round(clear[-1], 2)) == tuple(map(float, span.groups()))
    whole = re.sub(r"\s+", " ", page)
    for figure in ("0.052 ± 0.009", "0.013 ± 0.004", "0.011 ± 0.008"):
        assert figure in whole and figure in review


def test_python_on_the_first_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    exec(block.replace("400, 1150", "4, 11").replace("70, 20, 400", "7, 2, 4"), {})  # smaller


def test_hooks_of_the_site() -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is in the extra docs")
    from tools import docs_hooks

    page = docs_hooks.on_page_content("<p>see :class:<code>LSTM</code> and <code>x</code></p>")
    assert page == "<p>see <code>LSTM</code> and <code>x</code></p>"
