"""Makes what is published of one commit, from a clean clone, and checks each file: python -m tools.release

    dist/fused_rnn_dropout-VERSION.tar.gz                                    the sdist
    dist/fused_rnn_dropout-VERSION-cp310-abi3-manylinux_2_28_x86_64.whl      CPU kernels, Triton backend, reference
    dist/SHA256SUMS

It works in build/release/COMMIT and can be run again after it was interrupted: a step that is done is not done twice.
The interpreter needs torch, setuptools >= 77, ninja and the extra `release`, the machine g++, binutils and git. What
is done before it and after it is in RELEASING.md.
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
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import wheel_checks
from .wheel_checks import Refused

ROOT = Path(__file__).resolve().parents[1]
PLATFORM = "manylinux_2_28_x86_64"
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


class Release:
    """A release of one commit, and where it is made.

    Args:
        commit: its full name.
        seconds: when it was committed, which is the date of every file.
        dist: where the files go in the end.
    """

    def __init__(self, commit: str, seconds: int, dist: Path) -> None:
        self.commit, self.dist = commit, dist
        self.work = ROOT / "build" / "release" / commit
        self.environment = {
            **os.environ,
            "SOURCE_DATE_EPOCH": str(seconds),
            "PYTHONHASHSEED": "0",
            "FRD_CUDA": "0",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }
        self.environment.pop("FRD_EXTRA_CXXFLAGS", None)
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

    def wheel(self) -> None:
        """Built from the sdist, which so must hold all that building reads."""
        self.build(self.fresh("built"))

    def again(self) -> None:
        """Sdist and wheel a second time, elsewhere, byte for byte the same."""
        self.build(self.fresh("built-again"))
        wheel_checks.same_bytes(self.only("built/*.whl"), self.only("built-again/*.whl"))
        first = self.only("sdist/*.tar.gz")
        self.python("setup.py", "-q", "sdist", "-d", self.fresh("sdist-again"), cwd=self.work / "tree")
        second = self.only("sdist-again/*.tar.gz")
        second.write_bytes(dateless(second.read_bytes(), self.seconds))
        wheel_checks.same_bytes(first, second)

    def repair(self) -> None:
        """The platform's name, after a look at what the libraries need of a system."""
        excluded = [word for pattern in NOT_OURS for word in ("--exclude", pattern)]
        made = self.fresh("repaired")
        options = ("--only-plat", "--plat", PLATFORM, *excluded, "-w", made)
        self.python("-m", "auditwheel", "repair", *options, self.only("built/*.whl"))

    def check(self) -> None:
        """ABI, symbols, contents, sizes, metadata."""
        wheel, sdist = self.only("repaired/*.whl"), self.only("sdist/*.tar.gz")
        if f"-cp310-abi3-{PLATFORM}" not in wheel.name:
            raise Refused(f"{wheel.name} should be of cp310-abi3-{PLATFORM}")
        self.python("-m", "abi3audit", "--strict", wheel)
        self.python("-m", "twine", "check", "--strict", wheel, sdist)
        wheel_checks.contents(wheel, self.sources, ["_C"])
        wheel_checks.size(wheel, "wheel")
        wheel_checks.size(sdist, "sdist")
        self.python("-m", "zipfile", "-e", wheel, self.fresh("libraries"))
        for library in (self.work / "libraries").rglob("*.so*"):
            wheel_checks.symbols(library, Path(torch_folder()) / "lib" / "libc10.so")

    def use(self) -> None:
        """README's lines, the self check and the bench, from the wheel alone and without a compiler on the PATH."""
        site = self.fresh("site")
        self.python(
            "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, self.only("repaired/*.whl")
        )
        more = {"PYTHONPATH": str(site), "PATH": str(Path(sys.executable).parent)}
        self.python("-c", TEN_LINES, cwd=self.work, **more)
        self.python("-m", "fused_rnn_dropout", "doctor", cwd=self.work, **more)
        shape = ("--shape", "5,3,4,6", "--rounds", "2", "--tasks", "train", "--output", self.work / "bench.json")
        self.run(site / "bin" / "fused-rnn-dropout", "bench", "run", *shape, cwd=self.work, **more)

    def publish(self) -> None:
        """Into dist/, with checksums."""
        self.dist.mkdir(parents=True, exist_ok=True)
        files = [self.only("sdist/*.tar.gz"), self.only("repaired/*.whl")]
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

    def build(self, folder: Path) -> None:
        """A wheel of the sdist into ``folder``, from a copy of its own, since a build leaves files behind."""
        copy = self.fresh(f"{folder.name}-from")
        shutil.copytree(self.sources, copy, dirs_exist_ok=True)
        options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "--wheel-dir", folder)
        self.python("-m", "pip", "wheel", *options, copy)

    def fresh(self, name: str) -> Path:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def steps(self) -> list[Callable[[], None]]:
        return [self.sdist, self.wheel, self.repair, self.check, self.again, self.use, self.publish]


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


def release(dist: Path, anew: bool) -> None:
    """Goes through the steps that are not done yet.

    Raises:
        Refused: the clone is not clean, or a step found what must not be published.
    """
    if changed := git("status", "--porcelain"):
        raise Refused(f"the working tree is not clean, and a release is of one commit:\n{changed}")
    made = Release(git("rev-parse", "HEAD"), int(git("log", "-1", "--format=%ct")), dist)
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
    options = parser.parse_args(arguments)
    try:
        release(options.dist, options.anew)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
