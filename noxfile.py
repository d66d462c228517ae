"""Every step of CI as a target of nox.

    .venv/bin/nox --list
    .venv/bin/nox -s faults                # one step, whole
    .venv/bin/nox -s faults -- --sample    # the part of it that CI runs; the commit chooses which
    .venv/bin/nox -s ci                    # the steps of CI in two lanes: less than 50 minutes on two cores
    .venv/bin/nox -s all                   # every step whole, one after the other: hours

They run in .venv, as scripts/environment.sh makes it with FRD_EXTRAS=bench,test,dev,docs. `.ci/run` does that, then
`ci`.
A step that has no parts does the same with --sample and without.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
import compile_cuda
import cuda12 as cuda12_toolkit
import lanes
import sampling

ROOT = sampling.ROOT
PYTHON = str(ROOT / ".venv/bin/python")
LOGS = ROOT / "build" / "ci"
NEWER_TORCH = "2.14.1"
"""A CUDA build; the wheel that is built against the default torch must work under this one too."""

nox.options.default_venv_backend = "none"
nox.options.sessions = ["ci"]

STEPS: list[str] = []


def step(function):
    """A target that is one step of CI."""
    STEPS.append(function.__name__)
    return nox.session(function)


def sampled(session: nox.Session, *arguments: str) -> list[str]:
    """``arguments``, which make a part of a step, where ``--sample`` asks for one."""
    if unknown := [given for given in session.posargs if given != "--sample"]:
        session.error(f"{' '.join(unknown)}: after -- there may be --sample alone")
    return list(arguments) if session.posargs else []


@step
def tests(session: nox.Session) -> None:
    """The tests, with the README's command."""
    # The part of them runs in one process: another lane has the other core.
    part = sampled(session, "--durations=20")
    alone = {"FRD_WORKERS": "1", "PYTEST_ADDOPTS": " ".join(part)} if part else {}
    session.run("bash", "scripts/test.sh", *([] if part else ["--all"]), env=alone)


@step
def lint(session: nox.Session) -> None:
    """ruff, mypy and clang-format; zizmor for the recipes of CI."""
    session.run(PYTHON, "-m", "ruff", "check", ".")
    session.run(PYTHON, "-m", "ruff", "format", "--check", ".")
    session.run(PYTHON, "-m", "mypy")
    sources = [path for folder in ("csrc", "tests/cpu", "tests/cuda") for path in Path(folder).rglob("*")]
    cxx = sorted(str(path) for path in sources if path.suffix in (".h", ".cpp", ".cu"))
    session.run(".venv/bin/clang-format", "--dry-run", "-Werror", *cxx)
    session.run(".venv/bin/zizmor", "--offline", "--no-progress", ".github/workflows")


@step
def docs(session: nox.Session) -> None:
    """The documentation as a site, into build/site; a link or an anchor that leads nowhere is an error."""
    session.run(PYTHON, "-m", "mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})


@step
def demo(session: nox.Session) -> None:
    """The demonstration, with the README's command."""
    session.run("bash", "scripts/demo.sh", *sampled(session, "--epochs", "2"))


@step
def gpu_dry_run(session: nox.Session) -> None:
    """The command for a GPU, with the CPU in its place and without an index."""
    session.run("bash", "scripts/gpu.sh", "--dry-run", env={"PIP_NO_INDEX": "1", "FRD_OUT": str(LOGS / "gpu")})


@step
def wheel(session: nox.Session) -> None:
    """A wheel from an sdist, which must hold all that building reads; its ABI."""
    session.run("bash", "tools/check_wheel.sh", env={"PYTHON": PYTHON})


@step
def cuda_build(session: nox.Session) -> None:
    """The GPU's library, built against a CUDA build of torch, and all of it that needs no GPU."""
    (target,) = sampling.sample(list(compile_cuda.TARGETS), 1, sampling.commit())
    one = sampled(session, f"{target // 10}.{target % 10}")
    environment = {"TORCH_CUDA_ARCH_LIST": one[0]} if one else {}
    session.run(PYTHON, "tools/check_cuda_build.py", "--torch", NEWER_TORCH, env=environment)


@step
def compat(session: nox.Session) -> None:
    """The CPU's wheel under a newer torch. Needs what `wheel` and `cuda_build` made."""
    built, newer = [*(LOGS / "wheel").glob("*.whl")], ROOT / f"build/cuda/torch-{NEWER_TORCH}/bin/python"
    if len(built) != 1 or not newer.exists():
        session.error("nothing to compare: run the targets wheel and cuda_build first")
    session.run(PYTHON, "tools/check_compat.py", "--wheel", str(built[0]), "--python", str(newer))


@step
def triton(session: nox.Session) -> None:
    """Triton's kernels, compiled for every target, within their budgets; the barriers between steps in their code."""
    session.run(PYTHON, "tools/compile_triton.py", *sampled(session, "--sample", "100"))
    session.run(PYTHON, "tools/check_barriers.py", *sampled(session, "--sample", "12"))


@step
def cuda(session: nox.Session) -> None:
    """Machine code of CUDA's kernels for every architecture, within its budgets."""
    session.run(PYTHON, "tools/compile_cuda.py", *sampled(session, "--sample", "1", "--jobs", "1"))


@step
def exchange(session: nox.Session) -> None:
    """Every execution of the exchange between a GPU's blocks, in small; its polls in the machine code."""
    session.run(PYTHON, "tools/check_exchange.py")
    session.run(PYTHON, "tools/check_polls.py")
    (target,) = sampling.sample([target for target in compile_cuda.TARGETS if target >= 80], 1, sampling.commit())
    session.run(PYTHON, "tools/check_polls.py", "--kernels", *sampled(session, "--target", str(target)))


@step
def cuda12(session: nox.Session) -> None:
    """CUDA's sources under CUDA 12: the host's side parsed, machine code of every kernel near its budget."""
    share = sampled(session, "--sample", "1", "--jobs", "1")
    session.run(PYTHON, "tools/cuda12.py", "--check")
    sources = sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
    session.run(PYTHON, "tools/compile_cuda.py", *share, *sources, env={"CUDA_HOME": str(cuda12_toolkit.HOME)})


@step
def sanitizers(session: nox.Session) -> None:
    """The tests of the CPU's kernels under the sanitizers of addresses and of undefined behaviour."""
    session.run("bash", "tools/check_sanitizers.sh", *sampled(session, "--sample", "0.05"), env={"PYTHON": PYTHON})


@step
def on_host(session: nox.Session) -> None:
    """The tests of the operators on CUDA's kernels, run on the host."""
    names = ("kernels/test_operators", "kernels/test_geometry", "kernels/test_chunks", "kernels/test_properties",
             "masks/test_masks", "masks/test_counters", "surface/test_autograd", "surface/test_known_bugs",
             "surface/test_autocast", "surface/test_bad_input", "surface/test_modules")  # fmt: skip
    session.run(
        PYTHON, "-m", "pytest", "-q", "--on-host", "-m", "not slow", *sampled(session, "--sample", "0.1"),
        *(f"tests/{name}.py" for name in names), env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@step
def races(session: nox.Session) -> None:
    """ThreadSanitizer on CUDA's kernels, run on the host."""
    session.run("bash", "tools/check_races.sh")


@step
def faults(session: nox.Session) -> None:
    """Planted faults, each of which the tests must catch."""
    session.run(PYTHON, "tools/faults.py", *sampled(session, "--sample", "2"))


# The longest first. A step that needs what others make comes after them in one chain.
CHAINS = (
    ("tests",),
    ("wheel", "cuda_build", "compat"),
    ("faults",),
    ("sanitizers",),
    ("on_host",),
    ("cuda",),
    ("races",),
    ("triton",),
    ("exchange",),
    ("cuda12",),
    ("demo",),
    ("gpu_dry_run",),
    ("docs",),
    ("lint",),
)


assert sorted(STEPS) == sorted(name for chain in CHAINS for name in chain)


def run_lanes(session: nox.Session, count: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "nox", "--no-color", "-f", str(ROOT / "noxfile.py"), "-s"]
    chains = [[lanes.Step(name, [*command, name, *arguments]) for name in chain] for chain in CHAINS]
    # One core for each lane: ninja would take all.
    environment = {**os.environ, "MAX_JOBS": "1"} if count > 1 else os.environ
    outcomes = lanes.Lanes(chains, count, LOGS, environment).run()
    if not lanes.report(outcomes):
        session.error("not every step went well")


@nox.session(default=False)
def ci(session: nox.Session) -> None:
    """Every step, of the long ones a sample, in two lanes."""
    run_lanes(session, 2, "--", "--sample")


@nox.session(name="all", default=False)
def everything(session: nox.Session) -> None:
    """Every step, whole, one after the other."""
    run_lanes(session, 1)
