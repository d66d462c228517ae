"""Builds the one compiled part of the package, ``fused_rnn_dropout._C``: operator schemas and CPU kernels.

It uses LibTorch's stable ABI and Python's limited API, so one wheel serves every CPython >= 3.10 and torch >= 2.10,
whichever torch it was built against. No -march flag is given for the same reason: the kernels choose among their
instruction sets at run time.

Environment: FRD_EXTRA_CXXFLAGS is appended to the compiler's and the linker's options, as
``FRD_EXTRA_CXXFLAGS="-fsanitize=address -O1"`` for a sanitizer build.
"""

import os
import shlex
import sys
from glob import glob

from setuptools import setup

TORCH_TARGET = "0x020a000000000000"  # use only what torch 2.10 has
WHEEL_TAG = "cp310"  # with abi3: this CPython and every later one


def compiler_flags() -> list[str]:
    if sys.platform == "win32":
        return ["/std:c++20", "/O2", "/permissive-", "/Zc:__cplusplus", f"/DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # -g0: Python's own flags ask for debug information, which would make up most of the library.
    flags = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # Vectors wider than the baseline's registers are never passed between libraries, and gcc 12 takes its own
    # AVX-512 header for uninitialised.
    flags += ["-Wno-psabi", "-Wno-maybe-uninitialized"]
    return [*flags, f"-ffile-prefix-map={os.path.abspath('.')}/="]  # error messages name files


def extensions() -> list:
    from torch.utils.cpp_extension import CppExtension

    extra = shlex.split(os.environ.get("FRD_EXTRA_CXXFLAGS", ""))
    return [
        CppExtension(
            "fused_rnn_dropout._C",
            sorted(glob("csrc/bind/*.cpp") + glob("csrc/cpu/*.cpp")),
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            include_dirs=[os.path.abspath("csrc")],  # absolute: ninja compiles from the build folder
            py_limited_api=True,
            extra_compile_args={"cxx": compiler_flags() + extra},
            extra_link_args=extra,
        )
    ]


def build_arguments() -> dict:
    # An sdist and the metadata need no compiler and no torch, so making them must not fetch one.
    if sys.argv[1:2] in (["sdist"], ["egg_info"], ["dist_info"]):
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {
        "ext_modules": extensions(),
        "cmdclass": {"build_ext": BuildExtension},
        "options": {
            "bdist_wheel": {"py_limited_api": WHEEL_TAG},
            # setuptools compares only dates, and would pack a library that was built with other flags. ninja, which
            # is asked instead, compares the commands too, and compiles only what changed.
            "build_ext": {"force": True},
        },
    }


setup(**build_arguments())
