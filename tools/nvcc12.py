"""nvcc's command line for CUDA 12, by NVRTC, ptxas and clang.

pip has CUDA 12's headers, libraries, NVRTC and ptxas, but no nvcc of it. tools/cuda12.py copies this file to bin/nvcc
beside them, so that what asks for a toolkit finds one: setup.py, torch's extensions and tools/compile_cuda.py. It takes
the options that these give, and refuses others:

    nvcc [options] -c SOURCE.cu -o OBJECT -gencode arch=compute_90,code=sm_90 ...
    nvcc [options] -cubin SOURCE.cu -o CUBIN -arch=sm_90
    nvcc --version | --dryrun

As with nvcc, the device's side is compiled by CUDA's own front end and NVVM, here inside NVRTC, to PTX, and that by
ptxas to machine code. clang compiles the host's side, with the machine code inside, and registers each kernel under its
name.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

NAME = "nvcc of CUDA 12"
IGNORED = {"-c", "--expt-relaxed-constexpr", "--threads=2"}
"""Options of nvcc for what happens here anyhow, or that say how and not what."""

# NVRTC takes what has no execution space for the device's, so that it compiles launchers too and throws them away: no
# kernel calls them. What they call is declared here, and in the headers of which only the host's side uses something.
BEFORE = """
#include <cuda_runtime.h>
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t);
cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t);
template <class T> cudaError_t cudaFuncSetAttribute(T*, cudaFuncAttribute, int);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
#line 1
"""
OF_THE_HOST = {
    "algorithm": """
namespace std {
template <class T> constexpr const T& min(const T& a, const T& b) { return b < a ? b : a; }
template <class T> constexpr const T& max(const T& a, const T& b) { return a < b ? b : a; }
}
""",
    "memory": "",
    "stdexcept": """
#include <string>
namespace std { struct runtime_error { runtime_error(const string&); }; }
""",
    "string": """
#pragma once
namespace std {
struct string {
  string();
  string(const char*);
  bool empty() const;
  string& operator+=(const string&);
};
string operator+(const string&, const string&);
template <class T> string to_string(T);
}
""",
    "vector": "#pragma once\nnamespace std { template <class T> struct vector; }\n",
}

# Of the standard library NVRTC has nothing. CUDA's own has the same in another namespace.
STANDARD = {
    name: f"#include <cuda/std/{name}>\nnamespace std {{ using namespace cuda::std; }}\n"
    for name in ("cmath", "cstddef", "cstdint", "type_traits", "utility")
}
STANDARD["cstddef"] += "using cuda::std::size_t;\n"
HEADERS = {**STANDARD, **OF_THE_HOST}


class Refused(SystemExit):
    """What is asked for cannot be done, or not as it is asked for."""


# ----------------------------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """What a command line asks for."""

    source: Path | None = None
    output: Path | None = None
    cubin: bool = False
    code: list[tuple[str, int]] = field(default_factory=list)  # ("sm", 90) is machine code, ("compute", 90) PTX
    shared: list[str] = field(default_factory=list)  # for both sides
    host: list[str] = field(default_factory=list)
    ptxas: list[str] = field(default_factory=list)


def understood(arguments: list[str]) -> Call:
    """Raises Refused for an option that it does not know: the result would not be what is asked for."""
    call = Call()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        # A value may follow in the same word or in the next one.
        if name in ("-gencode", "-arch", "-Xcompiler", "--compiler-options", "-Xptxas", "-ccbin") and not equals:
            value = rest.pop(0)
        if word in IGNORED or name == "-ccbin":
            continue
        if word == "-cubin":
            call.cubin = True
        elif word == "-o":
            call.output = Path(rest.pop(0))
        elif word in ("-MD", "--generate-dependencies-with-compile"):
            call.host.append("-MD")
        elif word in ("-MF", "--dependency-output"):
            call.host += ["-MF", rest.pop(0)]
        elif name == "-arch":
            call.code.append(code_of(value))
        elif name == "-gencode":
            code = dict(part.split("=") for part in value.split(",", 1))["code"]
            call.code += [code_of(part) for part in code.strip("[]").split(",")]
        elif name in ("-Xcompiler", "--compiler-options"):
            call.host += value.strip("'\"").split(",")
        elif name == "-Xptxas":
            call.ptxas.append(value)
        elif word in ("-I", "-isystem", "-D"):
            call.shared.append(f"{'-D' if word == '-D' else '-I'}{rest.pop(0)}")
        elif re.match(r"-[DI].|-std=", word):
            call.shared.append(word)
        elif re.match(r"-[OWg]", word):
            call.host.append(word)
        elif word.startswith("-") or call.source:
            raise Refused(f"{NAME} does not know {word}")
        else:
            call.source = Path(word)
    if call.source is None or call.output is None or not call.code:
        raise Refused(f"{NAME} needs a source, -o and an architecture, got {arguments}")
    return call


def code_of(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(sm|compute)_(\d+)", text)
    if found is None:
        raise Refused(f"{NAME} makes sm_N and compute_N, got {text}")
    return found[1], int(found[2])


# ----------------------------------------------------------------------------------------------------------------------
# PTX
# ----------------------------------------------------------------------------------------------------------------------


class Nvrtc:
    """One program after another."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def call(self, function: str, *arguments: object) -> int:
        return getattr(self.library, f"nvrtc{function}")(*arguments)

    def text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", program, buffer)
        return buffer.value.decode()

    def ptx(self, source: Path, options: list[str]) -> str:
        """Raises Refused with the compiler's words."""
        program = ctypes.c_void_p()
        text = BEFORE + source.read_text("utf-8")
        count = len(HEADERS)
        names = (ctypes.c_char_p * count)(*(name.encode() for name in HEADERS))
        headers = (ctypes.c_char_p * count)(*(header.encode() for header in HEADERS.values()))
        self.call("CreateProgram", ctypes.byref(program), text.encode(), str(source).encode(), count, headers, names)
        try:
            given = (ctypes.c_char_p * len(options))(*map(str.encode, options))
            failed = self.call("CompileProgram", program, len(options), given)
            said = self.text(program, "ProgramLog").strip()
            if failed:
                raise Refused(said or f"NVRTC ended with status {failed}")
            if said:
                print(said, file=sys.stderr)
            return self.text(program, "PTX")
        finally:
            self.call("DestroyProgram", ctypes.byref(program))


def as_clang_names(ptx: str) -> str:
    """PTX with the name that clang gives to a namespace without one, so that kernels have the names it registers."""
    name = re.compile(r"(\d+)(_GLOBAL__N__\w+)")

    def renamed(found: re.Match[str]) -> str:
        length = int(found[1])  # what follows belongs to the next name
        return "12_GLOBAL__N_1" + found[2][length:]

    return name.sub(renamed, ptx)


def without_unused(ptx: str) -> str:
    """PTX without the headers' constants that nothing refers to, which would be kept in the device's memory."""
    uses = Counter(re.findall(r"\b_ZN\w+", ptx))
    declared = re.compile(r"^\.(?:global|const) [^\n]*?(_ZN\w+)(?:\[\d*\])?(?: = [^\n]*)?;\n", re.MULTILINE)
    return declared.sub(lambda found: found[0] if uses[found[1]] > 1 else "", ptx)


def kernels_of(ptx: str) -> set[str]:
    return set(re.findall(r"^(?:\.visible )?\.entry (\w+)\(", ptx, re.MULTILINE))


def registered(host: Path) -> set[str]:
    """The kernels of an object that clang made: each has a stub, whose name is the kernel's with a word before it."""
    listed = subprocess.run(["nm", host], capture_output=True, text=True, check=True).stdout
    word = "__device_stub__"
    found = re.findall(rf"(_Z\w*?)(\d+){word}(\w+)", listed)
    return {f"{before}{int(length) - len(word)}{after}" for before, length, after in found}


# ----------------------------------------------------------------------------------------------------------------------
# Objects
# ----------------------------------------------------------------------------------------------------------------------


class Toolkit:
    """CUDA 12's headers, NVRTC and ptxas, and the clang that goes with them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clang = os.environ.get("FRD_CLANGXX", "clang++-19")

    def ptx(self, call: Call, architecture: int, folder: Path) -> Path:
        assert call.source is not None
        made = folder / f"compute_{architecture}.ptx"
        if not made.exists():
            options = [f"--gpu-architecture=compute_{architecture}", "-default-device", *call.shared]
            compiler = Nvrtc(self.home / "lib" / "libnvrtc.so.12")
            text = compiler.ptx(call.source, [*options, f"-I{self.home / 'include'}"])
            made.write_text(without_unused(as_clang_names(text)))
        return made

    def machine_code(self, call: Call, architecture: int, folder: Path, made: Path) -> Path:
        ptx = self.ptx(call, architecture, folder)
        run(str(self.home / "bin" / "ptxas"), f"-arch=sm_{architecture}", *call.ptxas, str(ptx), "-o", str(made))
        return made

    def packed(self, call: Call, folder: Path) -> Path:
        images = []
        for kind, architecture in call.code:
            if kind == "sm":
                cubin = self.machine_code(call, architecture, folder, folder / f"sm_{architecture}.cubin")
                images.append(f"--image3=kind=elf,sm={architecture},file={cubin}")
            else:
                images.append(f"--image3=kind=ptx,sm={architecture},file={self.ptx(call, architecture, folder)}")
        made = folder / "code.fatbin"
        # Compressed in a way that every driver for CUDA 12 undoes.
        compression = ("--compress-all", "--compress-mode=speed")
        run(str(self.home / "bin" / "fatbinary"), "-64", *compression, *images, f"--create={made}")
        return made

    def compiled(self, call: Call) -> None:
        assert call.source is not None and call.output is not None
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if call.cubin:
                ((_, architecture),) = call.code
                self.machine_code(call, architecture, folder, call.output)
                return
            packed = self.packed(call, folder)
            # clang 19 knows the names of versions up to 12.6, and takes later ones for that.
            cuda = ("-x", "cuda", "--cuda-host-only", f"--cuda-path={self.home}", "-Wno-unknown-cuda-version")
            embedded = ("-Xclang", "-fcuda-include-gpubinary", "-Xclang", str(packed))
            run(self.clang, *cuda, *embedded, *call.shared, *call.host, "-c", str(call.source), "-o", str(call.output))
            (_, architecture), kernels = call.code[0], registered(call.output)
            if kernels != (compiled := kernels_of(self.ptx(call, architecture, folder).read_text())):
                call.output.unlink()
                raise Refused(f"{call.source}: host and device name other kernels: {sorted(kernels ^ compiled)}")

    def version(self) -> str:
        """As nvcc says it, with the compilers in the last line."""
        done = subprocess.run([self.home / "bin" / "ptxas", "--version"], capture_output=True, text=True, check=True)
        release = re.search(r"release (\d+\.\d+), (V[\d.]+)", done.stdout)
        assert release, done.stdout
        return f"Cuda compilation tools, release {release[1]}, {release[2]}\nBuild NVRTC and ptxas {release[2]}\n"


def run(*command: str) -> None:
    """What the tools say goes to where this program's output goes."""
    done = subprocess.run(command)
    if done.returncode:
        raise SystemExit(done.returncode)


def main(arguments: list[str]) -> None:
    toolkit = Toolkit(Path(__file__).resolve().parents[1])
    if "--version" in arguments:
        print(toolkit.version(), end="")
    elif "--dryrun" in arguments:
        print(f"#$ TOP={toolkit.home}", file=sys.stderr)
    else:
        call = understood(arguments)
        if not call.cubin and shutil.which(toolkit.clang) is None:
            raise Refused(f"there is no {toolkit.clang} (Debian, Ubuntu: package clang-19); FRD_CLANGXX names another")
        toolkit.compiled(call)


if __name__ == "__main__":
    main(sys.argv[1:])
