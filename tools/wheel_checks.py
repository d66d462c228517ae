"""What a wheel must be before it is published. Each check raises :class:`Refused` with one sentence."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGE = "fused_rnn_dropout"

UNDEFINED = (
    (r"_?Py\w+", "Python's limited API, of which abi3audit sees that it is no more than that"),
    (r"(aoti_)?torch_\w+", "torch's stable C ABI"),
    (r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+", "the system's, whose versions auditwheel compares with the platform's"),
    (r"_ITM_\w+|__gmon_start__", "weak; nobody has to have them"),
)
"""Symbols that a library may leave undefined, and whose they are."""

OF_C10 = (
    "_ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv",
    "_ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv",
    "_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev",
    "_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev",
    "_ZSt28__throw_bad_array_new_lengthv",
)
"""Parts of libstdc++ of GCC 9 to 11, which torch's libc10 brings along for systems with an older one."""

MOST_BYTES = {"wheel": 4 * 2**20, "sdist": 8 * 2**20}


class Refused(Exception):
    """The file must not be published; the message says why."""


def undefined(library: Path) -> list[str]:
    """Symbols that a library expects of others, with their versions."""
    command = ["nm", "--dynamic", "--undefined-only", library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[-1] for line in lines]


def strangers(symbols: Iterable[str]) -> list[str]:
    """Those that are on no list."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern, _ in UNDEFINED))
    return [symbol for symbol in symbols if not known.fullmatch(symbol) and symbol not in OF_C10]


def symbols(library: Path, c10: Path) -> None:
    """``c10``: the libc10 of the oldest torch at hand."""
    found = undefined(library)
    if unknown := strangers(found):
        raise Refused(f"{library.name} leaves symbols undefined that nobody is known to have: {', '.join(unknown)}")
    command = ["nm", "--dynamic", "--defined-only", c10]
    defined = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1].split("@")[0] for line in defined.splitlines()}
    if missing := [symbol for symbol in OF_C10 if symbol in found and symbol not in exported]:
        raise Refused(f"{library.name} needs {', '.join(missing)} of {c10}, which has them not")


def expected(source: Path, libraries: Sequence[str]) -> set[str]:
    """What the package's folder in a wheel should hold, by the sources."""
    files = {path.relative_to(source).as_posix() for path in (source / PACKAGE).rglob("*") if path.is_file()}
    sources = {name for name in files if name.endswith((".py", ".pyi", "py.typed"))}
    return sources | {f"{PACKAGE}/{name}.abi3.so" for name in libraries}


def contents(wheel: Path, source: Path, libraries: Sequence[str]) -> None:
    """Exactly the package, its libraries and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != len(set(names)):
        raise Refused(f"{wheel.name} holds a name twice")
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    wanted = expected(source, libraries)
    missing, more = sorted(wanted - set(names)), sorted(set(names) - metadata - wanted)
    if missing or more:
        raise Refused(
            f"{wheel.name} lacks {', '.join(missing) or 'nothing'} and holds besides {', '.join(more) or 'none'}"
        )
    lacking = [part for part in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")
               if not any(name.endswith(f".dist-info/{part}") for name in metadata)]  # fmt: skip
    if lacking:
        raise Refused(f"{wheel.name} has no {', '.join(lacking)} among its metadata")


def size(path: Path, kind: str) -> None:
    if (found := path.stat().st_size) > MOST_BYTES[kind]:
        raise Refused(f"{path.name} has {found:,} bytes, and a {kind} may have {MOST_BYTES[kind]:,}")


def same_bytes(first: Path, second: Path) -> None:
    """Names what differs inside, where the archives do."""
    if first.read_bytes() == second.read_bytes():
        return
    if first.suffix != ".whl":
        raise Refused(f"{first.name} was made twice of one commit, and its bytes differ")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        members = [{info.filename: (info.CRC, info.date_time) for info in of.infolist()} for of in (one, other)]
    differing = sorted(name for name in members[0] if members[0][name] != members[1].get(name))
    raise Refused(f"{first.name} was made twice of one commit, and differs in {', '.join(differing) or 'its order'}")
