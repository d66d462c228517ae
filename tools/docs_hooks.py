"""What mkdocs.yml asks for beside pages that lie in docs/: the changelog, docstrings without Sphinx's roles, and links
that bear the name of a page where the sources have that of a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File, Files

LEFT = re.compile(r"^(?:[-+*] |\d+\. |\||#+ ).*", re.MULTILINE)
"""Markup at the beginning of a line, where HTML has none: what is written for GitHub may need four spaces here."""

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config) -> Files:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "](")
    text = re.sub(r"\[([^\]]*)\]\((?:examples/|[A-Z])[^)]*\)", r"\1", text)  # what a site does not hold
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, config, **_) -> str:
    def named(link: re.Match) -> str:
        return f"[{titles[link[1]]}]({link[2]})"

    titles = dict(_titles(config["nav"]))
    return re.sub(r"\[(?:docs/)?(\w+\.md)\]\((\1[^)]*)\)", named, markdown)


def _titles(nav: list[dict]) -> Iterator[tuple[str, str]]:
    """(file, title) of every page."""
    for entry in nav:
        for title, target in entry.items():
            yield from [(target, title)] if isinstance(target, str) else _titles(target)


def on_page_content(html: str, page=None, **_) -> str:
    for left in LEFT.findall(re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)):
        log.warning("%s: a list, table or heading became text: %.60r", page and page.file.src_uri, left)
    return re.sub(r":(?:class|func|meth|mod|data|attr):<code>", "<code>", html)
