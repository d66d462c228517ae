"""README.md as a package's description, which stands on pages where the checkout's other files are not."""

from __future__ import annotations

import re

# A target without a scheme that is no place on the same page.
_RELATIVE = r"\((?!#|[a-z][a-z0-9+.-]*:)[^)\s]+(?:\s+\"[^\"]*\")?\)"


def description(text: str) -> str:
    """The text without pictures that lie in the checkout, and with links to its files as names of them.

    >>> description("See [docs/cpu.md](docs/cpu.md).")
    'See docs/cpu.md.'
    """
    text = re.sub(rf"^!\[[^\]]*\]{_RELATIVE}\n?", "", text, flags=re.MULTILINE)
    text = re.sub(rf"!\[[^\]]*\]{_RELATIVE}", "", text)
    return re.sub(rf"\[([^\]]*)\]{_RELATIVE}", r"\1", text)
