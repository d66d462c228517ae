"""Makes what is published of one commit, from a clean clone, and checks each file: python -m tools.release

    dist/fused_rnn_dropout-VERSION.tar.gz                                   the sdist
    dist/fused_rnn_dropout-VERSION-cp310-abi3-manylinux_2_28_x86_64.whl     kernels for the CPU, CUDA 12 and CUDA 13
    dist/fused_rnn_dropout-VERSION-cp310-abi3-manylinux_2_28_aarch64.whl    those for the CPU
    dist/fused_rnn_dropout-VERSION-cp310-abi3-macosx_11_0_arm64.whl         those for the CPU
    dist/SHA256SUMS

It works in build/release/COMMIT and can be run again after it was interrupted: a step that is done is not done twice.
The interpreter needs a CUDA build of torch, setuptools >= 77, ninja and the extra `release`, which has the compiler for
macOS; the machine g++, binutils, git, nvcc of CUDA 13, clang 19 and Debian's compiler for aarch64. What is done before
and after is in RELEASING.md.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from . import cross, cuda12, macos_checks, wheel_checks
from .wheel_checks import Refused

ROOT = Path(__file__).resolve().parents[1]
PLATFORM = "manylinux_2_28_x86_64"
LIBRARIES = ("_C", "_cuda12", "_cuda13")
NOT_OURS = ("libtorch*.so", "libc10*.so", "libcudart.so.*")
"""Libraries that come with torch and not with the wheel."""

TEN_LINES = """
import torch
import fused_rnn_dropout as frd
rnn = frd.LSTM(40, 115, num_layers=3, input_dropout=0.4, weight_dropout=0.5, zoneout_c=0.1)
out, (h, c) = rnn(torch.randn(7, 2, 40))
out.sum().backward()
print(frd.explain(rnn, out[..., :40]))
model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(6, 6, 2)})
frd.convert(model, weight_dropout=0.5)
frd.revert(model)
"""
"""README's, smaller."""

LOADED = """
import torch
from fused_rnn_dropout import library
major = (torch.version.cuda or "").split(".")[0]
wanted = ["_C.abi3.so", *([f"_cuda{major}.abi3.so"] if major else [])]
found = [path.name for path in library.library_paths()]
assert found == wanted, f"torch {torch.__version__} loads {found}, not {wanted}: {library._no_cuda}"
print(bool(major))
"""
"""That the library for this torch's CUDA is loaded, and no other."""


class Release:
    """A release of one commit, and where it is made.

    Args:
        commit: its full name.
        seconds: when it was committed, which is the date of every file.
        dist: where the files go in the end.
        under: further interpreters to use the wheel with, each with a torch of its own.
    """

    def __init__(self, commit: str, seconds: int, dist: Path, under: Sequence[Path] = ()) -> None:
        self.commit, self.dist = commit, dist
        self.pythons = [Path(sys.executable), *under]
        self.work = ROOT / "build" / "release" / commit
        self.environment = {
            **os.environ,
            "SOURCE_DATE_EPOCH": str(seconds),
            "PYTHONHASHSEED": "0",
            "FRD_CUDA": "12,13",
            "FRD_RELEASE": "1",
            "CUDA12_HOME": str(cuda12.HOME),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }
        for name in ("FRD_EXTRA_CXXFLAGS", "TORCH_CUDA_ARCH_LIST", "CC", "CXX"):
            self.environment.pop(name, None)
        self.seconds = seconds

    def run(self, *command: str | Path, cwd: Path | None = None, **more: str) -> str:
        """Runs a command; its output where it succeeds, else the end of it in the error."""
        done = subprocess.run(
            list(map(str, command)), cwd=cwd or ROOT, env={**self.environment, **more}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            end = "\n".join(done.stdout.splitlines()[-40:])
            raise Refused(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n{end}")
        return done.stdout

    def python(self, *arguments: str | Path, cwd: Path | None = None, **more: str) -> str:
        return self.run(sys.executable, *arguments, cwd=cwd, **more)

    def only(self, pattern: str) -> Path:
        """The one file of the work folder that fits."""
        found = sorted(self.work.glob(pattern))
        if len(found) != 1:
            raise Refused(f"there should be one {pattern} in {self.work}, and there are {len(found)}")
        return found[0]

    @property
    def sources(self) -> Path:
        """The folder that the sdist unpacks to."""
        return self.only("unpacked/fused_rnn_dropout-*")

    # ------------------------------------------------------------------------------------------------------------------
    # Steps
    # ------------------------------------------------------------------------------------------------------------------

    def sdist(self) -> None:
        """The sources of the commit, not of the working tree."""
        tree = self.fresh("tree")
        archive = subprocess.run(["git", "archive", self.commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(tree, filter="data")
        made = self.fresh("sdist")
        self.python("setup.py", "-q", "sdist", "-d", made, cwd=tree)
        path = self.only("sdist/*.tar.gz")
        path.write_bytes(dateless(path.read_bytes(), self.seconds))
        with tarfile.open(path) as packed:
            packed.extractall(self.fresh("unpacked"), filter="data")

    def toolkits(self) -> None:
        """What the compilers need, and that all libraries can be built."""
        for target in cross.TARGETS:
            if obstacle := target.obstacle():
                raise Refused(obstacle)
        cuda12.toolkit()
        said = self.python("setup.py", "--version", cwd=self.sources)
        wanted = f"libraries: {', '.join(f'fused_rnn_dropout.{name}' for name in LIBRARIES)}"
        if wanted not in said:
            raise Refused(f"setup.py does not say {wanted!r}:\n{said}")
        for target in cross.TARGETS:
            target.torch(self.fresh(f"torch-{target.name}"), version("torch").split("+")[0])

    def wheel(self) -> None:
        """Built from the sdist, which so must hold all that building reads."""
        self.build(self.fresh("built"))

    def again(self) -> None:
        """Sdist and wheel a second time, byte for byte the same."""
        self.build(self.fresh("built-again"))
        wheel_checks.same_bytes(self.only("built/*.whl"), self.only("built-again/*.whl"))
        first = self.only("sdist/*.tar.gz")
        self.python("setup.py", "-q", "sdist", "-d", self.fresh("sdist-again"), cwd=self.work / "tree")
        second = self.only("sdist-again/*.tar.gz")
        second.write_bytes(dateless(second.read_bytes(), self.seconds))
        wheel_checks.same_bytes(first, second)

    def repair(self) -> None:
        """The platform's name, after a look at what the libraries need of a system."""
        self.renamed("built", "repaired", PLATFORM)

    def check(self) -> None:
        """ABI, symbols, machine code, contents, sizes, metadata."""
        self.checked("repaired", PLATFORM, LIBRARIES, Path(torch_folder()))
        for library in (self.work / "repaired-unpacked").rglob("_cuda*.so"):
            wheel_checks.architectures(library)
        sdist = self.only("sdist/*.tar.gz")
        self.python("-m", "twine", "check", "--strict", sdist)
        wheel_checks.size(sdist, "sdist")

    def use(self) -> None:
        """README's lines, the self check and the bench, from the wheel alone and without a compiler on the PATH."""
        site = self.fresh("site")
        self.python(
            "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, self.only("repaired/*.whl")
        )
        for python in self.pythons:
            more = {"PYTHONPATH": str(site), "PATH": str(python.parent)}
            self.run(python, "-c", TEN_LINES, cwd=self.work, **more)
            self.run(python, "-m", "fused_rnn_dropout", "doctor", cwd=self.work, **more)
            shape = ("--shape", "5,3,4,6", "--rounds", "2", "--tasks", "train", "--output", self.work / "bench.json")
            self.run(python, "-m", "fused_rnn_dropout", "bench", "run", *shape, cwd=self.work, **more)
            if self.run(python, "-c", LOADED, cwd=self.work, **more).split()[-1] == "True":
                more["PATH"] = self.environment["PATH"]  # for nm
                self.run(python, ROOT / "tools/check_cuda_build.py", "--check", cwd=self.work, **more)

    def aarch64(self) -> None:
        """The CPU's kernels for manylinux_2_28 aarch64, by a cross build; the same bytes twice."""
        target = cross.AARCH64
        self.cross_built(target)
        self.renamed("built-aarch64", "repaired-aarch64", target.platform, ("-c", cross.AUDITWHEEL))
        self.checked("repaired-aarch64", target.platform, ("_C",), self.torch_for(target))

    def macos(self) -> None:
        """The CPU's kernels for macOS on arm64, by a cross build; the same bytes twice. Inspected, never executed."""
        target = cross.MACOS
        self.cross_built(target)
        self.checked("built-macos", target.platform, ("_C",), self.torch_for(target), macos_checks.library)

    def publish(self) -> None:
        """Into dist/, with checksums."""
        self.dist.mkdir(parents=True, exist_ok=True)
        places = ("sdist/*.tar.gz", "repaired/*.whl", "repaired-aarch64/*.whl", "built-macos/*.whl")
        files = [self.only(place) for place in places]
        if strangers := sorted(
            {path.name for path in self.dist.iterdir()} - {path.name for path in files} - {"SHA256SUMS"}
        ):
            raise Refused(f"{self.dist} holds {', '.join(strangers)} of something else: move that away")
        sums = []
        for path in files:
            shutil.copyfile(path, self.dist / path.name)
            sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        (self.dist / "SHA256SUMS").write_text("".join(sums))

    # ------------------------------------------------------------------------------------------------------------------

    def build(self, folder: Path, **more: str) -> None:
        """A wheel of the sdist into ``folder``, from a copy of its own, since a build leaves files behind.

        nvcc makes the names of kernels of the path of their source, so the copy lies in the same place for every clone.
        """
        copy = Path(tempfile.gettempdir(), f"fused_rnn_dropout-{self.commit[:12]}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.sources, copy)
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "-q", "--wheel-dir", folder)
        self.python("-m", "pip", "wheel", *options, copy, **more)
        shutil.rmtree(copy)

    def renamed(self, folder: str, to: str, platform: str, auditwheel: Sequence[str] = ("-m", "auditwheel")) -> None:
        """The wheel of one folder under a platform's name into another."""
        excluded = [word for pattern in NOT_OURS for word in ("--exclude", pattern)]
        options = ("--only-plat", "--plat", platform, *excluded, "-w", self.fresh(to))
        self.python(*auditwheel, "repair", *options, self.only(f"{folder}/*.whl"))

    def torch_for(self, target: cross.Target) -> Path:
        """The folder of the torch that is linked against."""
        return self.work / f"torch-{target.name}" / "torch"

    def cross_built(self, target: cross.Target) -> None:
        """A wheel for another system, twice, with the same bytes."""
        folders = [f"built-{target.name}", f"built-{target.name}-again"]
        for folder in folders:
            compilers = self.fresh(f"compilers-{target.name}")
            self.build(self.fresh(folder), **target.environment(self.torch_for(target), compilers))
        wheel_checks.same_bytes(*(self.only(f"{folder}/*.whl") for folder in folders))

    def checked(
        self, folder: str, platform: str, libraries: Sequence[str], torch: Path,
        look: Callable[[Path, Path], None] = wheel_checks.library,
    ) -> None:  # fmt: skip
        """What every wheel must be.

        Args:
            torch: the folder of the one that it was built against.
            look: goes over each of its libraries, given torch's too.
        """
        wheel = self.only(f"{folder}/*.whl")
        if not wheel.name.endswith(f"-cp310-abi3-{platform}.whl") or "+" in wheel.name:
            raise Refused(f"{wheel.name} should be of cp310-abi3-{platform}, and without a label in its version")
        self.python("-m", "abi3audit", "--strict", wheel)
        self.python("-m", "twine", "check", "--strict", wheel)
        wheel_checks.contents(wheel, self.sources, libraries)
        wheel_checks.size(wheel, "wheel")
        unpacked = self.fresh(f"{folder}-unpacked")
        self.python("-m", "zipfile", "-e", wheel, unpacked)
        for library in unpacked.rglob("*.so*"):
            look(library, torch / "lib")
            wheel_checks.names_no_folder(library, (ROOT, Path(sys.prefix)))

    def fresh(self, name: str) -> Path:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def steps(self) -> list[Callable[[], None]]:
        return [
            self.sdist, self.toolkits, self.wheel, self.repair, self.check, self.use, self.aarch64, self.macos,
            self.again, self.publish,
        ]  # fmt: skip


def dateless(data: bytes, seconds: int) -> bytes:
    """A .tar.gz with the same files, whose bytes follow from them and the date alone."""
    result = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as before,
        gzip.GzipFile(fileobj=result, mode="wb", filename="", mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() or member.mode & 0o100 else 0o644, {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    return result.getvalue()


def torch_folder() -> str:
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Refused(f"{sys.executable} has no torch to build against")
    return spec.submodule_search_locations[0]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def release(dist: Path, anew: bool, under: Sequence[Path] = ()) -> None:
    """Goes through the steps that are not done yet.

    Raises:
        Refused: the clone is not clean, or a step found what must not be published.
    """
    if changed := git("status", "--porcelain"):
        raise Refused(f"the working tree is not clean, and a release is of one commit:\n{changed}")
    made = Release(git("rev-parse", "HEAD"), int(git("log", "-1", "--format=%ct")), dist, under)
    if anew:
        shutil.rmtree(made.work, ignore_errors=True)
    made.work.mkdir(parents=True, exist_ok=True)
    steps = made.steps()
    for number, step in enumerate(steps, 1):
        mark, head = made.work / f"{step.__name__}.done", f"[{number}/{len(steps)}] {step.__name__}"
        if mark.exists() and step.__name__ != "publish":
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: {(step.__doc__ or '').splitlines()[0]}", flush=True)
        start = time.monotonic()
        step()
        mark.touch()
        print(f"{head}: {time.monotonic() - start:.0f} s", flush=True)
    for path in sorted(dist.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where something must not be published, and says what."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the files go (default: dist)")
    parser.add_argument("--anew", action="store_true", help="forget the steps that are done")
    parser.add_argument("--under", action="append", default=[], type=Path, metavar="PYTHON",
                        help="use the wheel with the torch of this interpreter too (repeatable)")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        release(options.dist, options.anew, [path.absolute() for path in options.under])
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
