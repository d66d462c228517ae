"""Reads Mach-O, the format of macOS's libraries: what one asks of others, what it offers, and how it is signed.

After Apple's headers mach-o/loader.h, mach-o/nlist.h and, for signatures, kern/cs_blobs.h.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC_64 = 0xFEEDFACF
ARM64 = 0x0100000C
DYLIB, BUNDLE = 6, 8
"""Kinds of files that a running program can load."""
MACOS = 1
FLAT = "any library"
"""The owner of a symbol that is looked for in everything that is loaded."""

_LOAD = {0xC: "plain", 0x80000018: "weak", 0x8000001F: "re-exported", 0x20: "lazy", 0x80000023: "upward"}
_SYMTAB, _RPATH, _SIGNATURE, _BUILD_VERSION, _DYLD_INFO, _FIXUPS = 0x2, 0x8000001C, 0x1D, 0x32, 0x80000022, 0x80000034
_EMBEDDED_SIGNATURE, _CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
_SHA256 = 2


class Malformed(Exception):
    """The file is none, or not as Apple's headers describe it; the message says what is wrong."""


class Symbol(NamedTuple):
    """An undefined symbol, the library that the loader takes it from, and whether it may be missing there."""

    name: str
    owner: str
    optional: bool


class MachO:
    """A library of one processor.

    Attributes:
        processor, kind: numbers of the header, as ARM64 and DYLIB.
        platform: MACOS or another system's number.
        oldest: the oldest version of the system that it is for, as in (11, 0).
        libraries: names of those that it asks the loader for, in the order in which symbols refer to them.
        rpaths: where it tells the loader to look for them.
        undefined: what it expects of others.
        exported: what it offers them.

    Raises:
        Malformed: the file is no Mach-O library of 64 bits, or breaks off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            magic, self.processor, _, self.kind, count, size, _, _ = struct.unpack_from("<8I", self._data)
        except struct.error:
            magic = None
        if magic != MAGIC_64:
            raise Malformed(f"{path.name} is no Mach-O file of 64 bits for one processor")
        self.platform, self.oldest = 0, (0, 0)
        self.libraries: list[str] = []
        self.rpaths: list[str] = []
        self.undefined: list[Symbol] = []
        self.exported: list[str] = []
        self._signature: bytes | None = None
        self._signed = 0
        try:
            commands = list(self._commands(count, 32 + size))
            for command, body in commands:
                self._read(command, body)
            for command, body in commands:  # once all libraries are known
                if command == _DYLD_INFO:
                    numbers = struct.unpack_from("<10I", body, 8)
                    bound = [self._bound(*numbers[2:4]), self._bound(*numbers[6:8])]  # at once, and at the first call
                    self.undefined = sorted({symbol for symbols in bound for symbol in symbols})
        except (struct.error, IndexError, ValueError) as error:
            raise Malformed(f"{path.name} breaks off, or a number in it points outside: {error}") from error

    def _commands(self, count: int, end: int) -> Iterator[tuple[int, bytes]]:
        at = 32
        for _ in range(count):
            command, size = struct.unpack_from("<2I", self._data, at)
            if size < 8 or at + size > min(end, len(self._data)):
                raise ValueError(f"load command at byte {at} has {size} bytes")
            yield command, self._data[at : at + size]
            at += size

    def _read(self, command: int, body: bytes) -> None:
        if command in _LOAD:
            self.libraries.append(_text(body, *struct.unpack_from("<I", body, 8)))
        elif command == _RPATH:
            self.rpaths.append(_text(body, *struct.unpack_from("<I", body, 8)))
        elif command == _BUILD_VERSION:
            self.platform, version = struct.unpack_from("<2I", body, 8)
            self.oldest = (version >> 16, version >> 8 & 0xFF)
        elif command == _SIGNATURE:
            self._signed, size = struct.unpack_from("<2I", body, 8)
            self._signature = self._data[self._signed : self._signed + size]
        elif command == _SYMTAB:
            self._offers(*struct.unpack_from("<4I", body, 8))
        elif command == _FIXUPS:
            raise ValueError("it has chained fixups, which are not read here")

    def _offers(self, table: int, count: int, strings: int, size: int) -> None:
        names = self._data[strings : strings + size]
        for at in range(table, table + 16 * count, 16):
            name, kind = struct.unpack_from("<IB", self._data, at)
            # Not those for a debugger, of this file alone, hidden or undefined.
            if not kind & 0xE0 and kind & 0x11 == 1 and kind & 0x0E:
                self.exported.append(_text(names, name))

    def _bound(self, start: int, size: int) -> Iterator[Symbol]:
        """What the loader's instructions say. A table of symbols has owners too, which it passes over."""
        code = self._data[start : start + size]
        at, owner, name, optional = 0, "", "", False

        def number() -> int:
            """Seven bits a byte, the lowest first; the last has no eighth."""
            nonlocal at
            value, shift = 0, 0
            while True:
                value |= (code[at] & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not code[at - 1] & 0x80:
                    return value

        while at < len(code):
            operation, given = code[at] & 0xF0, code[at] & 0x0F
            at += 1
            if operation in (0x10, 0x20):
                ordinal = given if operation == 0x10 else number()
                owner = self.libraries[ordinal - 1] if ordinal else "itself"
            elif operation == 0x30:
                owner = {0xE: FLAT, 0xF: "the program"}.get(given, "itself")
            elif operation == 0x40:
                name, optional = _text(code, at), bool(given & 1)
                at += len(name) + 1
            elif operation in (0x60, 0x70, 0x80):  # where to, which does not matter here
                number()
            elif operation in (0x90, 0xA0, 0xB0, 0xC0):
                for _ in range({0xA0: 1, 0xC0: 2}.get(operation, 0)):
                    number()
                yield Symbol(name, owner, optional)
            elif operation not in (0x00, 0x50):
                raise ValueError(f"instruction {operation:#x} of the loader is not known")

    def flaw_of_signature(self) -> str | None:
        """Why macOS would not run its code, every page of which has a hash in the signature; None where it would.

        Who signed is not looked at: a processor of Apple's asks for no more than that the hashes are right.
        """
        if self._signature is None:
            return "it is not signed"
        try:
            return self._flaw_of_directory(self._signature)
        except struct.error:
            return "its signature breaks off"

    def _flaw_of_directory(self, blob: bytes) -> str | None:
        magic, _, count = struct.unpack_from(">3I", blob)
        if magic != _EMBEDDED_SIGNATURE:
            return "its signature is none"
        starts = [struct.unpack_from(">2I", blob, 12 + 8 * index)[1] for index in range(count)]
        start = next((at for at in starts if struct.unpack_from(">I", blob, at)[0] == _CODE_DIRECTORY), None)
        if start is None:
            return "its signature has no hashes"
        hashes, _, _, pages, limit = struct.unpack_from(">5I", blob, start + 16)
        size, kind, _, log_page = struct.unpack_from("4B", blob, start + 36)
        if (size, kind) != (32, _SHA256):
            return f"its signature has hashes of kind {kind}, and SHA-256 is looked at alone"
        page = 1 << log_page
        if limit != self._signed or pages != -(-limit // page):
            return f"its signature is of {limit} bytes, and {self._signed} come before it"
        for index in range(pages):
            at = start + hashes + size * index
            code = self._data[index * page : min(limit, (index + 1) * page)]
            if hashlib.sha256(code).digest() != blob[at : at + size]:
                return f"its signature has another hash of page {index}"
        return None


def _text(data: bytes, start: int) -> str:
    """The text that begins there and ends with a zero byte."""
    return data[start : data.index(0, start)].decode()
