"""Plants faults in the CPU kernels, one at a time, and checks that the tests catch each of them.

    python scripts/mutate.py [--list] [--only NAME ...] [--jobs N]

For each fault the sources are copied, changed, compiled for the baseline instruction set, and the tests are run on the
result until the first one fails. The unchanged sources go first and must pass. Exits with 1 if a fault goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/test_counters.py",
    "tests/test_cpu_kernels.py",
    "tests/test_chunks.py",
    "tests/test_packed.py",
    "tests/test_geometry.py",
)
STUBS = """#include "cpu/schedule.h"
const frd::cpu::Kernels* frd::cpu::avx2_kernels() { return nullptr; }
const frd::cpu::Kernels* frd::cpu::avx512_kernels() { return nullptr; }
"""


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault("philox with 6 rounds", "core/philox.h", "PHILOX_ROUNDS = 10", "PHILOX_ROUNDS = 6"),
    Fault("one word for two sites", "core/counters.h", "WORD_UPDATE = 2", "WORD_UPDATE = 1"),
    Fault("an 8-bit threshold", "cpu/words.h", "words < static_cast<uint32_t>(threshold)",
          "(words >> 24) < static_cast<uint32_t>(threshold >> 24)"),
    Fault("one mask for the whole batch", "cpu/schedule.h", "example_ids ? example_ids[b] : b", "0 * b"),
    Fault("step_offset ignored", "cpu/words.h", "masks_.step_offset + static_cast<uint32_t>(t)",
          "static_cast<uint32_t>(t)"),
    Fault("reverse direction draws the forward masks", "core/counters.h", "kind | direction << 8",
          "kind | 0 * direction"),
    Fault("backward takes the masks of another step", "cpu/layer_backward.h",
          "const Drops<Math> drops = cell_.masks().drops(b, u, t);",
          "const Drops<Math> drops = cell_.masks().drops(b, u, t + 1);"),
    Fault("with a projection, backward takes the masks of another step", "cpu/layer_backward.h",
          "at_gates(t, b, u, cell_.masks().drops(b, u, t), sum",
          "at_gates(t, b, u, cell_.masks().drops(b, u, t + 1), sum"),
    Fault("hidden mask left out in backward", "cpu/layer_backward.h",
          "load(carried, n) + cell_.through(b, u, sum)", "load(carried, n) + cell_.seen(sum)"),
    Fault("hidden mask left out on the way to h_0", "cpu/layer_backward.h",
          "load(&dh_[b * P_ + u], n) + cell_.through(b, u, sum)", "load(&dh_[b * P_ + u], n) + cell_.seen(sum)"),
    Fault("the memory's scale left out in a GRU's backward", "cpu/cells.h",
          "return seen(masks_.hidden(b, u, grad));", "return masks_.hidden(b, u, grad);"),
    Fault("a caller's h_0 taken for unscaled", "cpu/cells.h", "sites_.entry_scale, masks_.dead(b, u), h)",
          "T(1), masks_.dead(b, u), h)"),
    Fault("scale applied twice", "core/sites.h", "site.scale * value", "site.scale * site.scale * value"),
    Fault("zoneout's masks inverted", "core/sites.h", "Math::select(keep_old, old_value, new_value)",
          "Math::select(keep_old, new_value, old_value)"),
    Fault("zoneout's gradient to the wrong value", "core/sites.h", "Math::select(keep_old, grad, Vec{})",
          "Math::select(keep_old, Vec{}, grad)"),
    Fault("zoneout's expectation forgotten in eval", "core/sites.h", "(T(1) - zone.keep) * new_value", "new_value"),
    Fault("h from the zoned memory", "core/cells/lstm.h", "return read(sites, gates[3], c_new);",
          "return read(sites, gates[3], c);"),
    Fault("memory scale inside the loop", "core/sites.h",
          "sites.read_scale = T(keep_scale(p));", "sites.read_scale = sites.memory.scale = T(keep_scale(p));"),
    Fault("dead units enter alive", "core/sites.h",
          "return dead_units ? Math::select(dead, typename Math::Vec{}, scaled)",
          "return false ? Math::select(dead, typename Math::Vec{}, scaled)"),
    Fault("weight mask shared by all rows", "cpu/pack.h",
          "static_cast<uint32_t>(first), static_cast<uint32_t>(row), SEQ", "static_cast<uint32_t>(first), 0u, SEQ"),
    Fault("weight mask left out of its gradient", "cpu/layer_backward.h",
          "if (p_.dw_hh) mask_gradient(p_.parallel, m_hh_, p_.dw_hh);", ""),
    Fault("final state of the longest row only", "cpu/layer_forward.h", "return b >= sequence.continued_by(t);",
          "return !sequence.exists(sequence.after(t)) && b >= 0;"),
    Fault("h of the step before the last", "cpu/layer_forward.h", "read_[(((s + 1) % 2) * B_ + b) * P_ + u]",
          "read_[((s % 2) * B_ + b) * P_ + u]"),
    Fault("bias forgotten when gates are computed again", "cpu/gates_again.h", "w_ih_, cell_.bias(), gates_.get()",
          "w_ih_, static_cast<const T*>(nullptr), gates_.get()"),
    Fault("gates of the step after a chunk lost", "cpu/layer_backward.h",
          "std::memcpy(&later_[b * G * H_], through_u(t, b), G * H_ * sizeof(T));",
          "std::memset(&later_[b * G * H_], 0, G * H_ * sizeof(T));"),
    Fault("gates of the step after a chunk that went through W", "cpu/layer_backward.h",
          "std::memcpy(&later_[b * G * H_], through_u(t, b),", "std::memcpy(&later_[b * G * H_], dgates(t, b),"),
    Fault("a weight's gradient from the last chunk only", "cpu/products.h",
          "first ? sum : load(to, columns_ - column) + sum", "sum"),
    Fault("a bias's gradient from the last chunk only", "cpu/products.h", "first ? total : target[i] + total",
          "total"),
    Fault("input mask of the first step for all", "cpu/elementwise.h",
          "p_.step_offset + static_cast<uint32_t>(t)", "p_.step_offset + static_cast<uint32_t>(begin)"),
    Fault("input mask of the first example for all", "cpu/elementwise.h", "p_.per_step ? 0 : b * padded_", "0"),
    Fault("no gradient for h_0 of rows that end early in a reversed pass", "cpu/layer_backward.h",
          ": leave_h(b, u, sum)", ": leave_h(b, u, V{})"),
    Fault("gate n's gradient through W from U", "cpu/layer_backward.h", "m_ih_, FIRST_OF_W * H_, packing_of_dx",
          "m_ih_, 0, packing_of_dx"),
    Fault("mask of another quad where columns are packed in turn", "cpu/pack.h", "v == 0 || column % QUAD == 0",
          "v == 0"),
    Fault("gates of the first tile where they are packed in turn", "cpu/tiles.h", "pack_gate_tile<NV>(w_, tile, room)",
          "pack_gate_tile<NV>(w_, 0, room)"),
    Fault("a panel of gradients to the wrong rows", "cpu/layer_backward.h",
          "{&dw_ih_, p_.db_ih, H_, G * H_, 0}", "{&dw_ih_, p_.db_ih, H_, G * H_, H_}"),
    Fault("one piece of scratch for two", "cpu/scratch.cpp", "block.memory + block.cut, bytes",
          "block.memory + block.cut / 2, bytes"),
    Fault("mask of the first columns for all", "cpu/elementwise.h", "store(&mask[first + v * LANES]",
          "store(&mask[v * LANES]"),
    Fault("tiles overlap", "cpu/gemm.h", "return vectors * tile / tiles;", "return vectors * tile / (tiles + 1);"),
    Fault("un-zoned output's gradient zoned", "cpu/layer_backward.h", "if (sites.unzoned) dh_new += dout;", ""),
    Fault("h kept beside a GRU's gates in the place of u", "cpu/layer_forward.h", "HAS_C ? memory : apart, n);",
          "memory, n);"),
)  # fmt: skip


# Headers that the bindings read too.
EVERYWHERE = ("core/cells.h", "core/counters.h", "core/philox.h", "cpu/schedule.h")


def compiler() -> tuple[list[str], list[str]]:
    """The command to compile a source, and what to add to link, for the torch of this Python."""
    import sysconfig

    from torch.utils import cpp_extension

    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-DPy_LIMITED_API=0x030A0000",
             "-DTORCH_TARGET_VERSION=0x020a000000000000"]  # fmt: skip
    includes = [f"-I{path}" for path in [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    return [os.environ.get("CXX", "g++"), *flags, *includes], libraries


def sources(folder: Path) -> list[Path]:
    skip = {"isa_avx2.cpp", "isa_avx512.cpp"}
    found = sorted([*folder.glob("bind/*.cpp"), *folder.glob("cpu/*.cpp")])
    return [path for path in found if path.name not in skip and not path.name.startswith("cuda_")]


def build(work: Path, fault: Fault | None, pristine: Path | None) -> Path:
    """A copy of the package in ``work`` with the changed library; objects that cannot differ come from ``pristine``."""
    csrc, package = work / "csrc", work / "fused_rnn_dropout"
    shutil.copytree(ROOT / "csrc", csrc)
    shutil.copytree(ROOT / "fused_rnn_dropout", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    (csrc / "cpu" / "stubs.cpp").write_text(STUBS)
    if fault:
        changed = csrc / fault.file
        text = changed.read_text()
        if fault.old not in text:
            raise SystemExit(f"{fault.name}: {fault.file} no longer holds {fault.old!r}")
        changed.write_text(text.replace(fault.old, fault.new))
    compile_command, libraries = compiler()
    objects = []
    for source in sources(csrc):
        target = work / (source.stem + "_" + source.parent.name + ".o")
        everywhere = fault is None or fault.file in EVERYWHERE
        affected = everywhere or source == csrc / fault.file or source.name == "isa_baseline.cpp"
        if pristine is not None and not affected:
            shutil.copy(pristine / target.name, target)
        else:
            subprocess.run([*compile_command, f"-I{csrc}", "-c", source, "-o", target], check=True)
        objects.append(target)
    library = package / "_C.abi3.so"
    subprocess.run([compile_command[0], "-shared", "-o", library, *objects, *libraries], check=True)
    return work


def run_tests(work: Path) -> tuple[bool, str]:
    """Whether the tests passed, and the line that says what failed."""
    environment = {**os.environ, "PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line",
               "-k", "not header", *TESTS]  # fmt: skip
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode == 0, failed[0] if failed else done.stdout.strip().splitlines()[-1]


def attempt(fault: Fault, pristine: Path, folder: Path) -> tuple[Fault, bool, str, float]:
    start = time.monotonic()
    work = Path(tempfile.mkdtemp(dir=folder))
    build(work, fault, pristine)
    passed, line = run_tests(work)
    shutil.rmtree(work)
    return fault, passed, line, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="plant only the faults whose names contain NAME")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time (default: one per core)"
    )
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or any(part in fault.name for part in options.only)]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("building the kernels as they are, and running the tests on them", flush=True)
        pristine = build(folder / "pristine", None, None)
        passed, line = run_tests(pristine)
        if not passed:
            print(f"the tests fail without a fault: {line}")
            return 1
        unnoticed = []
        with ThreadPoolExecutor(options.jobs) as pool:
            results = [pool.submit(attempt, fault, pristine, folder) for fault in chosen]
            for number, result in enumerate(results, 1):
                fault, passed, line, seconds = result.result()
                print(f"[{number}/{len(chosen)}] {'UNNOTICED' if passed else 'caught'}: {fault.name} ({seconds:.0f} s)"
                      f"{'' if passed else chr(10) + '    by ' + line[:150]}", flush=True)  # fmt: skip
                if passed:
                    unnoticed.append(fault.name)
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} faults caught")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
