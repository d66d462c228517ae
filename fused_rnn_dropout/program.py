"""How a command line of this project ends: on Ctrl-C, and where the reader of its output has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

INTERRUPTED, NOBODY_READS = 130, 141
"""Exit statuses: 128 and the number of the signal that would have ended the process, SIGINT or SIGPIPE."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, once what was found so far is safe; the message says where."""


def run_program(name: str, work: Callable[[], int]) -> int:
    """Runs ``work`` and returns its exit status; one line on stderr, and no traceback, for Ctrl-C.

    Output that nobody reads any more, as after ``| head``, ends it without a word.
    """
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()  # what is still in the buffer would fail when Python is gone
    except KeyboardInterrupt as stop:
        print(f"\n{name}: interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at its end, which must find something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
