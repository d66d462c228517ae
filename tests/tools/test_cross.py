"""Builds for other systems. The wheel for macOS cannot run here: its libraries are read, and each flaw is seen."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools import cross, macho, macos_checks
from tools.macho import MachO, Malformed
from tools.wheel_checks import Refused

CPU = "@rpath/libtorch_cpu.dylib"
NEEDED = (macos_checks.SYSTEM, macos_checks.CXX, CPU)
TAKEN = (
    ("_memcpy", 1),
    ("___cxa_throw", 2),
    ("__ZnamSt11align_val_t", 2),
    ("_aoti_torch_get_dim", 3),
    ("_PyModule_Create2", -2),
)
OFFERED = ("_PyInit__C", "__mh_dylib_header", "___dso_handle")


def command(number: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<2I", number, 8 + len(body)) + body


def signature(code: bytes, page: int = 4096) -> bytes:
    hashes = [hashlib.sha256(code[at : at + page]).digest() for at in range(0, len(code), page)]
    head = struct.pack(
        ">9I4BI", 0xFADE0C02, 44 + 32 * len(hashes), 0x20400, 2, 44, 44, 0, len(hashes), len(code), 32, 2, 0, 12, 0
    )
    return struct.pack(">5I", 0xFADE0CC0, 20 + len(head) + 32 * len(hashes), 1, 0, 20) + head + b"".join(hashes)


def library(
    path: Path, *, needed: Sequence[str] = NEEDED, taken: Sequence[tuple[str, int]] = TAKEN,
    offered: Sequence[str] = OFFERED, optional: Sequence[str] = (), oldest: tuple[int, int] = (11, 0),
    platform: int = 1, processor: int = macho.ARM64, kind: int = macho.DYLIB, rpath: str = "",
    signed: bool = True, more: bytes = b"",
) -> Path:  # fmt: skip
    """A small Mach-O library; ``taken`` are symbols with the number of the library in ``needed``, from 1, or -2."""
    bound = b""
    for index, (name, owner) in enumerate(taken):
        if index == 1:
            bound += b"\x20" + bytes([0x80 | owner, 0x00])  # a number over two bytes
        else:
            bound += bytes([0x10 | owner if owner >= 0 else 0x30 | owner & 0xF])
        bound += bytes([0x40 | (name in optional)]) + name.encode() + b"\0" + b"\x51\x72\x88\x01\x90"
    names, table = b"\0", b""
    for name in (*offered, "_hidden", *(name for name, _ in taken)):
        own = name in offered or name == "_hidden"
        type_ = (0x1E if name == "_hidden" else 0x0F) | 1 if own else 1
        table += struct.pack("<IBBHQ", len(names), type_, int(own), 0, 0)
        names += name.encode() + b"\0"

    def loads(at: int) -> bytes:
        """The commands, where what they point to begins at a byte."""
        symbols = at + len(bound)
        strings = symbols + len(table)
        end = strings + len(names)
        made = [command(0xC, struct.pack("<4I", 24, 0, 0, 0) + name.encode() + b"\0") for name in needed]
        made += [command(0x8000001C, struct.pack("<I", 12) + rpath.encode() + b"\0")] if rpath else []
        made += [
            command(0x32, struct.pack("<4I", platform, oldest[0] << 16 | oldest[1] << 8, 0, 0)),
            command(0x80000022, struct.pack("<10I", 0, 0, at, len(bound), 0, 0, symbols, 0, 0, 0)),
            command(0x2, struct.pack("<4I", symbols, len(table) // 16, strings, len(names))),
        ]
        made += [command(0x1D, struct.pack("<2I", end, 2**16))] if signed else []
        return b"".join([*made, more])

    commands = loads(0)
    count = len(needed) + 3 + bool(rpath) + signed + bool(more)
    head = struct.pack("<8I", macho.MAGIC_64, processor, 0, kind, count, len(commands), 0x85, 0)
    code = head + loads(len(head) + len(commands)) + bound + table + names
    path.write_bytes(code + (signature(code) if signed else b""))
    return path


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    """The folder of a small torch's libraries."""
    folder = tmp_path / "torch" / "lib"
    folder.mkdir(parents=True)
    taken = [("_memcpy", 1), ("_new_in_macos_14", 1), ("___cxa_throw", 2)]
    for name in ("libc10", "libtorch", "libtorch_python"):
        library(folder / f"{name}.dylib", taken=taken, offered=("_torch_of_another",), optional=("_new_in_macos_14",))
    library(folder / "libtorch_cpu.dylib", taken=taken[:1], offered=("_aoti_torch_get_dim", "__ZN2at5emptyEv"))
    return folder


def test_a_library_is_read(tmp_path: Path) -> None:
    found = MachO(library(tmp_path / "_C.abi3.so", optional=("_memcpy",), rpath="@loader_path"))
    assert (found.processor, found.kind, found.platform, found.oldest) == (
        macho.ARM64,
        macho.DYLIB,
        macho.MACOS,
        (11, 0),
    )
    assert found.libraries == list(NEEDED) and found.rpaths == ["@loader_path"]
    assert found.exported == list(OFFERED)
    owners = {1: macos_checks.SYSTEM, 2: macos_checks.CXX, 3: CPU, -2: macho.FLAT}
    assert found.undefined == sorted((name, owners[owner], name == "_memcpy") for name, owner in TAKEN)
    assert found.flaw_of_signature() is None


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    good = library(tmp_path / "good").read_bytes()
    for data, said in (
        (b"\x7fELF" + bytes(100), "no Mach-O file"),
        (b"short", "no Mach-O file"),
        (good[:100], "breaks off"),
        (good[:16] + struct.pack("<I", 99) + good[20:], "breaks off"),
        (good.replace(b"\x51\x72\x88\x01\x90", b"\xd1\x72\x88\x01\x90"), "instruction 0xd0"),
        (library(tmp_path / "chained", more=command(0x80000034, bytes(8))).read_bytes(), "chained fixups"),
        (library(tmp_path / "of another", needed=NEEDED[:2]).read_bytes(), "points outside"),
    ):
        path = tmp_path / "bad"
        path.write_bytes(data)
        with pytest.raises(Malformed, match=said):
            MachO(path)


def test_signatures(tmp_path: Path) -> None:
    path = library(tmp_path / "_C.abi3.so", taken=(*TAKEN, *((f"_symbol{n}", 1) for n in range(300))))
    good = path.read_bytes()
    end = good.index(struct.pack(">I", 0xFADE0CC0))
    assert MachO(path).flaw_of_signature() is None and end > 2 * 4096
    for data, said in (
        (good.replace(b"_symbol299", b"_symbol298"), "another hash of page"),
        (good[: end + 4], "breaks off"),
        (good[:end] + bytes(4) + good[end + 4 :], "is none"),
        (good[: end + 20] + bytes(4) + good[end + 24 :], "no hashes"),
        (good[: end + 52] + struct.pack(">I", 4096) + good[end + 56 :], "is of 4096 bytes"),
        (good[: end + 57] + b"\1" + good[end + 58 :], "SHA-256 is looked at alone"),
    ):
        path.write_bytes(data)
        assert said in (MachO(path).flaw_of_signature() or "")
    assert MachO(library(path, signed=False)).flaw_of_signature() == "it is not signed"


def test_what_may_be_published(tmp_path: Path, torch: Path) -> None:
    def refused(said: str, **changes: object) -> None:
        with pytest.raises(Refused, match=said):
            macos_checks.library(library(tmp_path / "_C.abi3.so", **changes), torch)  # type: ignore[arg-type]

    macos_checks.library(library(tmp_path / "_C.abi3.so"), torch)
    macos_checks.library(library(tmp_path / "_C.abi3.so", kind=macho.BUNDLE), torch)
    refused("no library for arm64", processor=0x01000007)
    refused("no library for arm64", kind=2)
    refused(r"from \(14, 0\), not macOS", oldest=(14, 0))
    refused("for platform 2", platform=2)
    refused("needs @rpath/libomp.dylib", needed=(*NEEDED, "@rpath/libomp.dylib"))
    refused("brings its own", needed=(NEEDED[0], NEEDED[0], CPU))
    refused("looks for libraries in @loader_path", rpath="@loader_path")
    refused("should export _PyInit__C alone, and exports _PyInit__C, _more", offered=(*OFFERED, "_more"))
    refused("exports nothing", offered=OFFERED[1:])
    refused("a program that loads _C.abi3.so: it is not signed", signed=False)
    for name, owner in (("__ZN2at5emptyEv", 3), ("_aoti_torch_new", 3), ("_new_in_macos_14", 1), ("_memcpy", 2),
                        ("__ZNSt3__19new_thingEv", 2), ("_memcpy", -2), ("_torch_of_another", 3),
                        ("_PyX", 1)):  # fmt: skip
        refused(f"may be missing: {name} of ", taken=(*TAKEN, (name, owner)))
    (tmp_path / "_C.abi3.so").write_bytes(b"nothing")
    with pytest.raises(Refused, match="no Mach-O file"):
        macos_checks.library(tmp_path / "_C.abi3.so", torch)


def test_the_stub_of_libcxx_has_what_torch_takes(torch: Path) -> None:
    stub = macos_checks.cxx_stub(torch)
    assert f"install-name: '{macos_checks.CXX}'" in stub and "targets: [ arm64-macos ]" in stub
    assert "___cxa_throw" in stub and "__ZnamSt11align_val_t" in stub and "_memcpy" not in stub


def test_compilers_for_macos(torch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compilers"
    folder.mkdir()
    variables = cross.MACOS.environment(torch.parent, folder)
    assert variables["_PYTHON_HOST_PLATFORM"] == "macosx-11.0-arm64" and variables["FRD_CUDA"] == "0"
    script = Path(variables["CXX"]).read_text()
    assert "-m ziglang c++ -target aarch64-macos.11.0" in script and script.rstrip().endswith('"$@"')
    assert variables["LDCXXSHARED"].startswith(variables["CXX"]) and "-nostdlib++" in variables["LDCXXSHARED"]
    assert (folder / "libmacos-c++.tbd").read_text() == macos_checks.cxx_stub(torch)
    assert str(folder) in variables["ZIG_GLOBAL_CACHE_DIR"]


def test_compilers_for_aarch64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDFLAGS", "-Lelsewhere")
    variables = cross.AARCH64.environment(tmp_path / "torch", tmp_path)
    assert variables["LDFLAGS"] == f"-L{tmp_path / 'torch' / 'lib'} -Lelsewhere"  # before others of its name
    assert variables["_PYTHON_HOST_PLATFORM"] == "linux-aarch64" and variables["FRD_CUDA"] == "0"
    assert variables["CXX"] == "aarch64-linux-gnu-g++" and variables["LDCXXSHARED"] == "aarch64-linux-gnu-g++ -shared"


@pytest.mark.parametrize("target", cross.TARGETS, ids=lambda target: target.name)
def test_a_target_without_its_compiler_says_what_to_install(
    target: cross.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert target.obstacle() is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {"aarch64": "package g++-aarch64-linux-gnu", "macos": "pip install ziglang"}[target.name] in (
        target.obstacle() or ""
    )
