"""What a library in the wheel for macOS must be. It is inspected, since no macOS is there to run it."""

from __future__ import annotations

import re
from pathlib import Path

from .macho import ARM64, BUNDLE, DYLIB, FLAT, MACOS, MachO, Malformed
from .wheel_checks import Refused

OLDEST = (11, 0)
"""The oldest macOS that it is for, which is the first for this processor."""

CXX = "/usr/lib/libc++.1.dylib"
SYSTEM = "/usr/lib/libSystem.B.dylib"
TORCH = tuple(f"@rpath/{name}.dylib" for name in ("libtorch", "libtorch_cpu", "libc10"))
"""Already loaded when the library is, so that the loader takes them by these names and needs no path."""

BESIDE_TORCH = (
    "__ZnamSt11align_val_t",
    "__ZdaPvSt11align_val_t",  # both since macOS 10.13
    "__ZTVNSt3__115basic_streambufIcNS_11char_traitsIcEEEE",  # of a class whose other members torch takes
)
"""Of libc++, and as old as what torch takes of it."""

OF_THE_LINKER = {"__mh_dylib_header", "___dso_handle"}
"""What zig's linker exports of every library."""

LOADED_WITH_TORCH = ("libc10", "libtorch_cpu", "libtorch_python")


def taken_by_torch(torch: Path, library: str) -> set[str]:
    """Symbols of one of the system's libraries without which torch's own do not load: they are wherever torch runs.

    Args:
        torch: the folder of a macOS torch's libraries.
    """
    found = (MachO(torch / f"{name}.dylib") for name in LOADED_WITH_TORCH)
    return {
        symbol.name for each in found for symbol in each.undefined if symbol.owner == library and not symbol.optional
    }


def cxx_stub(torch: Path) -> str:
    """What a linker reads in the place of macOS's libc++: those of its symbols that may be used."""
    symbols = ", ".join(sorted({*taken_by_torch(torch, CXX), *BESIDE_TORCH}))
    return (
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\n"
        f"install-name: '{CXX}'\nexports:\n  - targets: [ arm64-macos ]\n    symbols: [ {symbols} ]\n...\n"
    )


def library(path: Path, torch: Path) -> None:
    """All that can be seen of a library without running it; ``torch`` as above.

    Raises:
        Refused: it must not be published.
    """
    try:
        found = MachO(path)
    except Malformed as error:
        raise Refused(str(error)) from error
    if found.processor != ARM64 or found.kind not in (DYLIB, BUNDLE):
        raise Refused(f"{path.name} is no library for arm64 (processor {found.processor:#x}, kind {found.kind})")
    if (found.platform, found.oldest) != (MACOS, OLDEST):
        raise Refused(f"{path.name} is for platform {found.platform} from {found.oldest}, not macOS from {OLDEST}")
    asked_of_the_loader(found)
    symbols(found, torch)
    if flaw := found.flaw_of_signature():
        raise Refused(f"macOS would end a program that loads {path.name}: {flaw}")


def asked_of_the_loader(found: MachO) -> None:
    """Libraries of torch and of the system."""
    if unknown := sorted(set(found.libraries) - {CXX, SYSTEM, *TORCH}):
        raise Refused(f"{found.path.name} needs {', '.join(unknown)}, which not every macOS has")
    # With a libc++ of its own, torch could not catch what the library throws.
    if CXX not in found.libraries:
        raise Refused(f"{found.path.name} does not need {CXX}, and so brings its own")
    if found.rpaths:
        raise Refused(f"{found.path.name} looks for libraries in {', '.join(found.rpaths)}")


def symbols(found: MachO, torch: Path) -> None:
    """Each symbol of an owner known to have it; exported is the module's entry alone."""
    allowed = {
        CXX: {*taken_by_torch(torch, CXX), *BESIDE_TORCH},
        SYSTEM: taken_by_torch(torch, SYSTEM),
        **{name: stable(torch / Path(name).name) for name in TORCH},
    }
    strangers = [f"{symbol.name} of {symbol.owner}" for symbol in found.undefined
                 if not (re.fullmatch(r"__?Py\w+", symbol.name) if symbol.owner == FLAT
                         else symbol.name in allowed.get(symbol.owner, ()))]  # fmt: skip
    if strangers:
        raise Refused(f"{found.path.name} leaves symbols undefined that may be missing: {', '.join(strangers)}")
    entry = f"_PyInit_{found.path.name.split('.')[0]}"
    exported = sorted(set(found.exported) - OF_THE_LINKER)
    if exported != [entry]:
        raise Refused(f"{found.path.name} should export {entry} alone, and exports {', '.join(exported) or 'nothing'}")


def stable(library: Path) -> set[str]:
    """The stable C ABI in one of torch's libraries."""
    return {name for name in MachO(library).exported if re.fullmatch(r"_(aoti_)?torch_\w+", name)}
