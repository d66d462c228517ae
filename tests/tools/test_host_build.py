"""tests/cuda/build.py keeps an object for as long as nothing that it was made from has changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import host_run
import pytest

build = host_run.build_module()


@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.name)
def test_files_are_those_that_the_compiler_reads(source: Path) -> None:
    """Of this project's; there may be more, which stand under a condition that does not hold."""
    command = [part for part in build.compile_command(source) if part != "-c"]
    done = subprocess.run([*command, "-MM"], capture_output=True, text=True, check=True)
    _, _, listed = done.stdout.partition(":")
    read = {path for name in listed.replace("\\\n", " ").split() if (path := Path(name).resolve()).is_file()}
    ours = {path for path in read if any(folder in path.parents for folder in build.INCLUDES)}  # no environment's
    assert source.resolve() in ours and ours <= set(build.files_of(source))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """build.py of a copy of the checkout."""
    for name in ("csrc", "tests/cuda"):
        shutil.copytree(build.ROOT / name, tmp_path / name)
    monkeypatch.setattr(host_run, "__file__", str(tmp_path / "tests" / "host_run.py"))
    return host_run.build_module.__wrapped__()


def test_names_of_objects_follow_what_is_in_them(copy: ModuleType) -> None:
    def names(of: ModuleType, version: str = "a compiler") -> dict[str, str]:
        of.included.cache_clear()
        return {source.name: of.object_of(source, version).name for source in of.sources()}

    before = names(build)
    assert names(copy) == before and len(set(before.values())) == len(before)
    assert not set(names(build, "another").values()) & set(before.values())
    header = copy.ROOT / "csrc/cuda/persistent_forward.h"
    header.write_text(header.read_text() + "\n")
    changed = {name for name, of in names(copy).items() if of != before[name]}
    assert changed == {f"persistent_forward_{kind}.cu" for kind in ("f32", "bf16", "f16")}
    everywhere = copy.ROOT / "csrc/core/philox.h"
    everywhere.write_text(everywhere.read_text() + "\n")
    changed = {name for name, of in names(copy).items() if of != before[name]}
    assert {"persistent.cpp", "dropout.cu"} <= changed
