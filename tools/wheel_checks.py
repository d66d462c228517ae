"""What a wheel must be before it is published. Each check raises :class:`Refused` with one sentence."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGE = "fused_rnn_dropout"

UNDEFINED = (
    (r"_?Py\w+", "Python's limited API, of which abi3audit sees that it is no more than that"),
    (r"(aoti_)?torch_\w+", "torch's stable C ABI"),
    (r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+", "the system's, whose versions auditwheel compares with the platform's"),
    (r"_ITM_\w+|__gmon_start__", "weak; nobody has to have them"),
    (r"_*cuda\w+@libcudart\.so\.1[23]", "of the CUDA runtime that torch brings, whose major version is the library's"),
)
"""Symbols that a library may leave undefined, and whose they are."""

OF_TORCH = (
    "_ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv",
    "_ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv",
    "_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev",
    "_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev",
    "_ZSt28__throw_bad_array_new_lengthv",
)
"""Parts of libstdc++ of GCC 9 to 11, which torch's own libraries bring along for systems with an older one."""

SYSTEM = ("libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1",
          "ld-linux-x86-64.so.2")  # fmt: skip
"""Libraries that every system of manylinux has."""

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
"""Whose machine code a library for a GPU holds, and the last one's PTX for those to come."""

MOST_BYTES = {"wheel": 12 * 2**20, "sdist": 8 * 2**20}


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
    return [symbol for symbol in symbols if not known.fullmatch(symbol) and symbol not in OF_TORCH]


def fatbins(library: Path) -> list[list[tuple[str, int]]]:
    """Of each source compiled for a GPU what the library holds of it: ("machine code" or "PTX", architecture).

    Raises:
        Refused: its section of that does not look as it should.
    """
    with tempfile.TemporaryDirectory() as name:
        section = Path(name, "section")
        subprocess.run(["objcopy", "-O", "binary", "--only-section=.nv_fatbin", library, section], check=True)
        data = section.read_bytes() if section.exists() else b""
    found, at = [], 0
    while at < len(data):
        if data[at : at + 4] == bytes(4):  # between two sources, for alignment
            at += 4
            continue
        magic, _, head, size = struct.unpack_from("<IHHQ", data.ljust(at + 16, b"\0"), at)
        if magic != 0xBA55ED50 or at + head + size > len(data):
            raise Refused(f"{library.name} has no fatbin at byte {at} of its section of them")
        at, end, images = at + head, at + head + size, []
        while at < end:
            kind, _, head, size = struct.unpack_from("<HHIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            images.append(({1: "PTX", 2: "machine code"}.get(kind, f"kind {kind}"), architecture))
            at += head + size
        found.append(images)
    return found


def architectures(library: Path) -> None:
    """Every source compiled for every architecture."""
    found = fatbins(library)
    if not found:
        raise Refused(f"{library.name} holds nothing for a GPU")
    wanted = [*(("machine code", each) for each in ARCHITECTURES), ("PTX", ARCHITECTURES[-1])]
    for images in found:
        if sorted(images) != sorted(wanted):
            raise Refused(f"{library.name} should hold {wanted} of each source, and has {images} of one")


def needed(library: Path) -> list[str]:
    """The shared libraries that it asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic(library))


def dynamic(library: Path) -> str:
    return subprocess.run(["readelf", "--dynamic", library], capture_output=True, text=True, check=True).stdout


def asked_of_the_loader(library: Path) -> None:
    """Libraries of torch, of the system, and of CUDA the runtime of its own major version."""
    found, allowed = needed(library), {"libtorch.so", "libtorch_cpu.so", "libc10.so", *SYSTEM}
    if major := re.match(r"_cuda(\d+)", library.name):
        runtime = f"libcudart.so.{major[1]}"
        if runtime not in found:
            raise Refused(f"{library.name} does not need {runtime}")
        allowed |= {runtime, "libtorch_cuda.so", "libc10_cuda.so"}
    if unknown := sorted(set(found) - allowed):
        raise Refused(f"{library.name} needs {', '.join(unknown)}, which not every system has")
    if paths := re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", dynamic(library)):
        raise Refused(f"{library.name} looks for libraries in {', '.join(paths)}")


def exported(library: Path) -> set[str]:
    command = ["nm", "--dynamic", "--defined-only", library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def symbols(library: Path, torch: Path) -> None:
    """``torch``: the folder of a torch's libraries, of which those that ``library`` needs must have OF_TORCH."""
    found = undefined(library)
    if unknown := strangers(found):
        raise Refused(f"{library.name} leaves symbols undefined that nobody is known to have: {', '.join(unknown)}")
    of_torch = set().union(*(exported(torch / name) for name in needed(library) if (torch / name).exists()))
    if missing := [symbol for symbol in OF_TORCH if symbol in found and symbol not in of_torch]:
        raise Refused(f"{library.name} needs {', '.join(missing)} of the libraries in {torch}, which have them not")


def names_no_folder(library: Path, folders: Iterable[Path]) -> None:
    """None of the machine that built it: elsewhere the same commit would give other bytes."""
    data = library.read_bytes()
    if found := [str(folder) for folder in folders if os.fsencode(folder) in data]:
        raise Refused(f"{library.name} names {', '.join(found)}, which is a folder of the machine that built it")


def library(path: Path, torch: Path) -> None:
    """All of the above of a library for Linux; ``torch``: the folder of a torch's libraries."""
    symbols(path, torch)
    asked_of_the_loader(path)


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
