"""What mkdocs.yml asks for beside pages that lie in docs/: the changelog, and docstrings without Sphinx's roles."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config) -> Files:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "](")
    text = re.sub(r"\[([^\]]*)\]\((?:examples/|[A-Z])[^)]*\)", r"\1", text)  # what a site does not hold
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_content(html: str, **_) -> str:
    return re.sub(r":(?:class|func|meth|mod|data|attr):<code>", "<code>", html)
