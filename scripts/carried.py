"""The compiled libraries for a machine that has no nvcc: made here, checked and used there. gpu.sh calls both.

    python scripts/carried.py pack --architectures "9.0"   # needs a CUDA build of torch and nvcc, but no GPU
    python scripts/carried.py use                          # there: beside the package, if they fit

``pack`` builds the CPU's and the CUDA library against this interpreter's torch, into build/carry with a manifest; that
folder is what to bring along. ``use`` takes them where they were made from the sources that are there, for the torch,
CUDA and device that are there, and load; otherwise it says why not and leaves things as they were, with exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "carry"
PACKAGE = ROOT / "fused_rnn_dropout"
MANIFEST = "manifest.json"

LOADS = """
from fused_rnn_dropout import library
raise SystemExit(library.obstacle("cuda", "cuda"))
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources() -> str:
    """Of all that the libraries are made from: names and contents."""
    files = [ROOT / "setup.py", ROOT / "_build" / "gpu_libraries.py"]
    files += [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    lines = [f"{path.relative_to(ROOT).as_posix()} {digest(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def here() -> dict[str, Any]:
    """What libraries must fit: the sources, this machine, this interpreter's torch and, if there is one, its device."""
    import torch

    return {
        "sources": sources(),
        "machine": f"{sys.platform} {platform.machine()}",
        "torch": int(torch.__version__.split(".")[0]),
        "cuda": int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None,
        "device": list(torch.cuda.get_device_capability()) if torch.cuda.is_available() else None,
    }


def capabilities(text: str) -> list[tuple[int, int, bool]]:
    """Compute capabilities as torch writes them, "8.0;9.0+PTX": major, minor, and whether later devices are served.

    Raises:
        ValueError: one is written in another way.
    """
    found = []
    for word in re.split(r"[;, ]+", text.strip("; ")):
        match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", word)
        if match is None:
            raise ValueError(f'compute capabilities should be written like "8.0;9.0" or "9.0+PTX", got {text!r}')
        found.append((int(match[1]), int(match[2]), match[3] is not None))
    return found


def served(architectures: str, device: list[int]) -> bool:
    """Whether a device runs what was compiled: for its major version and no later minor one, or PTX no later."""
    major, minor = device
    return any(
        (a == major and b <= minor) or (ptx and (a, b) <= (major, minor)) for a, b, ptx in capabilities(architectures)
    )


def obstacles(manifest: dict[str, Any], there: dict[str, Any], folder: Path) -> list[str]:
    """Why the libraries of a manifest do not fit, in words; nothing where they do."""
    words = {
        "sources": "they were built from other sources",
        "machine": "they are for {0}, this is {1}",
        "torch": "they were built against torch {0}, here is torch {1}",
        "cuda": "they were built for CUDA {0}, the torch here is for CUDA {1}",
    }
    found = [text.format(manifest[name], there[name]) for name, text in words.items() if manifest[name] != there[name]]
    if there["device"] is not None and not served(manifest["architectures"], there["device"]):
        device = ".".join(map(str, there["device"]))
        found.append(f"they are for compute capability {manifest['architectures']}, the device here has {device}")
    for name, want in manifest["libraries"].items():
        if not (folder / name).exists():
            found.append(f"{name} is missing")
        elif digest(folder / name) != want:
            found.append(f"{name} is not what the manifest says: copy it anew")
    return found


def load() -> str | None:
    """What the package says where its libraries do not load; None where they do. In a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOADS], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason is given"])[-1]


def put(folder: Path, package: Path, names: list[str]) -> str | None:
    """Puts libraries beside the package's Python files; takes them away again, and says why, where they do not load."""
    kept = package / "before-carried"  # moved, not copied over: a process may have one of them loaded
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for name in names:
        if (package / name).exists():
            (package / name).rename(kept / name)
        shutil.copyfile(folder / name, package / name)
    wrong = load()
    for name in names if wrong else ():
        (package / name).unlink()
        if (kept / name).exists():
            (kept / name).rename(package / name)
    shutil.rmtree(kept)
    return wrong


def use(folder: Path = FOLDER, package: Path = PACKAGE) -> int:
    """Uses the libraries if they fit; returns the exit status."""
    manifest = json.loads((folder / MANIFEST).read_text())
    wrong = obstacles(manifest, here(), folder)
    if not wrong and (refusal := put(folder, package, list(manifest["libraries"]))):
        wrong = [f"they do not load here: {refusal}"]
    if wrong:
        print(f"the libraries in {folder} are not used: {'; '.join(wrong)}")
        return 1
    names, architectures = ", ".join(manifest["libraries"]), manifest["architectures"]
    print(f"using the libraries in {folder}: {names}, for compute capability {architectures}")
    return 0


def pack(architectures: str, folder: Path = FOLDER) -> None:
    """Builds the libraries into ``folder``."""
    capabilities(architectures)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where torch looks for ninja
    settings = {**os.environ, "PATH": path, "FRD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
    objects = folder.with_name("carry-objects")  # kept: only what changed is compiled again
    shutil.rmtree(folder, ignore_errors=True)
    for old in objects.glob("lib.*"):
        shutil.rmtree(old)
    objects.mkdir(parents=True, exist_ok=True)
    manifest = here()
    log = objects / "build.log"
    with log.open("w") as output:
        build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(objects)]
        done = subprocess.run(build, cwd=ROOT, env=settings, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{log.read_text()[-4000:]}\nerror: {sys.executable} could not build the libraries: {log}")
    folder.mkdir(parents=True)
    for library in objects.glob("lib.*/fused_rnn_dropout/*.so"):
        shutil.copyfile(library, folder / library.name)
    manifest |= {
        "architectures": architectures,
        "libraries": {path.name: digest(path) for path in sorted(folder.glob("*.so"))},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{folder}: {', '.join(manifest['libraries'])}, {size:.1f} MiB, for compute capability {architectures}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "use"))
    parser.add_argument("--architectures", default="9.0", metavar="LIST", help='like "8.0;9.0" (default: %(default)s)')
    options = parser.parse_args()
    if options.command == "use":
        return use()
    try:
        pack(options.architectures)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
