"""The documentation: that a site is made of all of it, and that figures which a page repeats are their source's."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fused_rnn_dropout.sites import SITE
from tools import draw_sites

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
    figures = re.findall(r"[\d.]+ ± [\d.]+", re.sub(r"\s+", " ", page))
    assert len(figures) > 3 and [figure for figure in figures if figure not in review] == []


def test_python_on_the_first_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    exec(block.replace("400, 1150", "4, 11").replace("70, 20, 400", "7, 2, 4"), {})  # smaller


def test_hooks_of_the_site(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is in the extra docs")
    from tools import docs_hooks

    page = docs_hooks.on_page_content("<p>see :class:<code>LSTM</code> and <code>x</code></p>")
    assert page == "<p>see <code>LSTM</code> and <code>x</code></p>"
    nav = {"nav": [{"Start": "index.md"}, {"Evidence": [{"On a CPU": "cpu.md"}]}]}
    text = docs_hooks.on_page_markdown("[docs/cpu.md](cpu.md#b), [cpu.md](cpu.md), [this](cpu.md)", nav)
    assert text == "[On a CPU](cpu.md#b), [On a CPU](cpu.md), [this](cpu.md)"
    docs_hooks.on_page_content("<p>a - b</p>\n<pre>\n- x\n# y\n</pre>\n<ul>\n<li>x</li>\n</ul>")
    assert not caplog.records
    for left in ("- item", "2. item", "| a | b |", "## heading"):
        docs_hooks.on_page_content(f"<p>a paragraph\n{left}</p>")
        assert caplog.records.pop().levelname == "WARNING"  # in strict mode an error


@pytest.mark.parametrize("package", ["fused_rnn_dropout", "fused_rnn_dropout.training"])
def test_every_public_name_is_on_the_page_of_the_api(package: str) -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    shown = {}  # by what follows ":::", the members, or None for all
    for path, rest in re.findall(r"^::: (\S+)\n((?: .*\n)*)", page, re.MULTILINE):
        members = re.search(r"members: \[(.*)\]", rest)
        shown[path] = members and members[1].split(", ")
    module = importlib.import_module(package)
    for name in module.__all__:
        of = getattr(module, name)
        if inspect.ismodule(of):
            continue
        members = shown.get(of.__module__, [])
        assert f"{of.__module__}.{name}" in shown or members is None or name in members, name


def test_the_picture_of_sites_is_what_the_command_draws(tmp_path: Path) -> None:
    assert draw_sites.main([str(tmp_path / "sites.svg")]) == 0
    assert (tmp_path / "sites.svg").read_bytes() == (DOCS / "sites.svg").read_bytes()
    ElementTree.parse(tmp_path / "sites.svg")


def test_every_site_is_in_the_picture_as_often_drawn_as_it_says() -> None:
    panels = draw_sites.PANELS
    assert {panel.site for panel in panels} == set(SITE)
    for panel in panels:
        mask = draw_sites.mask(panel)
        if panel.site == "weight_dropout":
            assert mask.shape == (4 * draw_sites.UNITS, 1 if "gate" in panel.drawn else draw_sites.UNITS)
            continue
        steps = draw_sites.STEPS if "each step" in panel.drawn else 1
        examples = 1 if "whole batch" in panel.drawn else draw_sites.EXAMPLES
        assert mask.shape == (steps, examples, draw_sites.UNITS), panel.code
    c, h, shared = (draw_sites.mask(panel) for panel in panels if panel.site.startswith("zoneout"))
    assert shared.equal(c) and not h.equal(c)
