"""Every execution of the exchange between blocks (csrc/cuda/exchange.h) for two or three blocks and a few steps.

    python tools/check_exchange.py [--only TEXT] [--list]

Compiles tests/cuda/exchange_model.cpp, which says what an execution is, and walks through the cases below: those of
``RIGHT`` must end well in every execution, and of each of ``FAULTS`` at least one execution must go wrong. Small cases
are walked a second time with all polls that fail, which must come to the same. Exit status 1 where a case comes out
otherwise. Needs a C++20 compiler (CXX, default c++) and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests/cuda/exchange_model.cpp"


@dataclass(frozen=True)
class Case:
    name: str
    options: str
    polls: bool = False
    """Whether it is small enough to be walked with the polls that fail too."""


RING = "form=strict slots=4"
PAIR = "form=dependence slots=2"
FLAGS = "form=flags slots=2"

RIGHT = (
    Case("strict ring", f"{RING} steps=13"),
    Case("strict ring, all polls", f"{RING} steps=6", polls=True),
    Case("strict ring, 3 blocks", f"{RING} blocks=3 steps=8"),
    Case("strict ring, stores that depend on nothing", f"{RING} depends=0 steps=13"),
    Case("strict ring, stores that depend on nothing, all polls", f"{RING} depends=0 steps=9", polls=True),
    Case("strict ring, stores that depend on nothing, 3 blocks", f"{RING} depends=0 blocks=3 steps=5"),
    Case("strict ring, one block's stores depend on nothing, 3 blocks", f"{RING} early=1 blocks=3 steps=7"),
    Case("strict ring, stores that depend on nothing, words passed over", f"{RING} depends=0 skips=third steps=13"),
    Case("strict ring, stores that depend on nothing, a round passed over", f"{RING} depends=0 skips=round steps=13"),
    Case("strict ring, two words a block", f"{RING} words=2 steps=9"),
    Case("strict ring of 8 slots", "form=strict slots=8 steps=19"),
    Case("strict ring of 8 slots, stores that depend on nothing", "form=strict slots=8 depends=0 steps=11"),
    Case("strict ring of 2 slots, stores that depend on nothing", "form=strict slots=2 depends=0 steps=6", polls=True),
    Case("strict ring of 2 slots, 3 blocks", "form=strict slots=2 blocks=3 steps=4", polls=True),
    Case("strict ring, tags", f"{RING} shows=tag depends=0 steps=9"),
    Case("strict ring, late rows", f"{RING} rows=1-10,3-10 steps=10"),
    Case("strict ring, late rows, all polls", f"{RING} rows=1-7,3-7 steps=7", polls=True),
    Case("strict ring of 2 slots, rows that begin late and end early", "form=strict slots=2 rows=1-6,3-6,3-4 steps=6"),
    Case("strict ring of 2 slots, late rows, free stores", "form=strict slots=2 depends=0 rows=1-6,3-6 steps=6"),
    Case("strict ring backward, late rows", f"{RING} shows=tag reads_last=1 rows=1-10,4-10 steps=10"),
    Case("strict ring backward, 3 blocks", f"{RING} shows=tag reads_last=1 blocks=3 steps=7"),
    Case("two slots by dependence", f"{PAIR} steps=12"),
    Case("two slots by dependence, all polls", f"{PAIR} steps=7", polls=True),
    Case("two slots by dependence, 3 blocks", f"{PAIR} blocks=3 steps=7"),
    Case("two slots by dependence, 3 blocks, all polls", f"{PAIR} blocks=3 steps=4", polls=True),
    Case("two slots by dependence, two words a block", f"{PAIR} words=2 steps=8"),
    Case("two slots by dependence, late rows", f"{PAIR} rows=1-8,2-8,5-6 steps=8"),
    Case("two slots by dependence, late rows, 3 blocks", f"{PAIR} blocks=3 rows=1-4,2-4 steps=4"),
    Case("two slots by dependence, tags", f"{PAIR} shows=tag blocks=3 steps=6"),
    Case("two slots by dependence backward, late rows", f"{PAIR} shows=tag reads_last=1 rows=1-8,4-8 steps=8"),
    Case("two slots by dependence backward, 3 blocks", f"{PAIR} shows=tag reads_last=1 blocks=3 steps=6", polls=True),
    Case("flags", f"{FLAGS} steps=9"),
    Case("flags, all polls", f"{FLAGS} steps=6", polls=True),
    Case("flags, 3 blocks, all polls", f"{FLAGS} blocks=3 steps=3", polls=True),
    Case("flags, 3 blocks", f"{FLAGS} blocks=3 steps=5"),
    Case("flags, stores that depend on nothing", f"{FLAGS} depends=0 steps=9"),
    Case("flags, stores that depend on nothing, 3 blocks", f"{FLAGS} depends=0 blocks=3 steps=4"),
    Case("flags, two words a block", f"{FLAGS} words=2 steps=7"),
    Case("flags, late rows and words passed over", f"{FLAGS} skips=third rows=1-7,2-7,5-6 steps=7"),
    Case("flags backward, late rows", f"{FLAGS} reads_last=1 rows=1-7,4-7 steps=7"),
    Case("flags backward, 3 blocks", f"{FLAGS} reads_last=1 blocks=3 steps=4"),
)

FAULTS = (
    # Slots, phases and tags
    Case("one slot", f"{PAIR} slots=1 steps=4", polls=True),
    Case("one slot, flags", f"{FLAGS} slots=1 steps=4", polls=True),
    Case("words that show nothing", f"{PAIR} shows=nothing steps=4", polls=True),
    Case("the step's parity in place of the phase", f"{PAIR} shows=parity steps=6", polls=True),
    Case("a phase that is 0 at first, over zeros", f"{PAIR} blocks=3 shows=zero\\ first steps=4"),
    Case("a phase that is 0 at first, over zeros, strict", f"{RING} shows=zero\\ first steps=5", polls=True),
    Case("late rows that count the group's steps", f"{PAIR} rows=1-6,3-6 by_group=1 steps=6"),
    Case("late rows that count the group's steps, strict", f"{RING} rows=1-9,5-9 by_group=1 steps=9"),
    # Readers
    Case("a poll that does not look", f"{PAIR} accepts=any steps=4", polls=True),
    Case("a poll that does not look, strict", f"{RING} accepts=any steps=4", polls=True),
    Case("a valid word taken for its neighbours", f"{PAIR} accepts=first words=2 steps=4", polls=True),
    Case("a valid word taken for its neighbours, tags", f"{RING} shows=tag accepts=first words=2 steps=4"),
    Case("every third step passed over by a reader", f"{PAIR} skips=third steps=9"),
    Case("every third step passed over by a reader, tags", f"{PAIR} shows=tag blocks=3 skips=third steps=6"),
    Case("words read by other threads each step, with no barrier", f"{PAIR} remembers=0 steps=7"),
    # Writers
    Case("stores before the polls", f"{PAIR} depends=0 steps=6", polls=True),
    Case("stores before the polls, tags", f"{PAIR} shows=tag depends=0 steps=6", polls=True),
    Case("stores before the polls, backward", f"{PAIR} shows=tag reads_last=1 depends=0 steps=6"),
    Case("units that zoneout keeps, stored before the polls", f"{PAIR} early=1 steps=6", polls=True),
    Case("units that zoneout keeps, stored before the polls, 3 blocks", f"{PAIR} early=1 blocks=3 steps=5"),
    # The ring's counters
    Case("no handshake, stores that depend on nothing", f"{RING} counter=none depends=0 steps=9"),
    Case("no handshake, a round passed over", f"{RING} counter=none depends=0 skips=round steps=13"),
    Case("the counter before the right one", f"{RING} counter=early depends=0 steps=9"),
    Case("the counter before the right one, 8 slots", "form=strict slots=8 counter=early depends=0 steps=17"),
    Case("one running counter", f"{RING} counter=running depends=0 steps=13"),
    # Flags
    Case("the flag before the data", f"{FLAGS} flag=first steps=4", polls=True),
    Case("the flag read and never acquired", f"{FLAGS} flag=relaxed steps=4", polls=True),
    Case("the flag before the block's own reads", f"{FLAGS} flag=early depends=0 steps=6"),
    # The launch
    Case("a block that is not resident", f"{PAIR} absent=1 steps=3", polls=True),
    Case("a block that is not resident, strict", f"{RING} absent=1 steps=3", polls=True),
    Case("a block that is not resident, flags", f"{FLAGS} absent=1 steps=3", polls=True),
    Case("memory as a call before left it", f"{PAIR} left_by=5 steps=5", polls=True),
    Case("memory as a call before left it, strict", f"{RING} left_by=9 steps=9"),
    Case("memory as a call before left it, tags", f"{PAIR} shows=tag left_by=2 steps=5", polls=True),
    Case("memory as a call before left it, flags", f"{FLAGS} left_by=5 steps=5", polls=True),
    Case("memory as the same call left it, a graph's second replay", f"{PAIR} blocks=3 left_by=6 steps=6"),
    Case("two calls in one memory", f"{PAIR} calls=2 steps=3"),
    Case("two calls in one memory, strict", f"{RING} calls=2 steps=3"),
)


def build(folder: Path) -> Path:
    program = folder / "exchange_model"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", SOURCE, "-o", program], check=True)
    return program


def walk(program: Path, case: Case, polls: bool = False) -> tuple[bool, int, str]:
    """Whether every execution is right, how many states were met, what went wrong in the first that is not."""
    command = [str(program), *shlex.split(case.options), *(["polls=1"] if polls else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    verdict, states, *why = done.stdout.strip().split(" ", 2)
    return verdict == "right", int(states), " ".join(why)


def check(program: Path, case: Case, right: bool) -> tuple[bool, int]:
    """Walks a case and prints it. Whether it comes out as it should, and the states met."""
    as_it_should, met = True, 0
    for polls in (False, True) if case.polls else (False,):
        start = time.monotonic()
        found, states, why = walk(program, case, polls)
        seconds, met = time.monotonic() - start, met + states
        as_it_should &= found == right
        word = ("right" if right else "caught") if found == right else "WRONG "
        print(f"{word:6} {states:9,} states {seconds:5.1f} s  {case.name}{' (failing polls too)' if polls else ''}"
              f"{': ' if why else ''}{why}", flush=True)  # fmt: skip
    return as_it_should, met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", help="the cases that have TEXT in their name")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    options = parser.parse_args()
    cases = [(case, right) for group, right in ((RIGHT, True), (FAULTS, False)) for case in group
             if not options.only or options.only in case.name]  # fmt: skip
    if not cases:
        parser.error(f"no case has {options.only!r} in its name")
    if options.list:
        print("\n".join(f"{'right' if right else 'fault'}  {case.name}" for case, right in cases))
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        outcomes = [check(program, case, right) for case, right in cases]
    wrong, states = sum(not good for good, _ in outcomes), sum(met for _, met in outcomes)
    print(f"{len(cases)} cases, {states:,} states, {time.monotonic() - start:.0f} s: "
          f"{f'{wrong} are not as they should be' if wrong else 'all as they should be'}")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
