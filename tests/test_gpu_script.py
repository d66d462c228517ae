"""The one command for a machine with a GPU, with stand-ins for the GPU's tool and for the interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "scripts" / "gpu.sh").exists():
    pytest.skip("the scripts are part of a checkout, not of the installed package", allow_module_level=True)


@pytest.mark.parametrize("listing", [None, "exit 9", "echo 'No devices were found'"], ids=["missing", "fails", "none"])
def test_the_command_stops_at_once_without_a_gpu(listing: str | None, tmp_path: Path) -> None:
    """In a folder of its own, so that an environment that it began to make would be seen."""
    (tmp_path / "scripts").mkdir()
    for name in ("gpu.sh", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "grep"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    if listing is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{listing}\n")
        (tools / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/gpu.sh"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "there is no NVIDIA GPU here" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "scripts"]


def run(tmp_path: Path, *arguments: str, python: str = "", **environment: str) -> tuple[Any, list[str]]:
    """Runs the script with an interpreter that only notes what it is called with; returns that too.

    Args:
        python: what it does beside, in sh.
    """
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu.sh", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    made = {"nvidia-smi": "echo 'GPU 0: made up'", "python": f'echo "$FRD_CUDA $*" >>calls\n{python}'}
    for name, text in made.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    given = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FRD_PYTHON": str(tmp_path / "bin" / "python"),
        "FRD_OUT": "out",
        "FRD_GPU_DTYPES": "float16",
        **environment,
    }
    command = ["bash", "scripts/gpu.sh", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def outcomes(report: str) -> dict[str, str]:
    """Exit status by step, of the call that writes the report."""
    return {part.split()[0]: part.split()[1] for part in report.split("--step ")[1:]}


def test_every_step_is_run_in_turn_and_nothing_comes_from_an_index(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "--", "--quick")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "1 -m pip install --no-index --no-build-isolation --no-deps -e ."
    assert sum("pip" in call for call in calls) == 1
    runs = [call for call in calls[2:-1] if "xdist" not in call]
    assert [call.split()[2] for call in runs] == ["fused_rnn_dropout", "pytest", "pytest", "pytest", "bench"]
    assert runs[-1] == "1 -m bench --device cuda --dtype float16 --output out/float16.json --quick"
    assert outcomes(calls[-1]) == {"doctor": "0", "correct": "0", "triton": "0", "bench": "0"}
    for record in ("correct.xml", "large.xml", "triton.xml"):
        assert f"--tests out/{record}" in calls[-1]
    assert "--results out/float16.json" in calls[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "calls", "out", "scripts"]


def test_a_failing_step_is_reported_and_the_others_run(tmp_path: Path) -> None:
    done, calls = run(tmp_path, python='case "$*" in *"not gpu_large"*) exit 3 ;; *gpu-report*) exit 1 ;; esac')
    assert done.returncode == 1
    assert outcomes(calls[-1]) == {"doctor": "0", "correct": "3", "triton": "0", "bench": "0"}


def test_a_step_over_its_time_is_ended(tmp_path: Path) -> None:
    slow = 'case "$*" in *doctor) sleep 60 ;; esac'
    done, calls = run(tmp_path, "doctor", "triton", python=slow, FRD_LIMIT="1")
    assert done.returncode == 0, done.stderr  # that of the report, which the stand-in does not write
    assert outcomes(calls[-1]) == {"doctor": "124", "triton": "0"}


def test_steps_are_chosen_by_name(tmp_path: Path) -> None:
    _, calls = run(tmp_path, "bench")
    assert outcomes(calls[-1]) == {"bench": "0"} and "--tests" not in calls[-1]


def test_an_unknown_step_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "benhc")
    assert done.returncode == 2 and not calls
    assert "there is no step benhc; steps are doctor correct triton bench" in done.stderr


def test_an_installation_that_fails_ends_it(tmp_path: Path) -> None:
    done, calls = run(tmp_path, python='case "$*" in *pip*) exit 4 ;; esac')
    assert done.returncode == 4 and len(calls) == 1
