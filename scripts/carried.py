"""The compiled libraries for a machine that cannot build them: made here, checked and used there.

    python scripts/carried.py pack [--torch VERSION] [--architectures "9.0"]    # no GPU needed, but nvcc
    python scripts/carried.py use                                               # there: beside the package, if they fit

`pack` builds the CPU's and the GPU's library against a CUDA build of torch in an environment of its own and puts them
into build/carry with a manifest; bring that folder along. `use` takes them where they were made from the sources that
are there, for the major versions of torch and CUDA that are there; otherwise it says why not, and its exit status is 1.
scripts/gpu.sh calls both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "carry"
PACKAGE = ROOT / "fused_rnn_dropout"
MANIFEST = "manifest.json"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources() -> str:
    """Of all that the libraries are made from: names and contents."""
    files = [ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    lines = [f"{path.relative_to(ROOT).as_posix()} {digest(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def here() -> dict[str, Any]:
    """What a library must fit: the sources, this machine, and the torch of this interpreter."""
    import torch

    return {
        "sources": sources(),
        "machine": f"{sys.platform} {platform.machine()}",
        "torch": int(torch.__version__.split(".")[0]),
        "cuda": int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None,
    }


def obstacles(manifest: dict[str, Any], there: dict[str, Any], folder: Path) -> list[str]:
    """Why the libraries of a manifest do not fit, in words; nothing where they do."""
    words = {
        "sources": "they were built from other sources",
        "machine": "they are for {0}, this is {1}",
        "torch": "they were built against torch {0}, here is torch {1}",
        "cuda": "they were built for CUDA {0}, the torch here is for CUDA {1}",
    }
    found = [text.format(manifest[name], there[name]) for name, text in words.items() if manifest[name] != there[name]]
    for name, want in manifest["libraries"].items():
        if not (folder / name).exists():
            found.append(f"{name} is missing")
        elif digest(folder / name) != want:
            found.append(f"{name} is not what the manifest says: copy it anew")
    return found


def use(folder: Path = FOLDER, package: Path = PACKAGE) -> int:
    """Puts the libraries beside the package's Python files, if they fit; returns the exit status."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if wrong := obstacles(manifest, here(), folder):
        print(f"the libraries in {folder} are not used: {'; '.join(wrong)}")
        return 1
    for name in manifest["libraries"]:
        shutil.copyfile(folder / name, package / name)
    architectures = manifest["architectures"]
    print(
        f"using the libraries in {folder}: {', '.join(manifest['libraries'])}, for compute capability {architectures}"
    )
    return 0


def pack(torch_version: str, architectures: str) -> None:
    from check_cuda_build import environment

    python = environment(torch_version)
    settings = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # where torch looks for ninja
        "FRD_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architectures,
    }
    objects = FOLDER.with_name("carry-objects")  # kept: only what changed is compiled again
    shutil.rmtree(FOLDER, ignore_errors=True)
    for old in objects.glob("lib.*"):
        shutil.rmtree(old)
    build = [python, "setup.py", "-q", "build", "--build-base", objects]
    subprocess.run([*map(str, build)], cwd=ROOT, env=settings, check=True)
    FOLDER.mkdir(parents=True)
    for library in objects.glob("lib.*/fused_rnn_dropout/*.so"):
        shutil.copyfile(library, FOLDER / library.name)
    asked = [str(python), str(Path(__file__)), "describe"]
    manifest = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    manifest["architectures"] = architectures
    manifest["libraries"] = {path.name: digest(path) for path in sorted(FOLDER.glob("*.so"))}
    (FOLDER / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in FOLDER.iterdir()) / 2**20
    print(f"{FOLDER}: {', '.join(manifest['libraries'])}, {size:.1f} MiB, for compute capability {architectures}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "use", "describe"), help="describe: print what a library must fit")
    parser.add_argument("--torch", default="2.14.1", metavar="VERSION", help="a CUDA build (default: %(default)s)")
    parser.add_argument(
        "--architectures", default="9.0", metavar="LIST", help="as torch takes it (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.command == "describe":
        print(json.dumps(here()))
    elif options.command == "pack":
        pack(options.torch, options.architectures)
    else:
        return use()
    return 0


if __name__ == "__main__":
    sys.exit(main())
