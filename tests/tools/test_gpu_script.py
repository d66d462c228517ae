"""The one command for a machine with a GPU, with stand-ins for the GPU's tool and for the interpreter."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "scripts" / "gpu.sh").exists():
    pytest.skip("the scripts are part of a checkout, not of the installed package", allow_module_level=True)

STEPS = ("build", "doctor", "correct", "triton", "persistent", "bench")
WELL = dict.fromkeys(STEPS, "0")
PAGE = f'case "$*" in *bench.gpu_report*) exec {sys.executable} "$@" ;; esac\n'
"""Has the stand-in for the interpreter write the page."""


class Place:
    """A folder with the scripts, an ``nvidia-smi`` that lists a GPU, and an interpreter that notes its calls.

    Args:
        python: what the interpreter does beside, in sh.
    """

    def __init__(self, folder: Path, python: str = "", nvidia_smi: str = "echo 'GPU 0: made up'") -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        for name in ("gpu.sh", "gpu_step.sh"):
            shutil.copy(ROOT / "scripts" / name, folder / "scripts")
        (folder / "bench").symlink_to(ROOT / "bench")
        (folder / "bin").mkdir()
        self.python = self.tool("python", f'echo "$FRD_CUDA $*" >>{folder}/calls\n{python}')
        self.tool("nvidia-smi", nvidia_smi)

    def tool(self, name: str, text: str) -> Path:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def environment(self, **given: str) -> dict[str, str]:
        found = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRD_")},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FRD_PYTHON": str(self.python),
            "FRD_OUT": str(self.folder / "out"),
            "FRD_GPU_DTYPES": "float16",
            **given,
        }
        return {name: value for name, value in found.items() if value}

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Any:
        command = ["bash", self.folder / "scripts/gpu.sh", *arguments]
        env = self.environment(**environment)
        return subprocess.run(command, cwd=cwd or self.folder, env=env, capture_output=True, text=True)

    @property
    def calls(self) -> list[str]:
        """Of the interpreter; FRD_CUDA comes first."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def steps(self) -> dict[str, str]:
        """Exit status by step, as the report was told last; "not run" of others."""
        told = self.calls[-1].replace("--not-run=", "--step ").split("--step ")[1:]
        return {part.split()[0]: part.split()[1] if len(part.split()) > 1 else "not run" for part in told}

    @property
    def page(self) -> str:
        return (self.folder / "out" / "report.md").read_text()


# --------------------------------------------------------------------------------------------------------------------
# Steps
# --------------------------------------------------------------------------------------------------------------------


def test_every_step_is_run_in_turn_and_nothing_is_installed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    done = place.run("--", "--quick")
    assert done.returncode == 0, done.stderr
    assert place.calls[0] == "1 setup.py build_ext --inplace"
    assert not any("pip" in call for call in place.calls)
    runs = [call for call in place.calls if " -m " in call and "gpu_report" not in call]
    assert [call.split()[2] for call in runs] == ["fused_rnn_dropout", *["pytest"] * 4, "bench", "bench"]
    out = tmp_path / "out"
    assert runs[-1] == f"1 -m bench --device cuda --dtype float16 --output {out}/float16.json --quick"
    assert "-m gpu and not gpu_large and not triton" in runs[1] and " -n" in runs[1]
    assert "-m gpu_large" in runs[2] and " -n" not in runs[2]
    assert "test_exchange.py tests/kernels/test_persistent.py" in runs[4] and " -n" not in runs[4]
    assert runs[5] == f"1 -m bench schedules --dtypes float16 --output {out}/schedules.json"
    assert place.steps == WELL
    for record in ("correct.xml", "large.xml", "triton.xml", "persistent.xml"):
        assert f"--tests {out}/{record}" in place.calls[-1]
    assert f"--results {out}/float16.json" in place.calls[-1] and "--dry-run" not in place.calls[-1]
    assert f"--page {out}/exchange.md --page {out}/schedules.md" in place.calls[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "bin", "calls", "out", "scripts"]


def test_a_failing_step_is_reported_and_the_others_run(tmp_path: Path) -> None:
    place = Place(tmp_path, 'case "$*" in *"not gpu_large"*) exit 3 ;; *gpu_report*) exit 1 ;; esac')
    assert place.run().returncode == 1
    assert place.steps == {**WELL, "correct": "3"}
    assert any("-m gpu_large" in call for call in place.calls)  # of the same step


def test_steps_are_chosen_by_name(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run("bench", "build")
    assert place.steps == {"build": "0", "bench": "0"} and "--tests" not in place.calls[-1]


def test_what_is_not_right_is_not_timed(tmp_path: Path) -> None:
    place = Place(tmp_path, 'case "$*" in *test_persistent*) exit 1 ;; esac')
    place.run("persistent")
    assert place.steps == {"build": "0", "persistent": "1"}
    assert not any("bench schedules" in call for call in place.calls)


def test_the_way_of_a_word_is_on_a_page(tmp_path: Path) -> None:
    line = "strict8 phased 2 blocks: 0.912 us a step"
    place = Place(tmp_path, f'case "$*" in *test_exchange*) echo "{line}"; echo "another line us a step" ;; esac')
    place.run("persistent")
    page = tmp_path / "out" / "exchange.md"
    assert page.read_text().splitlines()[1:] == ["", f"- {line}"]


def test_where_no_word_was_timed_the_page_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run("persistent")
    assert place.steps == {"build": "0", "persistent": "0"}
    assert "- it was not timed" in (tmp_path / "out" / "exchange.md").read_text()


def test_without_xdist_tests_run_one_by_one(tmp_path: Path) -> None:
    place = Place(tmp_path, 'case "$*" in *"import xdist"*) exit 1 ;; esac')
    place.run("triton", FRD_WORKERS="3")
    assert place.steps["triton"] == "0" and not any(" -n" in call for call in place.calls)


def test_the_tests_and_marks_that_it_names_are_there(pytestconfig: pytest.Config) -> None:
    """pytest says nothing of a name in -m that no test is marked with."""
    step = (ROOT / "scripts" / "gpu_step.sh").read_text()
    named = re.findall(r"tests/[\w/*]+(?:\.py)?", step)
    assert len(set(named)) >= 2 and all(list(ROOT.glob(name)) for name in named), named
    chosen = re.findall(r"^ *(?:tests \w+|pytest) (?:\"([^\"$]+)\"|(\w+))", step, re.MULTILINE)
    words = {word for pair in chosen for word in "".join(pair).split()} - {"and", "not"}
    assert words == {"gpu", "gpu_large", "triton", "slow"}
    assert words <= {line.partition(":")[0] for line in pytestconfig.getini("markers")}


def test_the_number_of_processes_is_chosen(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run("triton", FRD_WORKERS="3")
    assert any("-m gpu and triton" in call and call.endswith("-n3") for call in place.calls)


@pytest.mark.parametrize("how", ["fails", "over its time"])
def test_where_the_build_does_not_end_well_the_page_says_so_and_nothing_else_runs(how: str, tmp_path: Path) -> None:
    does = "echo 'error: no nvcc'; exit 4" if how == "fails" else "echo 'error: no nvcc'; sleep 60"
    place = Place(tmp_path, f'{PAGE}case "$*" in *setup.py*) {does} ;; esac')
    done = place.run("doctor", "bench", FRD_LIMIT="1")
    assert done.returncode == 1
    assert not any("bench --device" in call for call in place.calls)
    assert f"FAILED: {'exit status 4' if how == 'fails' else 'over its time'}" in place.page
    assert "error: no nvcc" in place.page and place.page.count("NOT RUN") == 2


def test_a_torch_that_sees_no_device_fails_the_build(tmp_path: Path) -> None:
    place = Place(tmp_path, f'{PAGE}case "$*" in *is_available*) exit 1 ;; esac')
    assert place.run().returncode == 1
    assert "sees no CUDA device" in place.page and "NOT RUN" in place.page


# --------------------------------------------------------------------------------------------------------------------
# Time, and signals
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["touch told; exit", ""], ids=["ends when told", "must be killed"])
def test_a_step_over_its_time_is_ended(told: str, tmp_path: Path) -> None:
    """As by Ctrl-C, so that it can write what it found; where that is not enough, it is killed."""
    place = Place(tmp_path, f"case \"$*\" in *dropout?doctor) trap '{told}' INT; sleep 60; sleep 60 ;; esac")
    began = time.monotonic()
    done = place.run("doctor", "triton", FRD_LIMIT="1")
    assert done.returncode == 0, done.stderr  # that of the report, which the stand-in does not write
    assert place.steps == {"build": "0", "doctor": "124", "triton": "0"}
    assert time.monotonic() - began < 50 and (tmp_path / "told").exists() == bool(told)


def test_no_process_outlives_its_step_or_keeps_it_open(tmp_path: Path) -> None:
    place = Place(tmp_path, "case \"$*\" in *dropout?doctor) (trap '' INT; exec sleep 60) & echo $! >pid ;; esac")
    began = time.monotonic()
    assert place.run("doctor").returncode == 0
    assert time.monotonic() - began < 50 and place.steps["doctor"] == "0"
    wait_until(lambda: ended(int((tmp_path / "pid").read_text())))


def ended(pid: int) -> bool:
    """Whether it runs no more, be it that nobody has asked for its exit status yet."""
    state = Path("/proc", str(pid), "stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def interrupted(place: Place, number: int, *arguments: str, ready: str, times: int = 1) -> int:
    """Sends a signal to the script, as soon as there is a file ``ready`` in its folder; returns the exit status."""
    command = ["bash", "scripts/gpu.sh", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Where nohup started the tests a shell cannot trap SIGHUP: a signal that is ignored stays so.
    heard: Callable[[], Any] = lambda: signal.signal(number, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, cwd=place.folder, env=place.environment(), preexec_fn=heard, **quiet) as running:
        for _ in range(times):
            wait_until((place.folder / ready).exists)
            (place.folder / ready).unlink()
            running.send_signal(number)
        return running.wait(timeout=50)


def wait_until(happened: Callable[[], bool]) -> None:
    for _ in range(500):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within 50 seconds")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_step_and_the_page_is_still_written(number: signal.Signals, tmp_path: Path) -> None:
    place = Place(tmp_path, f'{PAGE}case "$*" in *dropout?doctor) echo measured; touch ready; sleep 60 ;; esac')
    assert interrupted(place, number, "doctor", "triton", ready="ready") == 128 + number
    assert "INTERRUPTED" in place.page and "measured" in place.page and "NOT RUN" in place.page
    assert not any("-m gpu and triton" in call for call in place.calls)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["not_run"] == ["triton"]


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    place = Place(tmp_path, f"{PAGE}case \"$*\" in *dropout?doctor) trap 'touch ready' INT; touch ready; "
                  "while :; do sleep 1; done ;; esac")  # fmt: skip
    began = time.monotonic()
    assert interrupted(place, signal.SIGINT, "doctor", ready="ready", times=2) == 130
    assert time.monotonic() - began < 28  # half a minute is what it would have had
    assert "INTERRUPTED" in place.page


def test_tests_that_ran_before_a_signal_are_on_the_page(tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pathlib, time\ndef test_one(): pass\n"
        "def test_two():\n    pathlib.Path('ready').touch()\n    time.sleep(60)\n"
    )
    pytest_here = f"exec {sys.executable} -m pytest -q -c {os.devnull} --rootdir . -p no:cacheprovider {tests}"
    place = Place(
        tmp_path, f'{PAGE}case "$*" in *"not gpu_large"*) {pytest_here} --junitxml="$out/correct.xml" ;; esac'
    )
    assert interrupted(place, signal.SIGINT, "correct", ready="ready") == 130
    assert "`correct`: 1 passed, 0 failed" in place.page and "ended while a test ran" in place.page
    assert not any("-m gpu_large" in call for call in place.calls)  # which would have come next


# --------------------------------------------------------------------------------------------------------------------
# The machine and the settings
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listing", [None, "exit 9", "echo 'No devices were found'"], ids=["missing", "fails", "none"])
def test_the_command_stops_at_once_without_a_gpu(listing: str | None, tmp_path: Path) -> None:
    place = Place(tmp_path, nvidia_smi=listing or "")
    if listing is None:
        place.tool("nvidia-smi", "").unlink()
        for tool in ("bash", "dirname", "realpath", "timeout"):
            (place.folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
    done = place.run(PATH=str(tmp_path / "bin")) if listing is None else place.run()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "there is no NVIDIA GPU here" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "bin", "scripts"]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["benhc"], {}, "there is no step benhc; steps are build doctor correct triton persistent bench"),
        (["doctor", "--quick"], {}, "there is no step --quick"),
        (["--carry", "8.0", "9.0"], {}, "--carry takes one argument"),
        ([], {"FRD_LIMIT": "10m"}, "FRD_LIMIT should be a number of seconds, got 10m"),
        ([], {"FRD_LIMIT": "0"}, "FRD_LIMIT should be a number of seconds, got 0"),
        ([], {"FRD_WORKERS": "many"}, "FRD_WORKERS should be a number of processes, got many"),
        ([], {"FRD_GPU_DTYPES": "float32 half"}, "FRD_GPU_DTYPES should be of float32, bfloat16, float16, got half"),
        ([], {"FRD_PYTHON": "no-such-python"}, "FRD_PYTHON: there is no no-such-python"),
        ([], {"FRD_OUT": "scripts/gpu.sh"}, "scripts/gpu.sh cannot be made a folder"),
        ([], {"FRD_OUT": "scripts/gpu.sh/out"}, "scripts/gpu.sh/out cannot be made a folder"),
        ([], {"FRD_OUT": "/proc"}, "/proc cannot be written to"),
        (["--dry-run"], {"FRD_PYTHON": ""}, "there is no .venv"),
        (["--carry"], {"FRD_PYTHON": ""}, "there is no .venv"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    arguments: list[str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    done = place.run(*arguments, **environment)
    assert done.returncode == 2 and not place.calls
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_relative_paths_are_the_callers(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    place = Place(tmp_path / "checkout")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "python").symlink_to(place.python)
    done = place.run("doctor", cwd=elsewhere, FRD_OUT="a folder/of runs", FRD_PYTHON="./python")
    assert done.returncode == 0, done.stderr
    out = elsewhere / "a folder" / "of runs"
    assert f"--output {out}/report.md" in place.calls[-1]
    assert sorted(path.name for path in out.iterdir()) == ["build.log", "doctor.log", "report.md"]


def test_a_run_clears_what_an_earlier_one_left_and_nothing_else(tmp_path: Path) -> None:
    place, out = Place(tmp_path), tmp_path / "out"
    out.mkdir()
    mine = ("notes.log", "data.json", "correct")
    theirs = (
        "bench.log",
        "triton.xml",
        "bfloat16.json",
        "report.json",
        "exchange.md",
        "schedules.json",
        "persistent.xml",
    )
    for name in (*mine, *theirs):
        (out / name).write_text("old")
    place.run("doctor")
    assert {path.name for path in out.iterdir()} == {*mine, "build.log", "doctor.log", "report.md"}


# --------------------------------------------------------------------------------------------------------------------
# The build
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [True, False])
def test_libraries_that_are_brought_along_are_used_where_they_fit(fits: bool, tmp_path: Path) -> None:
    place = Place(tmp_path, f'case "$*" in *"carried.py use") exit {0 if fits else 1} ;; esac')
    (tmp_path / "build" / "carry").mkdir(parents=True)
    (tmp_path / "build" / "carry" / "manifest.json").touch()
    place.run("doctor")
    assert place.calls[0] == "1 scripts/carried.py use"
    assert ("1 setup.py build_ext --inplace" in place.calls) == (not fits)
    assert place.steps == {"build": "0", "doctor": "0"}


def test_what_is_brought_along_is_built_without_a_gpu(tmp_path: Path) -> None:
    place = Place(tmp_path, nvidia_smi="exit 9")
    assert place.run("--carry", "8.0;9.0").returncode == 0
    assert [call.strip() for call in place.calls] == ["scripts/carried.py pack --architectures 8.0;9.0"]


@pytest.mark.parametrize("made", [True, False])
def test_without_an_interpreter_an_environment_is_made(made: bool, tmp_path: Path) -> None:
    place = Place(tmp_path)
    making = f"mkdir -p .venv/bin && cp {place.python} .venv/bin/" if made else "echo 'no Python found'; exit 1"
    (tmp_path / "scripts" / "environment.sh").write_text(f'echo "extras: $FRD_EXTRAS"\n{making}\n')
    place.tool("python3", f'exec {sys.executable} "$@"')
    done = place.run("doctor", FRD_PYTHON="")
    assert "extras: bench,test,triton" in done.stdout
    if made:
        assert place.steps == {"build": "0", "doctor": "0"}
    else:
        assert done.returncode == 1
        assert "no Python found" in place.page and "NOT RUN" in place.page


# --------------------------------------------------------------------------------------------------------------------
# Without a GPU
# --------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_goes_through_every_step_and_says_what_a_gpu_would_run(tmp_path: Path) -> None:
    place = Place(tmp_path, 'echo "$CUDA_VISIBLE_DEVICES$PIP_NO_INDEX" >>hidden', nvidia_smi="touch asked")
    (tmp_path / "fused_rnn_dropout").mkdir()
    (tmp_path / "fused_rnn_dropout" / "_C.abi3.so").touch()
    done = place.run("--dry-run", "--", "--quick")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "asked").exists() and not any("setup.py" in call for call in place.calls)
    assert all(call.startswith("0 ") for call in place.calls)
    assert set((tmp_path / "hidden").read_text().split()) == {"1"}  # no device is visible, and there is no index
    assert place.steps == WELL and "--dry-run" in place.calls[-1]
    for text in (
        "setup.py build_ext --inplace",
        "nvidia-smi",
        "pytest -m 'gpu and not gpu_large and not triton'",
        "pytest -m 'gpu_large'",
        "pytest -m 'gpu and not triton' tests/kernels/test_exchange.py tests/kernels/test_persistent.py",
        "python -m bench schedules --dtypes float16",
        "bench --device cuda --dtype float16 --quick",
    ):
        assert any("on a GPU" in line and text in line for line in done.stdout.splitlines()), text
    assert not any("--device" in call for call in place.calls)
    assert f"--tests {tmp_path}/out/correct.xml" in place.calls[-1] and "large.xml" not in place.calls[-1]


def test_a_dry_run_builds_the_library_where_there_is_none(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run("--dry-run", "doctor")
    assert place.calls[0] == "0 setup.py build_ext --inplace"


def test_tests_that_cannot_be_collected_fail_a_dry_run(tmp_path: Path) -> None:
    place = Place(tmp_path, 'case "$*" in *"not gpu_large"*--collect-only*) exit 2 ;; esac')
    place.run("--dry-run", "correct")
    assert place.steps == {"build": "0", "correct": "2"}
