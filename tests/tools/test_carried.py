"""Compiled libraries that are brought along to a machine: used where they fit, and otherwise not, with the reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "carried.py"
if not SCRIPT.exists():
    pytest.skip("the scripts are part of a checkout, not of the installed package", allow_module_level=True)
_spec = importlib.util.spec_from_file_location("carried", SCRIPT)
assert _spec and _spec.loader
carried = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(carried)

NAMES = ["_C.abi3.so", "_cuda13.abi3.so"]
HERE = {"sources": "s", "machine": "linux x86_64", "torch": 2, "cuda": 13, "device": [9, 0]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of libraries with its manifest, and a package that has one of them already."""
    folder, package = tmp_path / "carry", tmp_path / "package"
    folder.mkdir()
    package.mkdir()
    for name in NAMES:
        (folder / name).write_text(f"new {name}")
    (package / NAMES[0]).write_text("old")
    libraries = {name: carried.digest(folder / name) for name in NAMES}
    manifest = HERE | {"device": None, "architectures": "9.0", "libraries": libraries}
    (folder / carried.MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(carried, "here", lambda: HERE)
    monkeypatch.setattr(carried, "load", lambda: None)
    return folder, package


def contents(package: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in package.iterdir()}


def test_libraries_that_fit_are_put_beside_the_package(place: tuple[Path, Path], capsys: Any) -> None:
    folder, package = place
    assert carried.use(folder, package) == 0
    assert contents(package) == {name: f"new {name}" for name in NAMES}
    assert "using the libraries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sources": "t"}, "built from other sources"),
        ({"machine": "linux aarch64"}, "they are for linux x86_64, this is linux aarch64"),
        ({"torch": 3}, "built against torch 2, here is torch 3"),
        ({"cuda": 12}, "built for CUDA 13, the torch here is for CUDA 12"),
        ({"cuda": None}, "built for CUDA 13, the torch here is for CUDA None"),
        ({"device": [8, 6]}, "they are for compute capability 9.0, the device here has 8.6"),
    ],
)
def test_what_does_not_fit_is_left_out_with_the_reason(
    changed: dict[str, Any], said: str, place: tuple[Path, Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, package = place
    monkeypatch.setattr(carried, "here", lambda: HERE | changed)
    assert carried.use(folder, package) == 1
    assert contents(package) == {NAMES[0]: "old"}
    told = capsys.readouterr().out
    assert said in told and ";" not in told


@pytest.mark.parametrize("what", ["missing", "cut short"])
def test_files_that_were_not_brought_along_whole(what: str, place: tuple[Path, Path], capsys: Any) -> None:
    folder, package = place
    if what == "missing":
        (folder / NAMES[1]).unlink()
    else:
        (folder / NAMES[1]).write_text("new")
    assert carried.use(folder, package) == 1
    assert contents(package) == {NAMES[0]: "old"}
    assert f"{NAMES[1]} is {'missing' if what == 'missing' else 'not what'}" in capsys.readouterr().out


def test_libraries_that_do_not_load_are_taken_away_again(
    place: tuple[Path, Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, package = place
    monkeypatch.setattr(carried, "load", lambda: "GLIBC_9 not found")
    assert carried.use(folder, package) == 1
    assert contents(package) == {NAMES[0]: "old"}
    assert "they do not load here: GLIBC_9 not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architectures", "device", "runs"),
    [
        ("9.0", [9, 0], True),
        ("8.0", [8, 6], True),
        ("8.6", [8, 0], False),
        ("9.0", [10, 0], False),
        ("9.0", [8, 9], False),
        ("9.0+PTX", [12, 0], True),
        ("12.0+PTX", [9, 0], False),
        ("7.5;8.0 9.0", [9, 0], True),
    ],
)
def test_which_devices_run_what_was_compiled(architectures: str, device: list[int], runs: bool) -> None:
    assert carried.served(architectures, device) == runs


@pytest.mark.parametrize("text", ["", "Hopper", "9", "sm_90", "9.0a", "9.0;;x"])
def test_compute_capabilities_are_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="compute capabilities should be written like"):
        carried.capabilities(text)


def test_the_sources_are_all_that_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "_build").mkdir()
    for name in ("setup.py", "_build/gpu_libraries.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(carried, "ROOT", tmp_path)
    seen = {carried.sources()}
    (tmp_path / "csrc" / "cuda" / "a.cu").write_text("1")
    seen.add(carried.sources())
    (tmp_path / "csrc" / "cuda" / "a.cu").write_text("2")
    seen.add(carried.sources())
    (tmp_path / "csrc" / "cuda" / "a.cu").rename(tmp_path / "csrc" / "b.cu")
    seen.add(carried.sources())
    assert len(seen) == 4


def test_what_is_here_can_be_told_and_loads() -> None:
    """The parts that the other tests replace, as far as a machine without a CUDA library goes."""
    import torch

    from fused_rnn_dropout import library

    found = carried.here()
    assert set(found) == set(HERE) and found["torch"] == int(torch.__version__[0])
    refusal = library.obstacle("cuda", "cuda")
    assert carried.load() == refusal
